"""Greedy float32 answers are those of transformers, whatever else the engine is doing."""

import random
from collections.abc import Callable, Iterable

import pytest

from tenter.runtime.calls import Chunk, Request
from tenter.runtime.engine.engine import Engine

NAMES = ("llama", "llama3-rope", "linear-rope", "qwen2", "qwen2-yarn", "qwen3")
MakeEngine = Callable[..., Engine]
Run = Callable[[Engine, Iterable[Request]], dict[str, Chunk]]
Ask = Callable[..., Request]
Greedy = Callable[[str, list[int], int], tuple[int, ...]]
AllFree = Callable[[Engine], None]


def prompts(seed: int, count: int = 10) -> list[list[int]]:
    """Prompts of many lengths; half of them over a common prefix, two of them over a longer one."""
    draw = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [draw.randrange(3, 320) for _ in range(length)]

    trunk = ids(70)
    branch = trunk + ids(30)
    made = [trunk + ids(draw.randrange(1, 40)) for _ in range(count // 2)]
    made += [branch + ids(draw.randrange(1, 20)) for _ in range(2)]
    made += [ids(length) for length in (1, 15, 16, 17, 33, 64, 100)]
    draw.shuffle(made)
    return made[:count]


@pytest.mark.parametrize("name", NAMES)
def test_alone(name: str, engine: MakeEngine, run: Run, ask: Ask, greedy: Greedy) -> None:
    prompt = prompts(1)[0]

    answer = run(engine(name), [ask("a", prompt)])["a"]

    assert answer.token_ids == greedy(name, prompt, 12)
    assert answer.finish == "length"


@pytest.mark.parametrize("name", NAMES)
def test_mixed_batch_cold_then_warm(
    name: str, engine: MakeEngine, run: Run, ask: Ask, greedy: Greedy, assert_all_free: AllFree
) -> None:
    made, subject = prompts(2, 14), engine(name)
    expected = {str(i): greedy(name, prompt, 12) for i, prompt in enumerate(made)}

    for _ in ("cold", "warm"):
        answers = run(subject, [ask(str(i), prompt) for i, prompt in enumerate(made)])
        assert {call: chunk.token_ids for call, chunk in answers.items()} == expected
        assert_all_free(subject)

    assert sum(chunk.usage.cached_tokens for chunk in answers.values()) > 300


@pytest.mark.parametrize("chunk_tokens", [1, 7, 48])
def test_chunked_prefill(
    chunk_tokens: int, engine: MakeEngine, run: Run, ask: Ask, greedy: Greedy
) -> None:
    made, subject = prompts(2, 14), engine("qwen3", chunk_tokens=chunk_tokens)

    answers = run(subject, [ask(str(i), prompt) for i, prompt in enumerate(made)])

    for i, prompt in enumerate(made):
        assert answers[str(i)].token_ids == greedy("qwen3", prompt, 12)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_few_pages(
    name: str, engine: MakeEngine, run: Run, ask: Ask, greedy: Greedy, assert_all_free: AllFree
) -> None:
    """Pages run out: idle ones are evicted, running sequences preempted, and no token is lost."""
    made = [prompt[:30] for prompt in prompts(3, 14)]
    subject = engine(name, kv_tokens=16 * 16, chunk_tokens=32)

    answers = run(subject, [ask(str(i), p, max_tokens=40) for i, p in enumerate(made)])

    for i, prompt in enumerate(made):
        assert answers[str(i)].token_ids == greedy(name, prompt, 40)
    assert subject.batch.preemptions > 0
    assert subject.cache.counters.evictions > 0
    assert_all_free(subject)


def test_after_aborts_of_neighbours(
    engine: MakeEngine, ask: Ask, greedy: Greedy, assert_all_free: AllFree
) -> None:
    """Whoever waits for a page that an aborted neighbour was computing takes it over."""
    made, subject = prompts(2, 14), engine("qwen3", chunk_tokens=24)
    draw, answers = random.Random(5), dict[str, Chunk]()
    for i, prompt in enumerate(made):
        subject.submit(ask(f"keep {i}", prompt))
        subject.submit(ask(f"drop {i}", prompt + [5, 6, 7] * 9))
    doomed = [f"drop {i}" for i in range(len(made))]
    draw.shuffle(doomed)

    while subject.busy:
        answers |= {call: chunk for call, chunk in subject.step() if chunk.finish}
        if doomed and (output := subject.abort(doomed.pop())):
            answers[output.call] = output.chunk

    for i, prompt in enumerate(made):
        assert answers[f"keep {i}"].token_ids == greedy("qwen3", prompt, 12)
    assert any(chunk.finish == "abort" for chunk in answers.values())
    assert_all_free(subject)


def test_first_owner_aborted_mid_prefill(
    engine: MakeEngine, run: Run, ask: Ask, greedy: Greedy
) -> None:
    prompt, subject = prompts(2)[0] * 3, engine("llama", chunk_tokens=20)
    subject.submit(ask("owner", prompt))
    subject.submit(ask("heir", prompt))
    subject.step()
    subject.abort("owner")

    assert run(subject, [])["heir"].token_ids == greedy("llama", prompt, 12)
