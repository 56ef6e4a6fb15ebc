"""A running tally of a trace: rows, calls, tokens and seconds, in memory that does not grow.

The one fold behind progress lines, summaries and budgets. It works record by record, so it can
be fed live (as a Trace) or from a file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..scheduler import events
from ..trace import Record

MAX_STEPS = 500  # steps told apart; the rest go to OTHER
MAX_ERRORS = 20  # kinds of errors told apart; the rest go to OTHER
MAX_RULES = 20  # stop rules told, and their drifts
OTHER = "(other)"

_KIND = re.compile(r"[A-Za-z_][\w.]*(?=:)")
_URL = re.compile(r"https?://\S*: ")


@dataclass(frozen=True, slots=True)
class StepTally:
    """What one step of the workflow has used so far, over all rows."""

    calls: int = 0
    failed: int = 0  # calls and tool calls
    shared: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    waited_s: float = 0.0  # in our own line, before they were sent to a worker
    queue_s: float = 0.0  # on their workers
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tool_calls: int = 0
    tool_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Time in calls and tools, summed over all that ran side by side; not that in our line."""
        return self.queue_s + self.prefill_s + self.decode_s + self.tool_s


@dataclass(frozen=True, slots=True)
class ErrorTally:
    """How often a kind of error ended a program or a call, and its first message."""

    count: int
    first: str


@dataclass(slots=True)
class ReasonTally:
    """What reasoning steps spent, and about what thinking to the end would have.

    `kept` and `lost`: shadow runs whose answer the stop rule would have kept, or not. `rules` are
    those in force, by step, and what they replace; `drifts` say why, and when this run found it.
    """

    steps: int = 0
    settled: int = 0
    thought_tokens: int = 0
    probe_tokens: int = 0
    full_tokens: int = 0
    kept: int = 0
    lost: int = 0
    scores: int = 0
    unscored: int = 0
    score_tokens: int = 0
    lent_tokens: int = 0
    again_tokens: int = 0
    rules: dict[str, str] = field(default_factory=dict[str, str])
    drifts: list[str] = field(default_factory=list[str])

    def add(self, record: events.Reasoned) -> None:
        """Count one step."""
        self.scores += record.scores
        self.unscored += record.unscored
        self.score_tokens += record.score_tokens
        self.lent_tokens += record.lent_tokens
        self.again_tokens += record.again_tokens
        if record.rule and (record.step in self.rules or len(self.rules) < MAX_RULES):
            left = f" (for {record.left_rule})" if record.left_rule else ""
            self.rules[record.step] = f"{record.rule}{left}"
        self.steps += 1
        self.settled += record.stopped == "settled"
        self.thought_tokens += record.thought_tokens
        self.probe_tokens += record.probe_tokens + record.probe_again_tokens
        self.full_tokens += record.full_tokens
        self.kept += record.shadow is True
        self.lost += record.shadow is False

    def drift(self, record: events.Drifted) -> None:
        """Note a rule that shadow runs have replaced."""
        if len(self.drifts) < MAX_RULES:
            self.drifts.append(
                f"{record.step}: {record.left} loses {record.loss:.1%} of {record.runs} shadow "
                f"runs, more than {record.allowed:.1%}: now {record.rule}"
            )

    @property
    def spent_tokens(self) -> int:
        """On thoughts and probes, what was computed again for them included."""
        return self.thought_tokens + self.probe_tokens + self.again_tokens

    def copy(self) -> "ReasonTally":
        """As it is now."""
        return replace(self, rules=dict(self.rules), drifts=list(self.drifts))


@dataclass(frozen=True, slots=True)
class TallySnapshot:
    """The tally at one moment. `total` sums all steps; times are on the run's clock."""

    run: str
    workflow: str
    rows_total: int | None
    rows_resumed: int  # finished before the last start of the run, well or not
    rows_done: int  # in this trace, since the last start
    rows_failed: int
    programs_live: int
    programs_waiting: int
    calls_running: int
    total: StepTally
    steps: Mapping[str, StepTally]
    shared: Mapping[str, int]  # calls of models and tools that were not made, by how
    saved_prompt_tokens: int
    saved_output_tokens: int
    errors: Mapping[str, ErrorTally]
    first_s: float
    last_s: float
    elapsed_s: float  # of all starts of the run together
    reasoning: ReasonTally = field(default_factory=ReasonTally)
    refused: int = 0  # tool calls that a model may not choose after what it had read
    tools_shared: Mapping[str, int] = field(default_factory=dict[str, int])  # calls of tools alone
    approvals: int = 0  # calls that somebody was asked to approve, since the last start
    early: int = 0  # tool calls that were started before their turn had ended
    wasted: int = 0  # of them, those that the turn did not end with
    unknown: int = 0  # calls that may have had their effect or not, since the last start
    resumed_failed: int = 0  # of `rows_resumed`
    broken: Mapping[str, int] = field(default_factory=dict[str, int])  # attempts without an answer
    last_broken: str = ""  # the kind of the last of them

    @property
    def rows_finished(self) -> int:
        """Rows that need no more work, failed ones included."""
        return self.rows_resumed + self.rows_done + self.rows_failed

    @property
    def failed_in_all(self) -> int:
        """Rows that failed, before the last start of the run too."""
        return self.resumed_failed + self.rows_failed

    @property
    def done_in_all(self) -> int:
        """Rows that have an answer."""
        return self.rows_finished - self.failed_in_all

    @property
    def broken_attempts(self) -> int:
        """Attempts without an answer, of all kinds."""
        return sum(self.broken.values())


