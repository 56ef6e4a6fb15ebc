"""Runs for a single input that have a name: they go on where they stopped."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenter.runtime import llm, run_recorded, tool, workflow
from tenter.runtime.approvals import answer, questions
from tenter.runtime.backends import registry
from tenter.runtime.cli import main
from tenter.runtime.errors import (
    ApprovalWanted,
    Drained,
    InvalidInput,
    JournalError,
    OutcomeUnknown,
    RunMismatch,
    StepFailed,
    ToolFailed,
)
from tenter.runtime.jobs import Control, MapSpec, Outcome, map_table, resume, run_once
from tenter.runtime.journal.store import Store
from tenter.runtime.report.tally import Tally

from . import test_approvals
from .test_approvals import Mailer

done: list[str] = []
faults: list[Exception] = []
held: list[asyncio.Event] = []


@tool(effect="once")
async def pay(order: str) -> str:
    """Pay for an order, once."""
    done.append(f"pay {order}")
    return f"paid {order}"


@tool(effect="pure")
async def notify(text: str) -> str:
    """Tell the customer."""
    done.append(f"notify {text}")
    for event in held:  # the first tells that it has come here
        await event.wait() if event is held[-1] else event.set()
    if faults:
        raise faults[0]
    return text.upper()


name_of = llm("Name {{ order }}", model="names")


@workflow(models={"names": {"backend": "fake", "reply": "Ann"}})
async def refund(order: str) -> str:
    paid = await pay(order=order)
    told = await notify(text=paid)
    return f"{await name_of(order=order)}: {told}"


@pytest.fixture(autouse=True)
def fresh() -> None:
    for kept in (done, faults, held):
        kept.clear()


def options(folder: Path, run: str = "refund-7") -> dict[str, Any]:
    return {"run": run, "home": str(folder / "home")}


def test_a_run_that_is_done_is_not_run_again(tmp_path: Path):
    for _ in range(2):
        assert refund.run(options(tmp_path), order="7") == "Ann: PAID 7"
    assert done == ["pay 7", "notify paid 7"]
    info = Store(tmp_path / "home").info("refund-7")
    assert (info.status, info.rows_done, info.rows_failed) == ("done", 1, 0)
    assert refund.run(options(tmp_path, "refund-8"), order="8") == "Ann: PAID 8"


async def test_a_run_that_was_cut_off_goes_on(tmp_path: Path):
    held.extend((asyncio.Event(), asyncio.Event()))
    given = options(tmp_path)
    first = asyncio.create_task(refund.arun(given, order="7"))
    await held[0].wait()
    with pytest.raises(JournalError, match="process"):
        await refund.arun(given, order="7")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert Store(tmp_path / "home").info("refund-7").status == "paused"
    held.clear()
    assert await refund.arun(given, order="7") == "Ann: PAID 7"
    assert done == ["pay 7", "notify paid 7", "notify paid 7"]


def test_a_run_that_failed_is_tried_again_from_where_it_failed(tmp_path: Path):
    faults.append(ValueError("no such address"))
    with pytest.raises(ToolFailed, match="no such address"):
        refund.run(options(tmp_path), order="7")
    info = Store(tmp_path / "home").info("refund-7")
    assert (info.status, info.rows_failed) == ("failed", 1)
    faults.clear()
    assert refund.run(options(tmp_path), order="7") == "Ann: PAID 7"
    assert done.count("pay 7") == 1
    info = Store(tmp_path / "home").info("refund-7")
    assert (info.status, info.rows_done, info.rows_failed) == ("done", 1, 0)


def test_what_does_not_fit_the_run_is_refused(tmp_path: Path):
    refund.run(options(tmp_path), order="7")
    with pytest.raises(RunMismatch, match="the input"):
        refund.run(options(tmp_path), order="8")

    @workflow
    async def other(order: str) -> str:
        return order

    with pytest.raises(RunMismatch, match="the workflow"):
        other.run(options(tmp_path), order="7")
    with pytest.raises(InvalidInput, match="not the name of a run"):
        refund.run(options(tmp_path, "../x"), order="7")
    with pytest.raises(InvalidInput, match="a run for a single input: .* --run refund-7"):
        asyncio.run(resume("refund-7", str(tmp_path / "home"), Control(), Tally()))
    assert len(done) == 2


def test_the_name_of_a_run_over_a_table_is_refused(tmp_path: Path):
    (tmp_path / "in.csv").write_text("order\n7\n")
    paths = (str(tmp_path / name) for name in ("in.csv", "out.csv"))
    spec = MapSpec(f"{__name__}:refund", *paths, home=str(tmp_path / "home"))
    run = asyncio.run(map_table(spec, Control(), Tally())).run
    with pytest.raises(InvalidInput, match="a run over a table"):
        refund.run(options(tmp_path, run), order="7")
    refund.run(options(tmp_path, "zzz"), order="8")
    store = Store(tmp_path / "home")
    assert (store.find("last"), store.find("zz")) == (run, "zzz")


def test_a_call_that_waits_for_approval_is_made_when_it_is_approved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(registry.BACKENDS, "mailer", Mailer)
    test_approvals.sent.clear()
    home = str(tmp_path / "home")

    def go() -> Any:
        reference = f"{test_approvals.__name__}:letters"
        models = {"default": "mailer"}
        return asyncio.run(run_once(reference, {"to": "ann"}, models=models, home=home, run="a"))

    with pytest.raises(ApprovalWanted) as caught:
        go()
    assert caught.value.exit_code == 9
    store = Store(home)
    assert store.info("a").status == "paused"
    asyncio.run(answer(store, "a", questions(store, "a"), approve=True))
    assert go() == "sent to ann"
    assert test_approvals.sent == ["ann"]


async def test_a_journal_that_fails_ends_the_run_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tenter.runtime.journal.file import JournalFile

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JournalFile, "append", full)
    with pytest.raises(JournalError, match="No space left"):
        await run_recorded(refund.workflow, {"order": "7"}, "x", home=str(tmp_path / "home"))


KILLED = """
import os, signal, sys
from pathlib import Path
from tenter.runtime import tool, workflow

