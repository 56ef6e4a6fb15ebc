"""Greedy float32 answers are those of transformers, whatever else the engine is doing."""

import random
from collections.abc import Callable, Iterable

import pytest

from tenter.runtime.calls import Chunk, Request
from tenter.runtime.engine.attention import PagedAttention, Plan
from tenter.runtime.engine.batch import Work
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


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_shared_pages_read_once(
    name: str,
    engine: MakeEngine,
    run: Run,
    ask: Ask,
    greedy: Greedy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two long trunks and loners: the blocks of the cascade, decoding and prefilling."""
    sizes = set[tuple[int, int]]()
    plan = PagedAttention.plan

    def watched(self: PagedAttention, work: list[Work]) -> Plan:
        made = plan(self, work)
        sizes.update((b.queries, len(b.shared)) for b in made.blocks if b.shared is not None)
        return made

    monkeypatch.setattr(PagedAttention, "plan", watched)
    draw = random.Random(7)
    trunks = [[draw.randrange(3, 320) for _ in range(length)] for length in (210, 330)]
    made = [trunks[i % 2] + [draw.randrange(3, 320) for _ in range(1 + i)] for i in range(12)]
    made += [[draw.randrange(3, 320) for _ in range(length)] for length in (3, 40, 150)]
    subject = engine(name)
    for trunk in trunks:
        run(subject, [ask("trunk", trunk, max_tokens=1)])

    answers = run(subject, [ask(str(i), prompt) for i, prompt in enumerate(made)])

    for i, prompt in enumerate(made):
        assert answers[str(i)].token_ids == greedy(name, prompt, 12)
    assert {shared for queries, shared in sizes if queries == 1} == {13, 20}
    assert {queries for queries, _ in sizes} > {1}


def test_groups_follow_the_rows(engine: MakeEngine, run: Run, ask: Ask, greedy: Greedy) -> None:
    """Rows come, end and are preempted while others decode: no stale group, no stale page."""
    draw = random.Random(8)
    trunk = [draw.randrange(3, 320) for _ in range(170)]
    made = [trunk + [draw.randrange(3, 320) for _ in range(1 + 3 * i)] for i in range(10)]
    subject, answers = engine("qwen3", kv_tokens=16 * 24, max_running=7), dict[str, Chunk]()
    for i, prompt in enumerate(made):
        subject.submit(ask(str(i), prompt, max_tokens=10 + 7 * (i % 5)))
        for _ in range(3):
            answers |= {call: chunk for call, chunk in subject.step() if chunk.finish}
    answers |= run(subject, [])

    for i, prompt in enumerate(made):
        assert answers[str(i)].token_ids == greedy("qwen3", prompt, 10 + 7 * (i % 5))
    assert subject.batch.preemptions > 0