@dataclass(slots=True)
class _Sums:
    """The counters of one step, while they grow; the fields of StepTally."""

    calls: int = 0
    failed: int = 0
    shared: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    waited_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tool_calls: int = 0
    tool_s: float = 0.0

    def add_call(self, call: events.CallEnded) -> None:
        self.calls += 1
        self.failed += call.finish == "error"
        self.prompt_tokens += call.prompt_tokens
        self.cached_tokens += call.cached_tokens
        self.output_tokens += call.output_tokens
        self.queue_s += call.queue_s
        self.prefill_s += call.prefill_s
        self.decode_s += call.decode_s

    def add_tool(self, tool: events.ToolEnded) -> None:
        self.tool_calls += 1
        self.failed += not tool.ok
        self.tool_s += tool.seconds

    def frozen(self) -> StepTally:
        return StepTally(**{name: getattr(self, name) for name in self.__slots__})


@dataclass(slots=True)
class Tally:
    """The fold. `add` takes each record in order (`write` is the same, so a Tally is a Trace)."""

    _run: str = ""
    _workflow: str = ""
    _rows_total: int | None = None
    _rows_resumed: int = 0
    _resumed_failed: int = 0
    _rows_done: int = 0
    _rows_failed: int = 0
    _waiting: set[str] = field(default_factory=set[str])  # programs; bounded by the run's window
    _live: set[str] = field(default_factory=set[str])
    _running: set[str] = field(default_factory=set[str])  # calls on a worker
    _in_line: dict[str, tuple[float, str]] = field(default_factory=dict[str, tuple[float, str]])
    """Calls that were not sent yet: since when, and their step."""
    _failed: dict[str, str] = field(default_factory=dict[str, str])
    """Programs that go on: what the last call of theirs that failed said."""
    _total: _Sums = field(default_factory=_Sums)
    _steps: dict[str, _Sums] = field(default_factory=dict[str, _Sums])
    _shared: dict[str, int] = field(default_factory=dict[str, int])
    _saved_prompt_tokens: int = 0
    _saved_output_tokens: int = 0
    _errors: dict[str, ErrorTally] = field(default_factory=dict[str, ErrorTally])
    _first_s: float | None = None  # since the last start
    _last_s: float = 0.0
    _earlier_s: float = 0.0  # elapsed before the last start
    _reasoning: ReasonTally = field(default_factory=ReasonTally)
    _refused: int = 0
    _tools_shared: dict[str, int] = field(default_factory=dict[str, int])
    _approvals: int = 0
    _early: int = 0
    _wasted: int = 0
    _unknown: int = 0
    _broken: dict[str, int] = field(default_factory=dict[str, int])
    _last_broken: str = ""

    def write(self, at_s: float, record: Record) -> None:
        self.add(at_s, record)

    def add(self, at_s: float, record: Record) -> None:
        """Count `record`; kinds that say nothing about work are passed over."""
        if isinstance(record, events.RunStarted):
            self._start(record)
        if self._first_s is None:
            self._first_s = at_s
        self._last_s = at_s
        match record:
            case events.CallEnded():
                self._end_call(record)
            case events.CallReady():
                self._in_line[record.call] = (at_s, record.step)
            case events.Dispatch():
                self._send(at_s, record.call)
            case events.CallBroke():
                self._break(record)
            case events.DropCall():
                self._in_line.pop(record.call, None)
            case events.CallShared():
                self._share(record)
            case events.ToolEnded():
                self._total.add_tool(record)
                self._step(record.step).add_tool(record)
            case events.ProgramArrived():
                self._waiting.add(record.program)
            case events.StartProgram():
                self._waiting.discard(record.program)
                self._live.add(record.program)
            case events.ProgramEnded():
                self._end_program(record)
            case events.Reasoned():
                self._reasoning.add(record)
            case events.Drifted():
                self._reasoning.drift(record)
            case events.ToolRefused():
                self._refused += 1
            case events.ApprovalAsked():
                self._approvals += 1
            case events.EffectUnknown():
                self._unknown += 1
            case events.Speculated():
                self._early += 1
                self._wasted += not record.used
            case _:
                pass

    def _start(self, record: events.RunStarted) -> None:
        if self._first_s is not None:
            self._earlier_s += self._last_s - self._first_s
        self._first_s = None
        self._run, self._workflow = record.run, record.workflow
        self._rows_total, self._rows_resumed = record.rows, record.resumed_rows
        self._resumed_failed = record.resumed_failed
        self._rows_done = self._rows_failed = self._approvals = self._unknown = 0
        for names in (self._waiting, self._live, self._running, self._in_line, self._failed):
            names.clear()

    def _send(self, at_s: float, call: str) -> None:
        self._running.add(call)
        if (since := self._in_line.pop(call, None)) is not None:
            self._total.waited_s += at_s - since[0]
            self._step(since[1]).waited_s += at_s - since[0]

    def _break(self, record: events.CallBroke) -> None:
        self._running.discard(record.call)
        kind = broken_kind(record.error)
        if kind not in self._broken and len(self._broken) >= MAX_ERRORS:
            kind = OTHER
        self._broken[kind] = self._broken.get(kind, 0) + 1
        self._last_broken = kind

    def _end_call(self, record: events.CallEnded) -> None:
        self._running.discard(record.call)
        self._total.add_call(record)
        self._step(record.step).add_call(record)
        if record.finish == "error":
            self._add_error(record.error or "")
            self._failed[record.program] = record.error or ""

    def _share(self, record: events.CallShared) -> None:
        self._total.shared += 1
        self._step(record.step).shared += 1
        self._shared[record.how] = self._shared.get(record.how, 0) + 1
        if record.tool:
            self._tools_shared[record.how] = self._tools_shared.get(record.how, 0) + 1
        self._saved_prompt_tokens += record.prompt_tokens
        self._saved_output_tokens += record.output_tokens

    def _end_program(self, record: events.ProgramEnded) -> None:
        self._waiting.discard(record.program)
        self._live.discard(record.program)
        told = self._failed.pop(record.program, None)
        if record.stopped:
            return
        if record.ok:
            self._rows_done += 1
            return
        self._rows_failed += 1
        if not told or not (record.error or "").endswith(told):
            self._add_error(record.error or "")

    def _step(self, name: str) -> _Sums:
        if name not in self._steps and len(self._steps) >= MAX_STEPS:
            name = OTHER
        return self._steps.setdefault(name, _Sums())

    def _add_error(self, message: str) -> None:
        kind = error_kind(message)
        if kind not in self._errors and len(self._errors) >= MAX_ERRORS:
            kind = OTHER
        known = self._errors.get(kind) or ErrorTally(0, message[:500])
        self._errors[kind] = replace(known, count=known.count + 1)

    def snapshot(self) -> TallySnapshot:
        first_s = self._last_s if self._first_s is None else self._first_s
        return TallySnapshot(
            run=self._run,
            workflow=self._workflow,
            rows_total=self._rows_total,
            rows_resumed=self._rows_resumed,
            rows_done=self._rows_done,
            rows_failed=self._rows_failed,
            programs_live=len(self._live),
            programs_waiting=len(self._waiting),
            calls_running=len(self._running),
            total=self._total.frozen(),
            steps={name: sums.frozen() for name, sums in self._steps.items()},
            shared=dict(self._shared),
            saved_prompt_tokens=self._saved_prompt_tokens,
            saved_output_tokens=self._saved_output_tokens,
            errors=dict(self._errors),
            first_s=first_s,
            last_s=self._last_s,
            elapsed_s=self._earlier_s + self._last_s - first_s,
            reasoning=self._reasoning.copy(),
            refused=self._refused,
            tools_shared=dict(self._tools_shared),
            approvals=self._approvals,
            early=self._early,
            wasted=self._wasted,
            unknown=self._unknown,
            resumed_failed=self._resumed_failed,
            broken=dict(self._broken),
            last_broken=self._last_broken,
        )


def broken_kind(message: str) -> str:
    """What an attempt came to: what is said of the server in a word or two, as `status 429`."""
    said = _URL.sub("", message.split("\n", 1)[0], count=1)
    return re.split(r": | \(|; ", said, maxsplit=1)[0][:80] or "unknown"


def error_kind(message: str) -> str:
    """What a message is about: the class before its colon, or its text without what varies."""
    named = _KIND.match(message)
    if named is not None:
        return named.group()
    return re.sub(r"'[^']*'|\d+", "…", message.split("\n", 1)[0])[:80] or "unknown"
