"""Every error that Tenter raises on purpose.

    TenterError
    ├── InvalidInput            the user's to mend; exit code 2
    │   ├── InvalidWorkflow     a list of problems, each with its place
    │   ├── InvalidTable        a table, a column, an encoding
    │   └── InvalidConfig
    ├── StepFailed              a step of one row; the others go on
    │   ├── CallFailed          the backend could not answer
    │   │   └── TryAgain        this time; another attempt may do
    │   ├── OutputInvalid       the answer does not fit the output model
    │   ├── ToolFailed
    │   │   └── OutcomeUnknown  of a tool with an effect, which is not repeated
    │   └── Drained             not started, since the run drains; no row's fault
    │       └── ApprovalWanted  somebody has to approve of a tool's call first
    ├── BackendUnavailable      nobody answers calls; exit code 5
    ├── RunMismatch             a resumed run whose plan differs; exit code 6
    ├── BudgetReached           exit code 4, resumable
    └── JournalError            the journal cannot be read or written

A message names what is wrong, where, and what would be right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class TenterError(Exception):
    """Base of all of Tenter's errors; `exit_code` is what the command line returns."""

    exit_code = 1


class InvalidInput(TenterError):
    """Something that the user wrote is wrong; nothing has run."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a workflow: where, what, and what would be right.

    `line` and `column` count from 1; 0 where there is no place.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        where = self.file
        if self.line:
            where += f":{self.line}"
            if self.column:
                where += f":{self.column}"
        return f"{where}: {self.message}" if where else self.message


class InvalidWorkflow(InvalidInput):
    """A workflow does not compile. `problems` has all that were found, in order of place."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InvalidTable(InvalidInput):
    """A table cannot be read, or lacks a column."""


class InvalidConfig(InvalidInput):
    """A setting is unknown or out of range."""


class StepFailed(TenterError):
    """A step of one program failed. `step` is its id."""

    def __init__(self, message: str, step: str = "") -> None:
        self.step = step
        super().__init__(f"step {step!r}: {message}" if step else message)


class CallFailed(StepFailed):
    """A backend could not answer a call."""


class TryAgain(CallFailed):
    """A backend could not answer a call this time: overloaded, or its answer was cut or garbled.

    `after_s` is how long the backend asked to be left alone; None: it did not say.
    """

    def __init__(self, message: str, after_s: float | None = None) -> None:
        self.after_s = after_s
        super().__init__(message)


class OutputInvalid(StepFailed):
    """An answer does not fit the step's output model. `output` is the model's text."""

    def __init__(self, message: str, step: str = "", output: str = "") -> None:
        self.output = output
        super().__init__(message, step)


class ToolFailed(StepFailed):
    """A tool raised, timed out, or was given bad arguments."""


class OutcomeUnknown(ToolFailed):
    """A call of a tool with effect `once` was cut off: nobody knows whether it had its effect.

    `path` is the place of that call in its program, `call` its tool and arguments, if known here.
    """

    def __init__(self, message: str, step: str, path: str) -> None:
        self.path = path
        self.call: tuple[str, Mapping[str, Any]] | None = None
        super().__init__(message, step)


class Drained(StepFailed):
    """A step was not started, since the run drains. It is no error of its row: it is done later."""


class ApprovalWanted(Drained):
    """A call of `tool` waits for somebody's approval, by the name `id`.

    The run can be resumed if it is `recorded`.
    """

    def __init__(self, tool: str, id: str, recorded: bool = True) -> None:
        if recorded:
            self.exit_code = 9
        self.tool = tool
        self.id = id
        cure = (
            f"waits for approval {id}: answer it with `tenter approve`, then go on with the run"
            if recorded
            else "needs approval, and this run is not recorded, so that it cannot wait for it: give "
            "it a name (tenter run --run NAME), or ask by approve=ask, a function of yours"
        )
        super().__init__(f"a call of {tool!r} {cure}")


class BackendUnavailable(TenterError):
    """No backend can answer calls."""

    exit_code = 5


class RunMismatch(TenterError):
    """A run cannot be resumed, since the workflow, the model or the input differ."""

    exit_code = 6


class BudgetReached(TenterError):
    """A run stopped at its budget; it can be resumed."""

    exit_code = 4


class JournalError(TenterError):
    """The journal cannot be read or written."""