log = Path(sys.argv[1]) / "log"

@tool(effect="once")
async def pay(order: str) -> str:
    with log.open("a") as file:
        file.write("pay ")
    return order

@tool(effect="pure")
async def tell(order: str) -> str:
    with log.open("a") as file:
        file.write("tell ")
    if log.read_text().count("tell") < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return order

@workflow(models={"default": {"backend": "fake"}})
async def refund(order: str) -> str:
    return await tell(order=await pay(order=order))

print(refund.run({"run": "a", "home": sys.argv[1]}, order="7"))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_pays_once(tmp_path: Path):
    script = tmp_path / "flow.py"
    script.write_text(KILLED)
    ends = [
        subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        for _ in range(4)
    ]
    assert [end.returncode for end in ends] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert [end.stdout for end in ends[2:]] == ["7\n", "7\n"]
    assert (tmp_path / "log").read_text() == "pay tell tell tell "


# ---- what a review found ------------------------------------------------------------------------


@pytest.mark.parametrize("compacted", [False, True])
def test_a_result_that_is_recorded_is_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compacted: bool
):
    from tenter.runtime.journal.sqlite import SqliteJournal

    async def dies(*_: object) -> None:
        raise JournalError("the process died here")

    with monkeypatch.context() as patched:
        patched.setattr(SqliteJournal, "set_status", dies)
        with pytest.raises(JournalError):
            refund.run(options(tmp_path), order="7")
    store = Store(tmp_path / "home")
    assert (store.info("refund-7").status, store.info("refund-7").rows_done) == ("paused", 1)
    if compacted:
        store.compact("refund-7")
    assert refund.run(options(tmp_path), order="7") == "Ann: PAID 7"
    assert done == ["pay 7", "notify paid 7"]
    assert store.info("refund-7").status == "done"


async def test_a_run_that_is_to_drain_lets_its_tool_end(tmp_path: Path):
    held.extend((asyncio.Event(), asyncio.Event()))
    control = Control()
    given = options(tmp_path) | {"control": control}
    first = asyncio.create_task(refund.arun(given, order="7"))
    await held[0].wait()
    control.drain("signal")
    held[1].set()
    with pytest.raises(Drained):
        await first
    held.clear()
    assert await refund.arun(options(tmp_path), order="7") == "Ann: PAID 7"
    assert done == ["pay 7", "notify paid 7"]


