"""The fold over a run's events, and what it says of the next call, program and tool."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.predict import Hints, Learned, Remaining, replayed, token_classes
from tenter.runtime.predict.asked import CLASSES, SEEN
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    CallShared,
    Dispatch,
    ProgramArrived,
    ProgramEnded,
    ToolEnded,
)
from tenter.runtime.trace import Record


def program(
    name: str,
    lengths: list[int],
    workflow: str = "flow",
    step: str = "turn",
    prompt: int = 100,
    ends: bool = True,
) -> list[Record]:
    """A program whose calls follow each other, each with 60 tokens of its prompt to compute."""
    heard: list[Record] = [ProgramArrived(program=name, row=0, workflow=workflow)]
    for at, length in enumerate(lengths):
        heard.append(ready(name, at, step, prompt))
        heard.append(Dispatch(call=f"{name}/{at}", worker="m/0", priority=0.0))
        heard.append(ended(name, at, length, step, prompt))
    if ends:
        heard.append(ProgramEnded(program=name, row=0, ok=True))
    return heard


def ready(name: str, at: int, step: str = "turn", prompt: int = 100) -> CallReady:
    return CallReady(
        call=f"{name}/{at}",
        program=name,
        step=step,
        model="m",
        prompt_tokens=prompt,
        max_tokens=1_000,
    )


def ended(name: str, at: int, length: int, step: str = "turn", prompt: int = 100) -> CallEnded:
    return CallEnded(
        call=f"{name}/{at}",
        program=name,
        step=step,
        finish="stop",
        prompt_tokens=prompt,
        cached_tokens=prompt - 60,
        output_tokens=length,
    )


def taught(*programs: list[Record]) -> Learned:
    learned = Learned()
    for heard in programs:
        for event in heard:
            learned.observe(event)
    return learned


def many(count: int = 40) -> list[list[Record]]:
    """Programs of 2, 4, 6 and 8 calls, whose answers have 10 tokens each."""
    return [program(f"p{at}", [10] * (2 + 2 * (at % 4))) for at in range(count)]


def test_nothing_is_known_at_first() -> None:
    learned = taught(program("p", [], ends=False))

    assert learned.ask("p/0", "p", "turn", 10, 100) == Hints(None, None)
    assert learned.remaining("p") == Remaining(None, None, None)
    assert learned.tool_s_left("shell", 0.9) is None
    assert learned.expected_work_tokens("flow") is None
    assert learned.ask("q/0", "q", "turn", 10, 100) == Hints(), "of an unknown program"


def test_what_is_left_of_a_program_falls_as_it_goes_on() -> None:
    learned = taught(*many(), program("p", [10] * 4, ends=False))

    # of those that go on after four calls, half make 6 and half 8
    left = learned.remaining("p")
    assert left.calls == pytest.approx(3.0, abs=0.3)
    assert left.output_tokens == pytest.approx(30.0, abs=4)
    assert left.work_tokens == pytest.approx(3 * (60 + 8 * 10), rel=0.15)
    assert learned.expected_work_tokens("flow") == pytest.approx(5 * 140, rel=0.1)


def test_programs_that_have_outlasted_all_are_unknown() -> None:
    learned = taught(*many(), program("p", [10] * 9, ends=False))

    assert learned.left("p", "calls", 0.9) is None
    assert learned.remaining("p").calls is None


def test_hints_are_of_the_call_and_of_its_program() -> None:
    learned = taught(*many(), program("p", [10] * 4, ends=False))

    hints = learned.ask("p/4", "p", "turn", 100, max_tokens=1_000)
    assert hints.expected_tokens == pytest.approx(10.0)
    assert hints.remaining_tokens == learned.remaining("p").work_tokens
    assert learned.ask("p/5", "p", "turn", 100, max_tokens=4).expected_tokens == 4.0


def test_an_answer_that_has_come_far_goes_further() -> None:
    lengths = [[20 * (1 + at % 10)] for at in range(400)]
    learned = taught(*(program(f"p{at}", one) for at, one in enumerate(lengths)))
    for event in (*program("p", [], ends=False), ready("p", 0)):
        learned.observe(event)

    assert learned.output_tokens_left("p", "p/0", 0.5) == pytest.approx(100, abs=21)
    assert learned.output_tokens_left("p", "p/0", 0.5, so_far=160) == pytest.approx(20, abs=21)
    assert learned.output_tokens_left("p", "p/0", 0.5, so_far=200) is None
    assert learned.output_tokens_left("p", "p/9", 0.5) is None, "no such call"


def test_steps_and_workflows_are_told_apart() -> None:
    long = [program(f"a{at}", [500], step="write") for at in range(50)]
    short = [program(f"b{at}", [5], step="pick") for at in range(50)]
    other = [program(f"c{at}", [50], workflow="other", step="pick") for at in range(50)]
    learned = taught(*long, *short, *other, program("p", [], ends=False))

    found = [learned.ask("p/0", "p", step, 10, 1_000).expected_tokens for step in ("write", "pick")]
    assert found[0] is not None and found[0] > 400
    assert found[1] is not None and found[1] < 50


def test_tools_are_told_by_their_first_word() -> None:
    learned = Learned()
    for seconds in (1.0, 1.2, 30.0, 34.0) * 20:
        word = "ls" if seconds < 2 else "make"
        learned.observe(
            ToolEnded(program="p", step="t", tool="sh", seconds=seconds, ok=True, word=word)
        )
    learned.observe(ToolEnded(program="p", step="t", tool="sh", seconds=900.0, ok=False, word="ls"))

    assert learned.tool_s_left("sh", 0.5, word="ls") == pytest.approx(1.2, abs=0.3)
    assert learned.tool_s_left("sh", 0.5, elapsed_s=5.0, word="ls") == pytest.approx(25.0, abs=5)
    assert learned.durations().count("sh make") == 40
    assert learned.durations().count() == 80, "a tool that failed teaches nothing"


@pytest.mark.parametrize(
    "end",
    [
        ProgramEnded(program="p", row=0, ok=False, error="it broke"),
        ProgramEnded(program="p", row=0, ok=True, stopped=True),
    ],
    ids=["failed", "stopped"],
)
def test_programs_that_did_not_come_to_an_end_teach_no_total(end: ProgramEnded) -> None:
    learned = taught([*program("p", [10, 10], ends=False), end])

    assert learned.expected_work_tokens("flow") is None
    assert learned.live == {}
    assert len(learned.known.rows) == 2, "but their answers had a length"


def test_a_resumed_program_is_not_taken_for_a_whole_one() -> None:
    heard = program("p", [10])
    heard.insert(1, CallShared(program="p", step="turn", how="journal"))

    assert taught(heard).expected_work_tokens("flow") is None


def test_failed_calls_have_no_length() -> None:
    learned = taught(program("p", [], ends=False))
    learned.observe(ready("p", 0))
    learned.observe(CallEnded(call="p/0", program="p", step="turn", finish="error", error="gone"))

    assert not learned.known.rows
    assert learned.output_tokens_left("p", "p/0", 0.5) is None, "it has ended"


def test_a_trace_teaches_as_a_run_does() -> None:
    live = taught(*many())
    read = replayed([(0.0, event) for heard in many() for event in heard], Learned())

    assert read.known.rows == live.known.rows
    assert read.expected_work_tokens("flow") == live.expected_work_tokens("flow")


def test_memory_is_bounded_by_what_is_live() -> None:
    learned = taught(*many(300), program("p", [10] * 3_000, ends=False))

    assert list(learned.live) == ["p"]
    assert len(learned.live["p"].marks) < 30
    assert not learned.live["p"].asked
    assert len(learned.known.rows) < 1_500 + 50, "of a long program some calls do"
    assert learned.known.rows.maxlen == 4_000


# ---- classes of prompt tokens -------------------------------------------------------------------


@given(tokens=st.lists(st.integers(0, 2**31)), skip=st.integers(0, 600))
def test_classes_count_the_last_tokens_behind_the_shared_ones(tokens: list[int], skip: int) -> None:
    counts = token_classes(tokens, skip)

    assert len(counts) == CLASSES
    assert sum(counts) == min(SEEN, max(0, len(tokens) - skip))


def test_one_token_many_times_is_counted_as_far_as_a_byte_goes() -> None:
    assert max(token_classes([7] * 1_000)) == 255


# ---- calibration --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_what_is_left_of_programs_is_covered_as_promised(share: float) -> None:
    """Programs with heavy tails, asked after their third call; each is learned once judged."""
    random, learned = Random(11), Learned()
    below = covered = asked = 0
    for at in range(700):
        calls = 4 + int(random.paretovariate(1.3))
        lengths = [1 + int(random.lognormvariate(4, 1)) for _ in range(min(calls, 60))]
        heard = program(f"p{at}", lengths)
        for event in heard[:10]:
            learned.observe(event)
        left = learned.left(f"p{at}", "output_tokens", share)
        if at >= 200 and left is not None:
            actual = sum(lengths[3:])
            asked, below, covered = asked + 1, below + (actual < left), covered + (actual <= left)
        for event in heard[10:]:
            learned.observe(event)

    assert asked > 450
    assert below / asked <= share + 0.05
    assert covered / asked >= share - 0.05
