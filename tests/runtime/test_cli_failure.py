"""What is said of errors, and the exit codes that they have."""

import asyncio

import pytest

from tenter.runtime import errors
from tenter.runtime.cli_failure import explain_failure

PROBLEMS = [
    errors.Problem("no step 'a'", "x.yaml", 3, 5),
    errors.Problem("no step 'b'", "x.yaml", 4),
]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidTable("t.csv: no rows"), 2),
        (errors.BackendUnavailable("nobody answers"), 5),
        (errors.RunMismatch("the workflow changed"), 6),
        (errors.BudgetReached("spent"), 4),
        (errors.JournalError("disk full"), 1),
        (errors.StepFailed("no", "kind"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_is_one_line_and_has_its_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain_failure(error) == code
    assert capsys.readouterr().err == f"tenter: {error}\n"


def test_all_problems_of_a_workflow_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain_failure(errors.InvalidWorkflow(PROBLEMS)) == 2
    assert capsys.readouterr().err == (
        "tenter: x.yaml:3:5: no step 'a'\ntenter: x.yaml:4: no step 'b'\n"
    )


def test_an_error_inside_groups_is_found_beside_what_it_cancelled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner = ExceptionGroup("inner", [errors.BackendUnavailable("no\nserver"), ValueError("noise")])
    group = BaseExceptionGroup("outer", [asyncio.CancelledError(), inner])

    assert explain_failure(group) == 5
    assert capsys.readouterr().err == "tenter: no server\n"


def test_a_bug_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain_failure(ExceptionGroup("g", [KeyError("x"), KeyError("y")])) == 1
    assert capsys.readouterr().err == (
        "tenter: KeyError: 'x' (this is not your doing; TENTER_DEBUG=1 shows where)\n"
    )
