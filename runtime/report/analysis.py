"""EXPLAIN ANALYZE: what each step took, beside what its plan had expected; a fold over a trace.

The critical path of a program is found backwards from its end: the step that ended last, then the
one that ended last before that began, and so on. Steps start as soon as what they read is there, so
no dependencies are needed. What lies between two steps is the runtime's own.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter

from ..scheduler import events
from ..trace import Record
from .tally import MAX_STEPS, OTHER, ReasonTally, StepTally, Tally, TallySnapshot

MOST_SPANS = 10_000  # of a program; the path of a bigger one is not looked for
Span = tuple[float, float, str]
"""From when to when a step of a program ran."""


@dataclass(frozen=True, slots=True)
class StepAnalysis:
    """One step: `rows` came to it; `shared` calls needed none of their own, by how.

    `promised_tokens` of the prompts were expected in the cache when the calls were made.
    `path_share`: of the critical paths.
    """

    step: str
    rows: int
    took: StepTally
    shared: Mapping[str, int]
    promised_tokens: int
    path_share: float
    expected: events.StepPlanned | None
    reasoning: ReasonTally | None = None

    @property
    def queued_s(self) -> float:
        """Seconds that calls waited, here and on their workers."""
        return self.took.waited_s + self.took.queue_s


@dataclass(frozen=True, slots=True)
class Analysis:
    """A run, or what there is of it. Steps are in the plan's order; others come behind.

    `between_share` of the critical paths lies between steps. `cascades`: what was learned last of a
    step that asks a smaller model first. `page_tokens`: what the workers' caches hold whole of.
    """

    tally: TallySnapshot
    steps: tuple[StepAnalysis, ...]
    between_share: float
    cascades: Mapping[str, str] = field(default_factory=dict[str, str])
    page_tokens: int = 1


@dataclass(slots=True)
class _Step:
    rows: int = 0
    shared: dict[str, int] = field(default_factory=dict[str, int])
    promised_tokens: int = 0
    path_s: float = 0.0
    reasoning: ReasonTally | None = None


@dataclass(slots=True)
class _Live:
    """A program that runs: since when, the steps it came to, when each ran."""

    since_s: float
    steps: set[str] = field(default_factory=set[str])
    spans: list[Span] = field(default_factory=list[Span])
    joined: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])


@dataclass(slots=True)
class Analyst(Tally):
    """The fold: a Tally that looks closer. Memory grows with the programs and calls in flight."""

    _planned: dict[str, events.StepPlanned] = field(default_factory=dict[str, events.StepPlanned])
    _closer: dict[str, _Step] = field(default_factory=dict[str, _Step])
    _programs: dict[str, _Live] = field(default_factory=dict[str, _Live])
    _ready: dict[str, float] = field(default_factory=dict[str, float])  # calls: since when
    _cascades: dict[str, str] = field(default_factory=dict[str, str])
    _path_s: float = 0.0  # of all programs that have ended
    _page_tokens: int = 1

    def write(self, at_s: float, record: Record) -> None:
        self.add(at_s, record)

    def add(self, at_s: float, record: Record) -> None:
        """Count `record`."""
        Tally.add(self, at_s, record)
        match record:
            case events.CallReady():
                self._come(record.program, record.step)
                self._look(record.step).promised_tokens += record.shared_tokens
                self._ready[record.call] = at_s
            case events.CallEnded():
                self._end(at_s, record)
            case events.CallShared():
                self._join(at_s, record)
            case events.ToolEnded():
                self._come(record.program, record.step)
                self._span(record.program, at_s - record.seconds, at_s, record.step)
            case events.Reasoned():
                self._thinking(record.step).add(record)
            case events.Drifted():
                self._thinking(record.step).drift(record)
            case events.StartProgram():
                self._programs[record.program] = _Live(at_s)
            case events.ProgramEnded():
                self._over(at_s, record)
            case events.CascadeLearned():
                self._cascades[record.step] = record.message
            case events.StepPlanned():
                self._planned[record.step] = record
            case events.WorkerUp():
                self._page_tokens = max(self._page_tokens, record.page_tokens)
            case events.RunStarted():
                self._programs.clear()
                self._ready.clear()
            case _:
                pass

    def analysis(self) -> Analysis:
        """What is known by now."""
        tally = self.snapshot()
        names = dict.fromkeys((*self._planned, *self._closer, *tally.steps))
        whole_s = self._path_s or 1.0
        steps = tuple(self._analysed(name, tally, whole_s) for name in names)
        between = 1.0 - sum(step.path_share for step in steps) if self._path_s else 0.0
        between = max(0.0, between)
        return Analysis(tally, steps, between, dict(self._cascades), self._page_tokens)

    def _analysed(self, name: str, tally: TallySnapshot, whole_s: float) -> StepAnalysis:
        seen = self._closer.get(name) or _Step()
        return StepAnalysis(
            name,
            seen.rows,
            tally.steps.get(name) or StepTally(),
            dict(seen.shared),
            seen.promised_tokens,
            seen.path_s / whole_s,
            self._planned.get(name),
            seen.reasoning and seen.reasoning.copy(),
        )

    # ---- records --------------------------------------------------------------------------------

    def _look(self, step: str) -> _Step:
        if step not in self._closer and len(self._closer) >= MAX_STEPS:
            step = OTHER
        return self._closer.setdefault(step, _Step())

    def _thinking(self, step: str) -> ReasonTally:
        seen = self._look(step)
        seen.reasoning = seen.reasoning or ReasonTally()
        return seen.reasoning

    def _come(self, program: str, step: str) -> None:
        """A program has come to a step."""
        live = self._programs.get(program)
        if live is not None and step not in live.steps:
            live.steps.add(step)
            self._look(step).rows += 1

    def _span(self, program: str, since_s: float, until_s: float, step: str) -> None:
        live = self._programs.get(program)
        if live is not None:
            live.spans.append((since_s, until_s, step))

    def _end(self, at_s: float, record: events.CallEnded) -> None:
        ready_s = self._ready.pop(record.call, at_s)
        self._span(record.program, ready_s, at_s, record.step)

    def _join(self, at_s: float, record: events.CallShared) -> None:
        self._come(record.program, record.step)
        shared = self._look(record.step).shared
        shared[record.how] = shared.get(record.how, 0) + 1
        live = self._programs.get(record.program)
        if live is not None and record.how == "joined":
            live.joined.append((at_s, record.step))

    def _over(self, at_s: float, record: events.ProgramEnded) -> None:
        live = self._programs.pop(record.program, None)
        if live is None or record.stopped or len(live.spans) > MOST_SPANS:
            return
        self._path_s += at_s - live.since_s
        for step, seconds in critical_path(_spans(live, at_s), live.since_s, at_s).items():
            self._look(step).path_s += seconds


def _spans(live: _Live, end_s: float) -> list[Span]:
    """When steps ran; who joined equal work waited until the next step of the program began."""
    starts = sorted(since_s for since_s, _, _ in live.spans)
    found = list(live.spans)
    for since_s, step in live.joined:
        after = bisect_right(starts, since_s)
        found.append((since_s, starts[after] if after < len(starts) else end_s, step))
    return found


def critical_path(spans: list[Span], since_s: float, until_s: float) -> dict[str, float]:
    """Seconds of each step on the way that determined when a program ended."""
    found: dict[str, float] = {}
    at_s = until_s
    for start_s, end_s, step in sorted(spans, key=itemgetter(1), reverse=True):
        if end_s > at_s or at_s <= since_s:
            continue
        start_s = max(start_s, since_s)
        found[step] = found.get(step, 0.0) + end_s - start_s
        at_s = start_s
    return found
