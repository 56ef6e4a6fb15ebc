"""What an answer holds: draws, stop strings, log-probabilities, choices, grammars, usage."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec
import pytest
import torch

from tenter.runtime.calls import Chunk, Request, Sampling
from tenter.runtime.engine.engine import Engine
from tenter.runtime.engine.sample import sample
from tenter.runtime.errors import CallFailed

MakeEngine = Callable[..., Engine]
Run = Callable[[Engine, Iterable[Request]], dict[str, Chunk]]
Ask = Callable[..., Request]
Logits = Callable[[str, list[int]], torch.Tensor]

PROMPT = [40, 41, 42, 50, 60, 70, 80] * 6
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["billing", "bug"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["kind", "count"],
        "additionalProperties": False,
    }
)


# -- sampling


def test_a_seeded_draw_does_not_depend_on_the_batch(engine: MakeEngine, run: Run, ask: Ask) -> None:
    def request(seed: int) -> Request:
        return ask(str(seed), PROMPT, temperature=1.0, top_p=0.95, top_k=60, seed=seed)

    alone = [run(engine("qwen3"), [request(seed)])[str(seed)].token_ids for seed in range(8)]
    others = [ask(f"other {i}", PROMPT[i:], temperature=0.7) for i in range(9)]
    together = run(engine("qwen3"), [*others, *(request(seed) for seed in range(8))])

    assert [together[str(seed)].token_ids for seed in range(8)] == alone
    assert len(set(alone)) > 4


def test_a_preempted_draw_goes_on_where_it_was(engine: MakeEngine, run: Run, ask: Ask) -> None:
    requests = [ask(str(i), PROMPT, temperature=1.0, seed=i, max_tokens=60) for i in range(6)]
    wide, narrow = engine("qwen3"), engine("qwen3", kv_tokens=16 * 14)

    expected, answers = run(wide, requests), run(narrow, requests)

    assert narrow.batch.preemptions > 0
    assert [answers[str(i)].token_ids for i in range(6)] == [
        expected[str(i)].token_ids for i in range(6)
    ]


def frequencies(logits: torch.Tensor, settings: Sampling, count: int = 4000) -> Counter[int]:
    draws = [(i + 0.5) / count for i in range(count)]
    return Counter(sample(logits.expand(count, -1), [settings] * count, draws))


def test_temperature_follows_the_softmax() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])

    seen = frequencies(logits, Sampling(temperature=2.0))

    for token, share in enumerate(torch.softmax(logits / 2, -1).tolist()):
        assert seen[token] / 4000 == pytest.approx(share, abs=2e-3)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (Sampling(temperature=1.0, top_k=2), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.5), {1}),
        (Sampling(temperature=1.0, top_p=0.7), {1, 2}),
        (Sampling(temperature=1.0, top_k=3, top_p=0.95), {0, 1, 2}),
        (Sampling(temperature=1.0, top_k=1), {1}),
        (Sampling(temperature=1e-4), {1}),
        (Sampling(temperature=1.0, top_p=1e-9), {1}),
    ],
    ids=str,
)
def test_top_k_and_top_p_keep_the_likeliest(settings: Sampling, kept: set[int]) -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])  # shares .09 .65 .24 .01

    seen = frequencies(logits, settings)

    assert set(seen) == kept
    shares = torch.softmax(logits[sorted(kept)] / settings.temperature, -1).tolist()
    for token, share in zip(sorted(kept), shares, strict=True):
        assert seen[token] / 4000 == pytest.approx(share, abs=2e-3)


def test_a_plain_row_draws_the_same_beside_a_limited_one() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]] * 2)
    plain, limited = Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=3)

    for draw in (0.01, 0.2, 0.5, 0.9):
        mixed = sample(logits, [plain, limited], [draw, draw])
        assert mixed[0] == sample(logits[:1], [plain], [draw])[0]


def test_a_draw_never_hits_a_token_of_no_weight() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])

    for draw in (0.0, 0.4999, 0.5, 1 - 2**-24, 1 - 2**-53):
        assert sample(logits, [Sampling(temperature=1.0)], [draw])[0] in (1, 3)


# -- stopping


def test_stop_string_across_token_borders(engine: MakeEngine, run: Run, ask: Ask) -> None:
    subject = engine("qwen3")
    plain = run(subject, [ask("plain", PROMPT, max_tokens=40)])["plain"]
    pieces = [subject.tokenizer.decode([token]) for token in plain.token_ids]
    border = len("".join(pieces[:20]))
    stop = plain.text[border - 2 : border + 2]
    place = plain.text.find(stop)

    whole = run(subject, [ask("whole", PROMPT, max_tokens=40, stop=(stop, "never there"))])["whole"]

    assert whole.finish == "stop"
    assert whole.text == plain.text[:place]
    assert whole.token_ids == plain.token_ids[: len(whole.token_ids)]


def test_streamed_chunks_add_up_and_hide_the_stop_string(engine: MakeEngine, ask: Ask) -> None:
    subject, chunks = engine("qwen3"), list[Chunk]()
    subject.submit(ask("plain", PROMPT, max_tokens=40))
    while subject.busy:
        chunks = [chunk for _, chunk in subject.step()] or chunks
    text = chunks[0].text
    stop = text[25:29]
    place = text.find(stop)

    subject.submit(ask("streamed", PROMPT, max_tokens=40, stop=(stop,), stream=True, logprobs=True))
    chunks = []
    while subject.busy:
        chunks += [chunk for _, chunk in subject.step()]

    assert "".join(chunk.text for chunk in chunks) == text[:place]
    assert len(chunks) > 5
    assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert all(len(chunk.token_ids) == len(chunk.logprobs or ()) for chunk in chunks)


def test_end_token_closes_the_answer(
    engine: MakeEngine, run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = engine("qwen3")
    plain = run(subject, [ask("plain", PROMPT)])["plain"]
    monkeypatch.setattr(subject, "_eos_ids", frozenset([plain.token_ids[5]]))
    first = plain.token_ids.index(plain.token_ids[5])

    answer = run(subject, [ask("ended", PROMPT, ignore_eos=False)])["ended"]

    assert answer.finish == "stop"
    assert answer.token_ids == plain.token_ids[: first + 1]
    assert answer.text == subject.tokenizer.decode(list(plain.token_ids[:first]))


# -- log-probabilities


def test_logprobs_are_those_of_transformers(
    engine: MakeEngine, run: Run, ask: Ask, logits_of: Logits
) -> None:
    answer = run(engine("qwen2"), [ask("a", PROMPT, logprobs=True, temperature=0.5, seed=1)])["a"]

    ids = PROMPT + list(answer.token_ids)
    table = logits_of("qwen2", ids).log_softmax(-1)[len(PROMPT) - 1 : -1]
    expected = table.gather(1, torch.tensor(answer.token_ids).unsqueeze(1)).squeeze(1)
    assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("chunk_tokens", [512, 16, 5])
@pytest.mark.parametrize("length", [20, 32, 40, 100])
def test_choices_are_scored_exactly(
    length: int, chunk_tokens: int, engine: MakeEngine, run: Run, ask: Ask, logits_of: Logits
) -> None:
    prompt = (PROMPT * 3)[:length]
    choices = ((7,), (7, 8, 2), (9, 10, 11, 12, 2), (9, 13, 2), (14,) * 20)
    subject = engine("llama", chunk_tokens=chunk_tokens)

    answers = run(
        subject,
        [
            ask("scored", prompt, choices=choices),
            ask("neighbour", prompt),
            ask("also", prompt, choices=choices[:2]),
        ],
    )

    expected = []
    for choice in choices:
        table = logits_of("llama", prompt + list(choice)).log_softmax(-1)[length - 1 : -1]
        expected.append(table.gather(1, torch.tensor(choice).unsqueeze(1)).sum().item())
    assert answers["scored"].choice_logprobs == pytest.approx(expected, abs=1e-3)
    assert answers["also"].choice_logprobs == pytest.approx(expected[:2], abs=1e-3)
    assert answers["scored"].token_ids == ()
    assert answers["scored"].finish == "stop"


def test_choices_over_shared_pages(
    engine: MakeEngine, run: Run, ask: Ask, logits_of: Logits
) -> None:
    """Rows with choices and a long common prefix form one block, with masks of their own."""
    trunk, choices = (PROMPT * 6)[:230], ((7, 8, 2), (9, 2), (10,))
    subject = engine("qwen3")
    run(subject, [ask("trunk", trunk, max_tokens=1)])

    answers = run(subject, [ask(str(i), [*trunk, i + 3], choices=choices) for i in range(6)])

    assert subject.counters.prefill_tokens < 230 + 6 * 20
    for i in range(6):
        for j, choice in enumerate(choices):
            ids = [*trunk, i + 3, *choice]
            table = logits_of("qwen3", ids).log_softmax(-1)[len(trunk) : -1]
            expected = table.gather(1, torch.tensor(choice).unsqueeze(1)).sum().item()
            found = (answers[str(i)].choice_logprobs or ())[j]
            assert found == pytest.approx(expected, abs=1e-3)


def test_choices_take_one_step_and_no_decoding(engine: MakeEngine, run: Run, ask: Ask) -> None:
    subject = engine("llama")

    run(subject, [ask(str(i), PROMPT + [i], choices=((7, 2), (8, 2))) for i in range(5)])

    assert subject.counters.steps == 1
    assert subject.counters.decode_tokens == 0


# -- grammars


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_output_satisfies_its_schema(
    temperature: float, engine: MakeEngine, run: Run, ask: Ask
) -> None:
    subject = engine("qwen3")

    answers = run(
        subject,
        [
            ask(
                str(seed),
                PROMPT + [seed],
                schema=SCHEMA if seed % 2 else None,
                temperature=temperature,
                seed=seed,
                max_tokens=60,
                ignore_eos=False,
                logprobs=True,
            )
            for seed in range(6)
        ],
    )

    for seed in (1, 3, 5):
        answer = answers[str(seed)]
        value = json.loads(answer.text)
        assert answer.finish == "stop"
        assert answer.text == json.dumps(value)
        assert value["kind"] in ("billing", "bug")
        assert 0 <= value["count"] <= 99
        assert all(math.isfinite(value) for value in answer.logprobs or ())


@pytest.mark.parametrize("schema", ["{", '{"type": "nonsense"}'], ids=["no JSON", "no schema"])
def test_a_broken_schema_is_refused(schema: str, engine: MakeEngine, ask: Ask) -> None:
    subject = engine("qwen3")

    with pytest.raises(CallFailed, match="schema"):
        subject.submit(ask("a", PROMPT, schema=schema))

    assert not subject.busy


# -- refusals and usage


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "empty"),
        ([5] * 512, {}, "512 tokens.* context of 512"),
        ([5] * 100, {"choices": ((1,) * 412 + (2,),)}, "context of 512"),
        ([5, 320], {}, "vocabulary of 320"),
        ([5], {"choices": ((), (1,))}, "at least one token"),
        ([5], {"choices": ()}, "at least one token"),
    ],
)
def test_a_call_that_cannot_be_answered_is_refused(
    ids: list[int], options: dict[str, object], message: str, engine: MakeEngine, ask: Ask
) -> None:
    with pytest.raises(CallFailed, match=message):
        engine("qwen3").submit(ask("a", ids, **options))


def test_a_prompt_larger_than_the_cache_is_refused(engine: MakeEngine, ask: Ask) -> None:
    with pytest.raises(CallFailed, match=r"100 tokens.*KV cache of 64 tokens"):
        engine("qwen3", kv_tokens=64).submit(ask("a", [5] * 100))


def test_output_ends_where_the_context_does(engine: MakeEngine, run: Run, ask: Ask) -> None:
    answer = run(engine("qwen3"), [ask("a", [5] * 500, max_tokens=100)])["a"]

    assert len(answer.token_ids) == 12
    assert answer.finish == "length"


def test_usage_counts_tokens_and_seconds(engine: MakeEngine, run: Run, ask: Ask) -> None:
    ticks = iter(range(100_000))
    subject = engine("qwen3", clock=lambda: float(next(ticks)))
    run(subject, [ask("first", PROMPT)])

    usage = run(subject, [ask("second", PROMPT + [3, 4])])["second"].usage

    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (44, 32, 12)
    assert usage.queue_s > 0
    assert usage.prefill_s > 0
    assert usage.decode_s > usage.prefill_s


def test_a_grammar_that_fails_ends_only_its_call(engine: MakeEngine, run: Run, ask: Ask) -> None:
    """Tokens of an earlier attempt that the schema forbids leave the grammar without a way on."""
    subject = engine("qwen3")
    bad = msgspec.structs.replace(ask("bad", PROMPT, schema=SCHEMA), drawn=(100, 101))

    answers = run(subject, [bad, ask("good", PROMPT)])

    assert answers["bad"].finish == "error"
    assert "grammar" in (answers["bad"].error or "")
    assert answers["good"].finish == "length"