def test_a_question_after_a_failure_can_be_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(registry.BACKENDS, "mailer", Mailer)
    test_approvals.sent.clear()
    home, reference = str(tmp_path / "home"), f"{test_approvals.__name__}:letters"
    models = {"default": "mailer"}

    def go() -> Any:
        return asyncio.run(run_once(reference, {"to": "ann"}, models=models, home=home, run="a"))

    def broken(*_: object, **__: object) -> None:
        raise StepFailed("a fault of the code")

    with monkeypatch.context() as patched:
        patched.setattr(Mailer, "orders", broken)
        with pytest.raises(StepFailed):
            go()
    store = Store(home)
    assert store.info("a").rows_failed == 1
    with pytest.raises(ApprovalWanted):
        go()
    asked = questions(store, "a")
    assert len(asked) == 1
    asyncio.run(answer(store, "a", asked, approve=True))
    assert go() == "sent to ann"


def test_a_name_can_be_used_though_its_journal_could_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tenter.runtime.journal.file import JournalFile

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(JournalFile, "_initialise", full)
        with pytest.raises(JournalError, match="No space"):
            refund.run(options(tmp_path), order="7")
    assert refund.run(options(tmp_path), order="7") == "Ann: PAID 7"


def test_the_order_of_keys_is_no_other_input(tmp_path: Path):
    @workflow
    async def sums(q: dict[str, int]) -> int:
        return sum(q.values())

    given = {"run": "sum", "home": str(tmp_path / "home"), "backends": {}, "results": None}
    assert sums.run(given, q={"a": 1, "b": 2}) == 3
    assert sums.run(given, q={"b": 2, "a": 1}) == 3
    for name in ("last", 7, "", "a/b"):
        with pytest.raises(InvalidInput, match="name of a run"):
            sums.run(given | {"run": name}, q={})


def test_the_command_line_says_that_it_can_be_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def run(order: str) -> tuple[int, str, str]:
        place = ["--run", "a", "--home", str(tmp_path / "home")]
        code = main(["run", f"{__name__}:refund", f"order={order}", *place])
        said = capsys.readouterr()
        return code, said.out, said.err

    faults.append(ValueError("no such address"))
    code, out, err = run("7")
    assert (code, out) == (1, "")
    assert "no such address" in err
    assert "a is recorded: the same command goes on with it" in err
    faults.clear()
    assert run("7")[:2] == (0, "Ann: PAID 7\n")
    code, _, err = run("8")
    assert code == 6
    assert "the same command" not in err


@tool(effect="once")
async def wire(order: str) -> str:
    """Wire money; it may break in the middle."""
    done.append(f"wire {order}")
    if faults:
        raise faults[0]
    return f"wired {order}"


@workflow(models={"default": {"backend": "fake"}})
async def transfer(order: str) -> str:
    return await wire(order=order)


@workflow(models={"default": {"backend": "fake"}})
def transfer_as_graph(order: str) -> str:
    return wire(order=order)


@pytest.mark.parametrize("flow", [transfer, transfer_as_graph], ids=["program", "graph"])
@pytest.mark.parametrize(
    ("approve", "result", "calls"),
    [(True, None, 2), (True, "by hand", 1), (False, None, 1)],
    ids=["had none", "had one", "not known"],
)
def test_the_author_says_what_came_of_a_call_that_broke_off(
    tmp_path: Path, flow: Any, approve: bool, result: str | None, calls: int
):
    faults.append(ConnectionError("lost"))
    store = Store(tmp_path / "home")
    for _ in range(2):
        with pytest.raises(ApprovalWanted, match="wire"):
            flow.run(options(tmp_path, "a"), order="7")
    faults.clear()
    (question,) = questions(store, "a")
    assert (question.tool, question.arguments, question.began) == ("wire", {"order": "7"}, True)
    given = (approve,) if result is None else (approve, result)
    asyncio.run(answer(store, "a", [question], *given))
    if approve:
        assert flow.run(options(tmp_path, "a"), order="7") == (result or "wired 7")
    else:
        for _ in range(2):
            with pytest.raises(OutcomeUnknown):
                flow.run(options(tmp_path, "a"), order="7")
    assert done == ["wire 7"] * calls


