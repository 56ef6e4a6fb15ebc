"""What runs teach, and what it says of the next call: a fold over the events of the scheduler.

`Learned` is fed every record of a run; it is a Trace, so that a fanout does it. Predictions are
quantiles and means from history, conditional on progress (ALGORITHMS card 8), and for the length of
an answer those of a ranker, where it has shown on held-back calls that it does better.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from ...kvpolicy import Durations, key
from ..scheduler.events import (
    CallEnded,
    CallReady,
    CallShared,
    CascadeLearned,
    ProgramArrived,
    ProgramEnded,
    Repeated,
    ToolEnded,
)
from ..scheduler.placement import OUTPUT_WEIGHT
from ..trace import Record
from .asked import Asked, Hints, Remaining, Row, token_classes
from .books import books_of
from .fit import Report, fit
from .known import TOOLS, Judged, Kind, Known
from .progress import LARGEST, MARKS, Done, Progress
from .store import Fresh, Shelf

What = Literal["calls", "output_tokens", "work_tokens"]
STEPS = 1_000  # whose keys are remembered
EACH = (
    32  # calls of a program that are rows; then those at marks, so that rows are of many programs
)


class Learned:
    """What is known of a workflow; it grows with what is observed.

    Memory: what is known is bounded; beside it a few hundred bytes per live program and call.
    """

    def __init__(self, known: Known | None = None, shelf: Shelf | None = None) -> None:
        self.known = known or Known()
        self.live: dict[str, Progress] = {}
        self._shelf = shelf
        self._fresh = Fresh()
        self._serial = 0
        self._keys: dict[tuple[str, str], str] = {}
        self._takes: dict[type[Record], Callable[[Any], None]] = {
            ProgramArrived: self._arrived,
            ProgramEnded: self._ended,
            CallReady: self._ready,
            CallEnded: self._answered,
            CallShared: self._shared,
            ToolEnded: self._tool_ended,
            Repeated: self._repeated,
            CascadeLearned: self._cascaded,
        }

    # ---- between runs ---------------------------------------------------------------------------

    @classmethod
    def load(cls, home: Path | str, workflow: str, fingerprint: str) -> Self:
        """What earlier runs have left in `home` for this workflow on these models.

        `home` is a folder, or the URL of a Redis, for runners on several machines.
        `fingerprint` is of all that answers depend on: the workflow and its models. Where only
        another version of the workflow is known, its last amounts are a beginning. What cannot be
        read is left alone with a warning; this never raises for it.
        """
        shelf = Shelf(books_of(home), workflow, fingerprint)
        return cls(shelf.load(), shelf)

    def save(self) -> bool:
        """Add what was learned since the last save to what is kept; False where that failed.

        A failure is a warning in the log: nothing that a run should end for.
        """
        if self._shelf is None:
            return False
        saved = self._shelf.save(self._fresh, self.known)
        if saved:
            self._fresh = Fresh()
            self.known.shadows.fresh.clear()
        return saved

    def fit(self, seed: int) -> Report | None:
        """Learn to rank answers by length (`fit.fit`), once a run is over; takes a second or so."""
        report = fit(self.known, seed)
        self._fresh.fitted = self._fresh.fitted or report is not None
        return report

    # ---- learning -------------------------------------------------------------------------------

    def write(self, at_s: float, record: Record) -> None:
        """Observe a record of a trace."""
        self.observe(record)

    def observe(self, event: Record) -> None:
        """One more event of a run, in order; those that teach nothing are passed over."""
        take = self._takes.get(type(event))
        if take is not None:
            take(event)

    def _learn(self, kind: Kind, name: str, amount: float) -> None:
        self.known.predictors[kind].observe(name, amount)
        self._fresh.amounts[kind].append((name, amount))

    def _arrived(self, event: ProgramArrived) -> None:
        self._serial += 1
        self.live[event.program] = Progress(key(event.workflow), self._serial)

    def _ready(self, event: CallReady) -> None:
        program = self.live.get(event.program)
        if program is not None and event.call not in program.asked:
            asked = self._asked(
                program,
                event.step,
                event.prompt_tokens,
                event.max_tokens,
                event.shared_tokens,
                session=event.session is not None,
            )
            program.asked[event.call] = asked, self._judged(asked)

    def _answered(self, event: CallEnded) -> None:
        program = self.live.get(event.program)
        if program is None:
            return
        found = program.asked.pop(event.call, None)
        if found is None or event.finish not in ("stop", "length"):
            return
        asked, judged = found
        tokens = event.output_tokens
        self._learn("output_tokens", _length_key(asked, judged), tokens)
        if asked.calls < EACH or asked.calls in MARKS:
            row = Row(program.serial, tokens, asked)
            self.known.rows.append(row)
            self.known.rows_since_fit += 1
            self._fresh.rows.append(row)
        program.add(tokens, max(0, event.prompt_tokens - event.cached_tokens), OUTPUT_WEIGHT)

    def _shared(self, event: CallShared) -> None:
        """A step that an earlier run had done: what this one does is not the whole program."""
        program = self.live.get(event.program)
        if program is not None and event.how in ("journal", "result-cache"):
            program.whole = False

    def _tool_ended(self, event: ToolEnded) -> None:
        if event.ok and event.seconds >= 0:
            self._learn(TOOLS, key(event.tool, event.word), event.seconds)

    def _repeated(self, event: Repeated) -> None:
        self._learn("iterations", key(event.step), event.iterations)

    def _cascaded(self, event: CascadeLearned) -> None:
        self._learn("routed_percent", key(event.step), 100 * event.routed)

    def _ended(self, event: ProgramEnded) -> None:
        """A program that was stopped or has failed tells nothing of those that come to an end."""
        program = self.live.pop(event.program, None)
        if program is None or not program.whole or event.stopped or not event.ok:
            return
        self._learn("calls", program.workflow, program.done.calls)
        for mark in program.marks:
            if mark.calls == program.done.calls:
                break  # it is for programs that go on
            name = _mark_key(program.workflow, mark)
            left = program.done.output_tokens - mark.output_tokens
            self._learn("output_tokens_left", name, left)
            self._learn("work_tokens_left", name, program.done.work_tokens - mark.work_tokens)

    # ---- what to expect of a call ---------------------------------------------------------------

    def ask(
        self,
        call: str,
        program: str,
        step: str,
        prompt_tokens: int,
        max_tokens: int,
        *,
        shared_tokens: int = 0,
        token_ids: Sequence[int] = (),
        schema: bool = False,
        session: bool = False,
    ) -> Hints:
        """What this call is expected to take; to be asked before its CallReady is observed.

        More is told here of a call than by its event: `token_ids` (its prompt) and `schema`.
        """
        progress = self.live.get(program)
        if progress is None:
            return Hints()
        classes = token_classes(token_ids, shared_tokens)
        asked = self._asked(
            progress, step, prompt_tokens, max_tokens, shared_tokens, schema, session, classes
        )
        judged = self._judged(asked)
        progress.asked[call] = asked, judged
        return Hints(self._expected(asked, judged), self._mean(progress, "work_tokens"))

    def expected_output_tokens(self, program: str, call: str) -> float | None:
        """The mean length of the answer of a call that has not ended; None: nothing is known."""
        found = self._found(program, call)
        return None if found is None else self._expected(*found)

    def output_tokens_left(
        self, program: str, call: str, share: float, so_far: int = 0
    ) -> float | None:
        """How many tokens more an answer takes at most, in `share` of the cases, after `so_far`.

        None where nothing is known: nothing was seen, or nothing that came as far.
        """
        found = self._found(program, call)
        if found is None:
            return None
        name = _length_key(*found)
        left = self.known.predictors["output_tokens"].left(name, share, so_far)
        return None if left is None else min(left, max(0, found[0].max_tokens - so_far))

    def _found(self, program: str, call: str) -> tuple[Asked, Judged | None] | None:
        progress = self.live.get(program)
        return None if progress is None else progress.asked.get(call)

    def _expected(self, asked: Asked, judged: Judged | None) -> float | None:
        if judged is not None:
            return min(judged.expected_tokens, asked.max_tokens)
        predictor = self.known.predictors["output_tokens"]
        if not predictor.count():
            return None
        return min(asked.usual_tokens, asked.max_tokens)

    def _asked(
        self,
        program: Progress,
        step: str,
        prompt_tokens: int,
        max_tokens: int,
        shared_tokens: int,
        schema: bool = False,
        session: bool = False,
        classes: bytes = b"",
    ) -> Asked:
        name = self._key(program.workflow, step)
        usual = self.known.predictors["output_tokens"].mean_left(name)
        calls, output_tokens, _ = program.done
        return Asked(
            name,
            prompt_tokens,
            max(0, prompt_tokens - shared_tokens),
            max_tokens,
            calls,
            output_tokens,
            program.last_tokens,
            usual or 0.0,
            schema,
            session,
            classes,
        )

    def _key(self, workflow: str, step: str) -> str:
        name = self._keys.get((workflow, step))
        if name is None:
            if len(self._keys) == STEPS:
                self._keys.clear()
            name = self._keys[workflow, step] = key(f"{workflow}/{step}")
        return name

    def _judged(self, asked: Asked) -> Judged | None:
        return None if self.known.ranker is None else self.known.ranker.judge(asked)

    # ---- what to expect of a program ------------------------------------------------------------

    def remaining(self, program: str) -> Remaining:
        """The means of what is left of a live program, given that it goes on."""
        progress = self.live.get(program)
        if progress is None:
            return Remaining(None, None, None)
        whats: tuple[What, ...] = ("calls", "output_tokens", "work_tokens")
        return Remaining(*(self._mean(progress, what) for what in whats))

    def expected_work_tokens(self, workflow: str) -> float | None:
        """The mean work of a whole program of `workflow` (`ProgramArrived.expected_tokens`)."""
        return self._mean(Progress(key(workflow), 0), "work_tokens")

    def left(self, program: str, what: What, share: float) -> float | None:
        """How much more of `what` a live program takes at most, in `share` of the cases.

        None where nothing is known: nothing was seen, or nothing that came as far.
        """
        progress = self.live.get(program)
        if progress is None:
            return None
        kind, name, so_far = _place(progress, what)
        return self.known.predictors[kind].left(name, share, so_far)

    def _mean(self, progress: Progress, what: What) -> float | None:
        kind, name, so_far = _place(progress, what)
        return self.known.predictors[kind].mean_left(name, so_far)

    # ---- what to expect of a tool ---------------------------------------------------------------

    def tool_s_left(
        self, tool: str, share: float, elapsed_s: float = 0.0, word: str = ""
    ) -> float | None:
        """The seconds more that a tool takes at most, in `share` of the cases, after `elapsed_s`.

        None where nothing is known: nothing was seen, or nothing that took as long.
        """
        return self.known.predictors[TOOLS].left(key(tool, word), share, elapsed_s)

    # ---- what to expect of any --------------------------------------------------------------------

    def mean_output_tokens(self, workflow: str, step: str) -> float | None:
        """The mean length of a step's answers; None where none was seen."""
        return self._mean_of("output_tokens", self._key(key(workflow), step))

    def mean_iterations(self, step: str) -> float | None:
        """How often a loop's body runs, on average; None where none was seen."""
        return self._mean_of("iterations", key(step))

    def mean_routed(self, step: str) -> float | None:
        """The mean share of a cascade's rows that its small model answers; None: none was seen."""
        percent = self._mean_of("routed_percent", key(step))
        return None if percent is None else percent / 100

    def mean_tool_s(self, tool: str) -> float | None:
        """The mean seconds of a tool's calls; None where none was seen."""
        return self._mean_of(TOOLS, key(tool))

    def _mean_of(self, kind: Kind, name: str) -> float | None:
        predictor = self.known.predictors[kind]
        return predictor.mean_left(name) if predictor.count(name) else None

    def durations(self) -> Durations:
        """A copy of what is known of tools, for the retention of KV to begin with."""
        return Durations.restore(self.known.predictors[TOOLS].snapshot()["history"])


def replayed(records: Iterable[tuple[float, Record]], learned: Learned) -> Learned:
    """`learned`, when it has seen the records of a trace (`trace.read`) too."""
    for _, record in records:
        learned.observe(record)
    return learned


def _length_key(asked: Asked, judged: Judged | None) -> str:
    return f"{asked.step} {judged.word}" if judged is not None else asked.step


def _place(progress: Progress, what: What) -> tuple[Kind, str, float]:
    """Where to look for what is left, and what has been done since."""
    done, mark = progress.done, progress.mark
    match what:
        case "calls":
            return "calls", progress.workflow, done.calls
        case "output_tokens":
            name = _mark_key(progress.workflow, mark)
            return "output_tokens_left", name, done.output_tokens - mark.output_tokens
        case "work_tokens":
            name = _mark_key(progress.workflow, mark)
            return "work_tokens_left", name, done.work_tokens - mark.work_tokens


def _mark_key(workflow: str, mark: Done) -> str:
    return f"{workflow} {min(mark.calls, LARGEST)}"
