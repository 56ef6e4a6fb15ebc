"""What became of one row: its part of a trace, told in order, with the seconds since it came."""

from dataclasses import dataclass, field
from typing import Any

from ..scheduler import events
from ..trace import Record
from .tally import StepTally, Tally


@dataclass(frozen=True, slots=True)
class Happened:
    """One thing that happened to a row, `at_s` seconds after it had come."""

    at_s: float
    step: str
    said: str


@dataclass(slots=True)
class RowStory:
    """The fold: `add` takes each record of a trace in order; what is of other rows is passed over."""

    row: int
    status: str = "unknown"  # waiting, running, stopped, done, failed
    error: str | None = None
    seconds: float = 0.0  # from its coming to the last that is known, in its last start
    happened: list[Happened] = field(default_factory=list[Happened])
    _program: str = ""
    _came_s: float = 0.0
    _calls: dict[str, str] = field(default_factory=dict[str, str])  # that are not over: step
    _tally: Tally = field(default_factory=Tally)

    @property
    def took(self) -> StepTally:
        """Calls, tokens and seconds of all its starts."""
        return self._tally.snapshot().total

    @property
    def broken(self) -> int:
        """Attempts without an answer."""
        return self._tally.snapshot().broken_attempts

    def add(self, at_s: float, record: Record) -> None:
        """Take the next record."""
        match record:
            case events.RunStarted():
                self._program = ""
                self._calls.clear()
            case events.ProgramArrived() if record.row == self.row:
                again = self.status != "unknown"
                self._program, self._came_s, self.status = record.program, at_s, "waiting"
                self._say(at_s, "", "comes again, after a new start" if again else "comes")
            case events.Dispatch() | events.CallBroke() | events.Abort() | events.DropCall():
                if record.call in self._calls:
                    self._tally.add(at_s, record)
                    self._of_call(at_s, record, self._calls[record.call])
            case _ if self._program and getattr(record, "program", None) == self._program:
                self._tally.add(at_s, record)
                self._of_program(at_s, record)
            case _:
                pass

    def _say(self, at_s: float, step: str, said: str) -> None:
        self.seconds = at_s - self._came_s
        self.happened.append(Happened(self.seconds, step, said))

    def _of_call(self, at_s: float, record: Record, step: str) -> None:
        match record:
            case events.Dispatch():
                self._say(at_s, step, f"sent to {record.worker}")
            case events.CallBroke():
                self._say(at_s, step, f"no answer from {record.worker}: {record.error}")
            case events.Abort():
                self._say(at_s, step, f"broken off: {record.reason}")
            case events.DropCall():
                del self._calls[record.call]
                self._say(at_s, step, f"given up: {record.reason}")
            case _:
                pass

    def _of_program(self, at_s: float, record: Record) -> None:
        match record:
            case events.StartProgram():
                self.status = "running"
                self._say(at_s, "", "begins")
            case events.CallReady():
                self._calls[record.call] = record.step
                most = f", at most {record.max_tokens:,} to write" if record.max_tokens else ""
                asked = f"asks {record.model}: {record.prompt_tokens:,} tokens{most}"
                self._say(at_s, record.step, asked)
            case events.CallEnded():
                self._calls.pop(record.call, None)
                self._say(at_s, record.step, record.error or f"{record.finish}: {_usage(record)}")
            case events.CallShared():
                self._say(at_s, record.step, f"answered by an equal call ({record.how})")
            case events.ToolStarted():
                self._say(at_s, record.step, f"tool {record.tool} starts")
            case events.ToolEnded():
                ended = "ends" if record.ok else f"fails: {record.error or 'it does not say why'}"
                self._say(at_s, record.step, f"tool {record.tool} {ended}")
            case events.ToolRefused():
                self._say(at_s, "", f"tool {record.tool} may not be chosen after what was read")
            case events.ApprovalAsked():
                self._say(at_s, "", f"waits for approval of tool {record.tool}")
            case events.ProgramEnded():
                self.status = "stopped" if record.stopped else "done" if record.ok else "failed"
                self.error = record.error
                self._say(at_s, "", self.status + (f": {self.error}" if self.error else ""))
            case _:
                pass


def _usage(call: events.CallEnded) -> str:
    cached = f" ({call.cached_tokens:,} cached)" if call.cached_tokens else ""
    return f"{call.prompt_tokens:,} tokens in{cached}, {call.output_tokens:,} out"


def row_text(story: RowStory) -> str:
    """For people."""
    took = story.took
    facts = (
        f"{took.calls:,} calls answered, {story.broken:,} attempts without an answer, "
        f"{took.tool_calls:,} tool calls; {took.prompt_tokens:,} tokens in "
        f"({took.cached_tokens:,} cached), {took.output_tokens:,} out; "
        f"{took.waited_s + took.queue_s:.2f} s in line, {took.prefill_s + took.decode_s:.2f} s "
        f"with models, {took.tool_s:.2f} s in tools"
    )
    width = max((len(each.step) for each in story.happened), default=0)
    lines = [f"{each.at_s:9.3f}  {each.step:<{width}}  {each.said}" for each in story.happened]
    return "\n".join([f"row {story.row} is {story.status}, {story.seconds:.2f} s", *lines, facts])


def row_record(story: RowStory) -> dict[str, Any]:
    """For programs."""
    took = story.took
    return {
        "type": "row",
        "row": story.row,
        "status": story.status,
        "error": story.error,
        "seconds": story.seconds,
        "calls": took.calls,
        "broken_attempts": story.broken,
        "tool_calls": took.tool_calls,
        "prompt_tokens": took.prompt_tokens,
        "cached_tokens": took.cached_tokens,
        "output_tokens": took.output_tokens,
        "queue_s": took.waited_s + took.queue_s,
        "model_s": took.prefill_s + took.decode_s,
        "tool_s": took.tool_s,
        "happened": [
            {"at_s": each.at_s, "step": each.step, "said": each.said} for each in story.happened
        ],
    }
