"""Sessions: what is kept for whom, and until when."""

from collections.abc import Callable, Iterable

from tenter.runtime.calls import Chunk, Request, Sampling, SessionId
from tenter.runtime.engine.engine import Engine

MakeEngine = Callable[..., Engine]
Run = Callable[[Engine, Iterable[Request]], dict[str, Chunk]]
Ask = Callable[..., Request]
AllFree = Callable[[Engine], None]

A, B = SessionId("a"), SessionId("b")
PROMPT = [40, 41, 42, 50, 60, 70, 80] * 7  # 49 tokens: three full pages


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def press(engine: Engine, run: Run, ask: Ask, pages: int = 60) -> None:
    """Unrelated calls, one after another, that together need `pages` pages."""
    for i in range(pages // 4):
        run(engine, [ask(f"pressure {i}", [100 + i] * 50, max_tokens=4)])


def cached(engine: Engine, run: Run, ask: Ask, prompt: list[int]) -> int:
    usage = run(engine, [ask("probe", prompt, max_tokens=1)])["probe"].usage
    return usage.cached_tokens if usage else -1


def test_a_retained_session_survives_pressure_until_its_time(
    engine: MakeEngine, run: Run, ask: Ask
) -> None:
    clock = Clock()
    subject = engine("qwen3", clock=clock, kv_tokens=16 * 16)
    answer = run(subject, [ask("turn", PROMPT, session=A, max_tokens=16)])["turn"]
    longer = PROMPT + list(answer.token_ids) + [9] * 5  # 64 tokens were computed: four pages

    subject.retain(A, 10.0)
    press(subject, run, ask)
    assert subject.load().kv_pinned_tokens == 64
    assert cached(subject, run, ask, longer) == 64

    clock.now_s = 10.5
    press(subject, run, ask)
    assert cached(subject, run, ask, longer) == 0
    assert subject.load().kv_pinned_tokens == 0
    assert subject.load().counters["pins_expired"] == 1


def test_without_a_pin_pressure_evicts(engine: MakeEngine, run: Run, ask: Ask) -> None:
    subject = engine("qwen3", kv_tokens=16 * 16)
    run(subject, [ask("turn", PROMPT, session=A)])

    press(subject, run, ask)

    assert cached(subject, run, ask, PROMPT) == 0
    assert subject.cache.counters.evictions > 0


def test_released_means_forgotten(
    engine: MakeEngine, run: Run, ask: Ask, assert_all_free: AllFree
) -> None:
    subject = engine("qwen3", kv_tokens=16 * 16)
    run(subject, [ask("turn", PROMPT, session=A)])
    subject.retain(A, None)
    assert subject.cache.available < subject.cache.capacity

    subject.release(A)

    assert_all_free(subject)
    press(subject, run, ask)
    assert cached(subject, run, ask, PROMPT) == 0


def test_retain_before_the_call_ends_covers_what_it_adds(
    engine: MakeEngine, run: Run, ask: Ask
) -> None:
    subject = engine("qwen3")
    subject.retain(A, None)

    run(subject, [ask("turn", PROMPT, session=A, max_tokens=16)])

    assert subject.load().kv_pinned_tokens == 64


def test_an_aborted_turn_takes_nothing_away(engine: MakeEngine, run: Run, ask: Ask) -> None:
    subject = engine("qwen3", max_running=1)
    run(subject, [ask("turn", PROMPT, session=A)])
    subject.retain(A, None)
    subject.submit(ask("neighbour", [5] * 20))
    subject.submit(ask("next turn", PROMPT + [6] * 40, session=A))
    subject.step()

    subject.abort("next turn")

    assert subject.load().kv_pinned_tokens == 48


def test_a_fork_shares_every_page(engine: MakeEngine, run: Run, ask: Ask) -> None:
    subject = engine("qwen3")
    run(subject, [ask("turn", PROMPT, session=A)])
    used = subject.load().kv_used_tokens

    subject.fork(A, B)
    subject.retain(B, None)
    subject.release(A)

    assert subject.load().kv_used_tokens == used
    assert subject.load().kv_pinned_tokens == 48
    branches = [ask(f"branch {i}", PROMPT + [i] * 10, session=SessionId(f"{i}")) for i in range(4)]
    run(subject, branches)
    assert subject.counters.cached_tokens == 4 * 48


def test_equal_prompts_at_once_are_computed_once(engine: MakeEngine, run: Run, ask: Ask) -> None:
    subject = engine("qwen3", chunk_tokens=20)

    run(subject, [ask(str(i), PROMPT) for i in range(8)])

    assert subject.counters.prefill_tokens == 48 + 8  # three pages, and each its last token
    assert subject.counters.cached_tokens == 7 * 48


def test_warm_computes_full_pages_and_draws_nothing(
    engine: MakeEngine, run: Run, ask: Ask, assert_all_free: AllFree
) -> None:
    subject = engine("qwen3")

    for call in ("warm", "warm again"):
        answer = run(subject, [ask(call, PROMPT, max_tokens=0, session=A)])[call]
        assert (answer.finish, answer.token_ids) == ("length", ())

    assert subject.counters.prefill_tokens == 48
    assert run(subject, [ask("tiny", [5], max_tokens=0)])["tiny"].finish == "length"
    assert cached(subject, run, ask, PROMPT) == 48
    assert_all_free(subject)


def test_pins_give_way_when_nothing_else_can_run(engine: MakeEngine, run: Run, ask: Ask) -> None:
    """A promise that would stop all work for good is broken, and counted."""
    subject = engine("qwen3", kv_tokens=16 * 8)
    for i in range(2):
        run(subject, [ask("turn", [i + 5] * 60, session=SessionId(f"{i}"), max_tokens=1)])
        subject.retain(SessionId(f"{i}"), None)

    answer = run(subject, [ask("large", [9] * 100, max_tokens=10)])["large"]

    assert answer.finish == "length"
    assert subject.load().counters["pins_broken"] == 2


def test_abort_gives_pages_back_in_every_state(
    engine: MakeEngine, ask: Ask, assert_all_free: AllFree
) -> None:
    subject = engine("qwen3", chunk_tokens=32, max_running=2)
    subject.submit(ask("decodes", PROMPT))
    for _ in range(4):
        subject.step()
    subject.submit(ask("prefills", [9] * 200))
    subject.submit(ask("waits", [10] * 200))
    subject.step()

    chunks = {call: subject.abort(call) for call in ("decodes", "prefills", "waits")}

    assert subject.abort("decodes") is None
    assert [output.chunk.finish for output in chunks.values() if output] == ["abort"] * 3
    assert len(chunks["decodes"].chunk.token_ids) == 4
    assert_all_free(subject)
    assert not subject.busy


def test_priority_goes_first(engine: MakeEngine, ask: Ask) -> None:
    subject, ended = engine("qwen3", max_running=1), list[str]()
    subject.submit(ask("late", PROMPT, priority=2.0))
    subject.submit(ask("second", PROMPT, priority=1.0, deadline_s=9.0))
    subject.submit(ask("first", PROMPT, priority=1.0, deadline_s=5.0))

    while subject.busy:
        ended += [call for call, chunk in subject.step() if chunk.finish]

    assert ended == ["first", "second", "late"]


def test_forgotten_sessions_do_not_pile_up(engine: MakeEngine, run: Run) -> None:
    subject = engine("qwen3")
    subject.retain(SessionId("kept"), None)
    for i in range(4200):
        request = Request(f"{i}", (5,), Sampling(max_tokens=0), session=SessionId(f"s{i}"))
        run(subject, [request])

    assert len(subject.sessions) <= 4097
    assert SessionId("kept") in subject.sessions
