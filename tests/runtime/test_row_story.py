"""What `tenter show --row` tells of a row."""

from tenter.runtime.report.row import RowStory, row_record, row_text
from tenter.runtime.scheduler.events import (
    CallBroke,
    CallEnded,
    CallReady,
    CallShared,
    Dispatch,
    DropCall,
    ProgramArrived,
    ProgramEnded,
    RunStarted,
    StartProgram,
    ToolEnded,
    ToolStarted,
)
from tenter.runtime.trace import Record


def come(row: int) -> list[Record]:
    arrived = ProgramArrived(program=f"r{row}", row=row, workflow="triage")
    return [arrived, StartProgram(program=f"r{row}")]


def asks(row: int, step: str) -> CallReady:
    name = f"r{row}/{step}"
    return CallReady(
        call=name, program=f"r{row}", step=step, model="m", prompt_tokens=1200, max_tokens=50
    )


def sent(row: int, step: str, worker: str = "m/0") -> Dispatch:
    return Dispatch(call=f"r{row}/{step}", worker=worker, priority=0.0)


def broke(row: int, step: str, error: str) -> CallBroke:
    return CallBroke(call=f"r{row}/{step}", worker="m/0", error=error)


def answered(row: int, step: str, **usage: float) -> CallEnded:
    return CallEnded(call=f"r{row}/{step}", program=f"r{row}", step=step, finish="stop", **usage)  # type: ignore[arg-type]


def told(row: int, *records: Record) -> RowStory:
    """A record a second, from 100 s on."""
    story = RowStory(row)
    for at_s, record in enumerate(records, 100):
        story.add(float(at_s), record)
    return story


STARTED = RunStarted(version=1, run="run_1", workflow="triage", rows=9)


def test_a_row_that_was_slow_tells_where_its_time_went() -> None:
    story = told(
        3,
        STARTED,
        *come(2),
        *come(3),
        asks(2, "kind"),
        asks(3, "kind"),
        sent(2, "kind"),
        sent(3, "kind"),
        broke(3, "kind", "http://gpu1: status 503: busy"),
        broke(2, "kind", "of another row"),
        sent(3, "kind", "m/1"),
        answered(3, "kind", prompt_tokens=1000, cached_tokens=600, output_tokens=7, decode_s=0.5),
        ToolStarted(program="r3", step="look", tool="find"),
        ToolEnded(program="r3", step="look", tool="find", seconds=1.0, ok=False, error="no net"),
        CallShared(program="r3", step="reply", how="journal"),
        ProgramEnded(program="r3", row=3, ok=True),
    )
    assert [each.said for each in story.happened] == [
        "comes",
        "begins",
        "asks m: 1,200 tokens, at most 50 to write",
        "sent to m/0",
        "no answer from m/0: http://gpu1: status 503: busy",
        "sent to m/1",
        "stop: 1,000 tokens in (600 cached), 7 out",
        "tool find starts",
        "tool find fails: no net",
        "answered by an equal call (journal)",
        "done",
    ]
    found = row_record(story)
    assert (found["status"], found["calls"], found["broken_attempts"]) == ("done", 1, 1)
    assert (found["seconds"], found["queue_s"], found["model_s"]) == (13.0, 2.0, 0.5)
    assert "row 3 is done, 13.00 s" in row_text(story)


def test_a_row_that_failed_tells_why() -> None:
    story = told(
        0,
        STARTED,
        *come(0),
        asks(0, "kind"),
        sent(0, "kind"),
        broke(0, "kind", "status 500"),
        DropCall(call="r0/kind", reason="status 500"),
        ProgramEnded(program="r0", row=0, ok=False, error="step 'kind': status 500"),
    )
    assert story.happened[-2].said == "given up: status 500"
    assert (story.status, story.error) == ("failed", "step 'kind': status 500")


def test_a_row_that_came_twice_tells_both() -> None:
    again = (STARTED, *come(1), asks(1, "kind"))
    story = told(1, STARTED, *come(1), asks(1, "kind"), sent(1, "kind"), *again)
    assert "comes again, after a new start" in [each.said for each in story.happened]
    assert story.status == "running"


def test_of_a_row_that_has_not_come_nothing_is_told() -> None:
    assert told(7, STARTED, *come(1)).happened == []