def two_that_broke_off(folder: Path, flow: str) -> tuple[MapSpec, Outcome]:
    """A run of two rows, the calls of which break off; they go on doing so."""
    (folder / "in.csv").write_text("order\n7\n8\n")
    paths = (str(folder / name) for name in ("in.csv", "out.jsonl"))
    spec = MapSpec(f"{__name__}:{flow}", *paths, home=str(folder / "home"))
    faults.append(ConnectionError("lost"))
    outcome = asyncio.run(map_table(spec, Control(), Tally()))
    assert (outcome.status, outcome.rows_failed) == ("done", 2)
    return spec, outcome


def test_a_row_whose_call_broke_off_is_retried_with_the_author_s_answer(tmp_path: Path):
    spec, outcome = two_that_broke_off(tmp_path, "transfer")
    faults.clear()
    store = Store(tmp_path / "home")

    def retried() -> list[str | None]:
        asyncio.run(resume("last", spec.home, Control(), Tally(), retry=True))
        return [json.loads(line)["answer"] for line in Path(spec.out).read_text().splitlines()]

    assert retried() == [None, None]
    seven, eight = questions(store, outcome.run)
    asyncio.run(answer(store, outcome.run, [seven], True))
    asyncio.run(answer(store, outcome.run, [eight], True, "by hand"))
    assert questions(store, outcome.run) == []
    assert retried() == ["wired 7", "by hand"]
    assert sorted(done) == ["wire 7", "wire 7", "wire 8"]


# ---- what a second review found -----------------------------------------------------------------


def test_a_question_that_no_journal_takes_fails_its_row_alone(tmp_path: Path):
    two_that_broke_off(tmp_path, "hidden")
    with pytest.raises(OutcomeUnknown):
        hidden.run(options(tmp_path, "a"), order="7")


@workflow(models={"default": {"backend": "fake"}})
async def hidden(order: str) -> str:
    return await wire(order=f"{order}\ud800")


@workflow(models={"default": {"backend": "fake"}})
async def stubborn(order: str) -> str:
    for _ in range(2):
        try:
            return await wire(order=order)
        except ToolFailed as error:
            failure = error
    raise failure


def test_an_author_that_tries_again_by_himself_is_asked_too(tmp_path: Path):
    faults.append(ConnectionError("lost"))
    with pytest.raises(ApprovalWanted, match="'wire'"):
        stubborn.run(options(tmp_path, "a"), order="7")
    faults.clear()
    store = Store(tmp_path / "home")
    (question,) = questions(store, "a")
    asyncio.run(answer(store, "a", [question], True))
    assert stubborn.run(options(tmp_path, "a"), order="7") == "wired 7"
    assert done == ["wire 7", "wire 7"]


lost: list[Exception] = []


async def looked_up(order: str) -> str:
    if lost:
        raise lost[0]
    return f"wired {order} before"


@tool(effect="once", outcome=looked_up)
async def wire_known(order: str) -> str:
    """Wire money; what came of it can be looked up."""
    done.append(f"wire {order}")
    raise ConnectionError("lost")


@workflow(models={"default": {"backend": "fake"}})
async def known(order: str) -> str:
    return await wire_known(order=order)


def test_what_came_of_a_call_is_looked_up_again_though_its_author_was_asked(tmp_path: Path):
    lost.append(TimeoutError("no answer"))
    for _ in range(2):
        with pytest.raises(ApprovalWanted, match="'wire_known'"):
            known.run(options(tmp_path, "a"), order="7")
    lost.clear()
    assert known.run(options(tmp_path, "a"), order="7") == "wired 7 before"
    assert done == ["wire 7"]
    assert questions(Store(tmp_path / "home"), "a") == []


DIED = """
import os, sys
from tenter.runtime.journal.file import JournalFile
tune = JournalFile._tune
def dies(self):
    tune(self)
    os._exit(9)
JournalFile._tune = dies
from tenter.runtime import workflow
@workflow(models={"default": {"backend": "fake"}})
async def flow(order: str) -> str:
    return order
flow.run({"run": "refund-7", "home": sys.argv[1]}, order="7")
"""


@pytest.mark.slow
def test_a_name_can_be_used_though_a_process_died_while_it_made_the_journal(tmp_path: Path):
    place = options(tmp_path)
    command = [sys.executable, "-c", DIED, place["home"]]
    assert subprocess.run(command, check=False).returncode == 9
    assert (Path(place["home"]) / "runs" / "refund-7" / "journal.db").stat().st_size > 0
    assert list(Store(place["home"]).list()) == []
    assert refund.run(place, order="7") == "Ann: PAID 7"
