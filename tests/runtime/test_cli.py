"""The command line from outside: what is printed where, and the exit codes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest

import tenter.runtime
from tenter.runtime.cli import main
from tenter.runtime.errors import JournalError
from tenter.runtime.journal.store import Store
from tenter.runtime.run.rows import RowRun

TWO = """\
version: 1
name: two
inputs: {text: string}
models:
  small: {backend: openai, url: "http://127.0.0.1:1/v1", model: a}
  large: {backend: openai, url: "http://127.0.0.1:2/v1", model: b}
scheduling: {limits: {models: {small: {max_running: 8}, large: {max_running: 2}}}}
steps:
  one: {llm: "a {{ text }}", model: small, max_tokens: 5}
  two: {llm: "b {{ one }}", model: large, max_tokens: 5}
output: "{{ two }}"
"""
ROUTE = """\
version: 1
name: route
inputs:
  text: string
steps:
  answer:
    llm: "Say something about {{ text }}."
output: "{{ answer }}"
"""
LIMITS = "{models: {defualt: {max_running: 2}}}"
TENANTS = "{tenants: {acme: {max_running: 2}}}"
BROKEN = """\
version: 1
name: broken
inputs:
  text: string
steps:
  answer:
    llm: "Say something about {{ txt }}."
    temprature: 0.5
output: "{{ answer }}"
"""


COUNT = """\
version: 1
name: count
inputs:
  n: { type: integer, default: 7 }
  text: string
steps:
  next: { value: "{{ n + 1 }}" }
output: { next: "{{ next }}", text: "{{ text }}" }
"""


class Project:
    """A folder with a workflow and a table, in which commands run."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capture = capture
        (folder / "route.yaml").write_text(ROUTE)
        (folder / "broken.yaml").write_text(BROKEN)
        self.table(6)

    def table(self, rows: int) -> None:
        lines = ["id,text", *(f"{number},row {number}" for number in range(rows))]
        (self.folder / "table.csv").write_text("\n".join(lines) + "\n")

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command in this process."""
        self._capture.readouterr()
        code = main(arguments)
        said = self._capture.readouterr()
        return code, said.out, said.err

    def map(self, *more: str, fake: str = "reply=fine") -> tuple[int, str, str]:
        given = ("--out", "out.csv", "--model", f"default=fake:{fake}", *more)
        return self.run("map", "route.yaml", "table.csv", *given)

    def rows(self, name: str = "out.csv") -> list[dict[str, str]]:
        with (self.folder / name).open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENTER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TENTER_DEBUG", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Project(tmp_path, capsys)


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# ---- what is said without running anything ------------------------------------------------------


def test_no_arguments_show_help_with_first_steps(project: Project) -> None:
    code, out, err = project.run()

    assert (code, err) == (0, "")
    assert "tenter map examples/triage.yaml examples/tickets.csv" in out
    for command in ("run", "map", "resume", "explain", "validate", "ls", "show", "doctor"):
        assert command in out


@pytest.mark.parametrize("command", ["run", "map", "resume", "explain", "validate", "graph"])
def test_help_of_a_command_has_an_example(command: str, project: Project) -> None:
    code, out, _ = project.run(command, "--help")

    assert code == 0
    assert f" tenter {command} " in out


@pytest.mark.parametrize("arguments", [["version"], ["--version"], ["-V"]], ids=str)
def test_version(arguments: list[str], project: Project) -> None:
    code, out, _ = project.run(*arguments)

    assert code == 0
    assert out.startswith("tenter 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mapp"], 'Did you mean "map"'),
        (["map", "route.yaml"], "TABLE"),
        (["map", "route.yaml", "table.csv"], "--out"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--limit", "many"], "--limit"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--nonsense"], "--nonsense"),
        (["map", "rout.yaml", "table.csv", "--out", "o.csv"], "did you mean 'route.yaml'"),
        (["map", "broken.yaml", "table.csv", "--out", "o.csv"], "broken.yaml:7"),
        (["map", "route.yaml", "absent.csv", "--out", "o.csv"], "absent.csv"),
        (["map", "table.csv", "route.yaml", "--out", "o.csv"], "table.csv is no workflow file"),
        (["map", "slash.yaml", "table.csv", "--out", "o.csv"], "feeds an input beer_name"),
        (
            [*("map", "route.yaml", "table.csv", "--out", "o.csv"), "--limits", LIMITS],
            "limits.models.defualt: the workflow uses no such model; it uses default",
        ),
        (
            [*("map", "route.yaml", "table.csv", "--out", "o.csv"), "--limits", TENANTS],
            "limits.tenants.acme: say with --tenant whose a row is",
        ),
        (["map", "route.yaml", "bare.csv", "--out", "o.csv"], "text"),
        (["map", "route.yaml", "empty.csv", "--out", "o.csv"], "empty.csv"),
        (["map", "route.yaml", "table.csv", "--out", "o.xyz"], ".xyz"),
        (["map", "route.yaml", "table.csv", "--out", "here.csv"], "--force"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--columns", "no"], "no"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--model", "x"], "name=backend"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--model", "default=fak"], "fak"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--model", "big=fake"], "big"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--limit", "0"], "at least 1"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--limit=-1"], "--limit -1"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--concurrency", "0"], "at least 1"),
        (["map", "route.yaml", "table.csv", "--out", "o.csv", "--max-errors=-1"], "at least 0"),
        (["map", "route.yaml", "latin.csv", "--out", "o.csv"], "line 2: it is not UTF-8"),
        (["explain", "route.yaml", "latin.csv"], "there is no row that can be read"),
        (["run", "count.yaml", "n=few"], "input 'n': 'few' is not of type integer"),
        (["run", "route.yaml", "txt=3"], "no input 'txt'"),
        (["run", "route.yaml", "text"], "name=value"),
        (["run", "route.yaml"], "text"),
        (["run", "nowhere:flow", "text=3"], "nowhere"),
        (["resume", "last"], "no runs"),
        (["show", "run_x"], "no runs"),
        (["validate"], "name at least one"),
    ],
    ids=lambda value: "-".join(value[:3]) if isinstance(value, list) else None,
)
def test_usage_and_invalid_input_are_one_line_and_exit_2(
    arguments: list[str], said: str, project: Project
) -> None:
    (project.folder / "here.csv").write_text("")
    (project.folder / "bare.csv").write_text("id\n1\n")
    (project.folder / "empty.csv").write_text("")
    (project.folder / "latin.csv").write_bytes(b"text\ncaf\xe9\n\xe9t\xe9\n")
    (project.folder / "count.yaml").write_text(COUNT)
    (project.folder / "slash.yaml").write_text(ROUTE.replace("text:", "beer/name:"))
    code, out, err = project.run(*arguments)

    assert code == 2, err
    assert out == ""
    assert said in err
    assert all(line.startswith("tenter: ") for line in err.splitlines())
    assert "Traceback" not in err
    assert not (project.folder / "o.csv").exists()
    assert not list((project.folder / "home").glob("runs/*")), "nothing was begun"


def test_limits_of_a_workflow_hold_where_one_backend_stands_in_for_its_models(
    project: Project,
) -> None:
    (project.folder / "two.yaml").write_text(TWO)
    fakes = ("--model", "small=fake", "--model", "large=fake")
    code, _, err = project.run("map", "two.yaml", "table.csv", "--out", "o.csv", *fakes)
    assert code == 0, err

    limits = ("--limits", "{models: {large: {max_running: 2}}}")
    code, _, err = project.run("map", "two.yaml", "table.csv", "--out", "p.csv", *fakes, *limits)
    assert code == 2
    assert "'large' is served by the workers of 'small'; limit that one" in err


def test_debug_shows_the_traceback(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENTER_DEBUG", "1")

    with pytest.raises(Exception, match="no runs"):
        project.run("show", "last")


def test_validate_lists_all_problems_of_all_files(project: Project) -> None:
    code, out, err = project.run("validate", "route.yaml", "broken.yaml", "absent.yaml")

    assert code == 2
    assert out == "route.yaml: ok, route(text): answer (llm)\n"
    assert "broken.yaml:7" in err
    assert "broken.yaml:8" in err
    assert "temprature" in err
    assert "absent.yaml" in err


def test_validate_as_json(project: Project) -> None:
    code, out, err = project.run("validate", "route.yaml", "broken.yaml", "--json")
    good, bad = records(out)

    assert (code, err) == (2, "")
    assert good["ok"] is True
    assert bad["ok"] is False
    assert {problem["line"] for problem in bad["problems"]} >= {7, 8}


def test_schema_is_json_schema(project: Project) -> None:
    code, out, _ = project.run("schema")

    assert code == 0
    assert "steps" in json.loads(out)["properties"]


def test_graph_is_mermaid(project: Project) -> None:
    code, out, _ = project.run("graph", "route.yaml")

    assert code == 0
    assert out.startswith("flowchart")
    assert "answer" in out


def test_explain_shows_the_plan_and_runs_nothing(project: Project) -> None:
    code, out, _ = project.run("explain", "route.yaml", "table.csv")

    assert code == 0
    assert "answer" in out
    assert not (project.folder / "home" / "runs").exists()
    code, verbose, _ = project.run("explain", "route.yaml", "table.csv", "--verbose")
    assert code == 0
    assert len(verbose) > len(out)


# ---- running ------------------------------------------------------------------------------------


def test_run_prints_the_result(project: Project) -> None:
    given = ("route.yaml", "text=tea", "--model", "default=fake:reply=fine")

    assert project.run("run", *given) == (0, "fine\n", "")
    code, out, _ = project.run("run", *given, "--json")
    assert code == 0
    assert records(out) == [{"type": "done", "status": "done", "result": "fine"}]


def test_run_reads_inputs_from_stdin(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"text": "tea"}'))
    code, out, _ = project.run("run", "route.yaml", "-", "--model", "default=fake:reply=fine")

    assert (code, out) == (0, "fine\n")


def test_map_answers_every_row_and_says_where(project: Project) -> None:
    code, out, err = project.map("--show", "1")

    assert code == 0
    assert [row["id"] for row in project.rows()] == list("012345")
    assert all("fine" in row.values() for row in project.rows())
    assert "row 0" in out
    assert "6 of 6 done, 0 failed" in err
    assert "the answers are in out.csv" in err


def test_map_with_limit_and_columns(project: Project) -> None:
    code, _, _ = project.map("--limit", "2", "--columns", "id")

    assert code == 0
    assert [row["id"] for row in project.rows()] == ["0", "1"]
    assert "text" not in project.rows()[0]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--order", "lifo", "fcfs, call-fcfs, least-attained"),
        ("--retention", "sometimes", "shadow-price"),
        ("--retention", "fixed:soon", "fixed:soon"),
    ],
)
def test_policies_are_chosen_by_name(project: Project, option: str, value: str, told: str) -> None:
    code, _, err = project.map(option, value)
    assert code == 2 and told in err
    assert project.map("--order", "least-attained", "--retention", "fixed:3")[0] == 0


def test_map_replaces_an_output_only_if_told(project: Project) -> None:
    assert project.map()[0] == 0
    assert project.map()[0] == 2
    assert project.map("--force")[0] == 0


def test_json_prints_records_only(project: Project) -> None:
    code, out, err = project.map("--json")
    found = records(out)

    assert (code, err) == (0, "")
    assert found[-1]["type"] == "done"
    assert found[-1]["exit_code"] == 0
    assert found[-1]["rows_done"] == 6
    assert found[-1]["summary"]["calls"]["made"] == 6
    assert {record["type"] for record in found} <= {"launch", "progress", "done"}
    assert found[0]["type"] in ("launch", "done")


def test_row_errors_exit_3_and_go_to_the_dead_letters(project: Project) -> None:
    flow = ROUTE.replace('{{ text }}."', '{{ text }}."\n    output: {word: string}')
    (project.folder / "route.yaml").write_text(flow)
    code, _, err = project.map()

    assert code == 3
    assert all(row["error"] for row in project.rows())
    assert "6 rows failed; they are in out.csv.errors.jsonl" in err
    assert (project.folder / "out.csv.errors.jsonl").exists()


def test_values_of_another_type_spoil_only_their_row(project: Project) -> None:
    (project.folder / "count.yaml").write_text(COUNT)
    given = [{"n": 1, "text": 5}, {"n": None, "text": "x"}, {"n": "4", "text": None}, {"n": [1]}]
    lines = "".join(json.dumps({"text": "y"} | row) + "\n" for row in given)
    (project.folder / "table.jsonl").write_text(lines)
    code, _, _ = project.run("map", "count.yaml", "table.jsonl", "--out", "out.jsonl")
    rows = records((project.folder / "out.jsonl").read_text())

    assert code == 3
    assert [row["next"] for row in rows] == [2, 8, None, None]
    assert [row["error"] for row in rows] == [
        None,
        None,
        "column 'text': null is not of type string; an input of {type: [string, \"null\"]} takes it",
        "column 'n': [1] is not of type integer",
    ]


def test_too_many_errors_exit_1(project: Project) -> None:
    flow = ROUTE.replace('{{ text }}."', '{{ text }}."\n    output: {word: string}')
    (project.folder / "route.yaml").write_text(flow)
    code, _, err = project.map("--max-errors", "2", "--concurrency", "1", "--show", "1")

    assert code == 1
    assert "given up" in err
    assert "out.csv" not in err, "there is no output to show"

    again = err.rsplit("tenter resume ", 1)[1].split()
    assert project.run("resume", again[0])[0] == 1, "what failed stays failed"
    code, _, err = project.run("resume", *again)
    assert code == 3, err
    assert len(project.rows()) == 6


def test_ls_and_show_tell_of_runs(project: Project) -> None:
    assert project.run("ls") == (0, f"no runs in {project.folder / 'home'} yet\n", "")
    project.map()
    code, out, _ = project.run("ls")
    assert code == 0
    assert "route" in out
    assert "done" in out
    code, out, _ = project.run("ls", "--json")
    (run,) = records(out)
    assert run["rows_done"] == 6
    code, out, _ = project.run("show", run["run"])
    assert code == 0
    assert "6 done, 0 failed" in out
    assert "table.csv" in out
    code, out, _ = project.run("show", "last", "--json")
    assert records(out)[0]["run"] == run["run"]
    assert records(out)[0]["report"]["calls"]["made"] == 6


def test_show_tells_what_became_of_a_row(project: Project) -> None:
    project.map()
    code, out, _ = project.run("show", "last", "--row", "4")
    assert code == 0
    assert "row 4 is done" in out and "sent to default/0" in out
    (row,) = records(project.run("show", "last", "--row", "4", "--json")[1])
    assert (row["type"], row["row"], row["status"], row["calls"]) == ("row", 4, "done", 1)
    code, _, err = project.run("show", "last", "--row", "6")
    assert code == 2 and "nothing of row 6; rows are counted from 0" in err


def test_a_run_that_ends_with_an_error_tells_how_to_go_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise JournalError("the disk is full")

    monkeypatch.setattr(RowRun, "run", full)
    code, _, err = project.map()
    assert code == 1
    assert "the disk is full" in err and "to go on: tenter resume run_" in err
    code, out, _ = project.map("--json")
    done = records(out)[-1]
    assert (code, done["type"], done["exit_code"], done["reason"]) == (1, "done", 1, "error")
    assert done["resume"].startswith(f"tenter resume {done['run']}")


def test_without_journal_nothing_is_kept(project: Project) -> None:
    code, _, _ = project.map("--no-journal")

    assert code == 0
    assert not (project.folder / "home").exists()


@pytest.mark.slow
def test_resume_of_a_changed_workflow_exits_6(project: Project) -> None:
    interrupted(project, signal.SIGINT)
    (project.folder / "route.yaml").write_text(ROUTE.replace("Say something", "Say a lot"))
    code, _, err = project.run("resume", "last")

    assert code == 6
    assert "the workflow" in err


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        ("route.yaml", 6, "the workflow"),
        ("table.csv", 6, "the input (its table"),
        ("journal.db", 1, "journal.db"),
        ("", 1, "is running already"),
    ],
    ids=["workflow", "table", "corrupt journal", "two at once"],
)
def test_a_resume_that_cannot_be_is_told_and_loses_nothing(
    project: Project, file: str, code: int, said: str
) -> None:
    assert project.map("--token-budget", "40", "--concurrency", "1")[0] == 4
    (journal,) = (project.folder / "home" / "runs").glob("*/journal.db")
    path = journal if file == "journal.db" else project.folder / file
    with _in_the_way(path, Store(project.folder / "home")):
        refused, _, err = project.run("resume", "last")
    assert (refused, said in err) == (code, True), err
    assert project.run("resume", "last", "--json")[0] in (0, 4)
    while not (project.folder / "out.csv").exists():
        assert project.run("resume", "last")[0] in (0, 4)
    assert [row["id"] for row in project.rows()] == [f"{number}" for number in range(6)]


@contextmanager
def _in_the_way(path: Path, store: Store) -> Iterator[None]:
    """Another text of a file, or, of a folder, somebody who runs its last run."""
    if path.is_dir():
        with anyio.from_thread.start_blocking_portal() as portal:
            _, journal = portal.call(store.open, store.find("last"))
            try:
                yield
            finally:
                portal.call(journal.close)
        return
    before = path.read_bytes()
    damaged = before[:100] + b"x" * 300 + before[400:]
    edited = before.replace(b"row 5", b"row 50").replace(b"Say something", b"Say a lot")
    path.write_bytes(damaged if path.suffix == ".db" else edited)
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.mark.slow
def test_a_finished_run_whose_output_is_gone_is_written_again_from_elsewhere(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(tenter.runtime.__file__).parent / "models" / "tiny"
    shutil.copytree(model, project.folder / "small")
    given = ("--out", "out.csv", "--limit", "2", "--model", "default=embedded:path=small")
    project.run("map", "route.yaml", "table.csv", *given)
    before = (project.folder / "out.csv").read_text()
    (project.folder / "out.csv").unlink()
    monkeypatch.chdir(project.folder / "small")
    code, _, err = project.run("resume", "last")

    assert code == 0, err
    assert (project.folder / "out.csv").read_text() == before


# ---- signals ------------------------------------------------------------------------------------


def lines_until(process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Read stdout until a record is as wanted."""
    assert process.stdout is not None
    for line in process.stdout:
        if wanted(json.loads(line)):
            return
    raise AssertionError("the process ended before")


def interrupted(
    project: Project, *signals: signal.Signals, latency_s: float = 0.05
) -> tuple[int, list[dict[str, Any]]]:
    """Map a long table in a process, send `signals` once some rows are done; code, last records."""
    project.table(2000)
    model = f"default=fake:reply=fine,latency_s={latency_s}"
    arguments = ["map", "route.yaml", "table.csv", "--out", "out.csv", "--concurrency", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tenter.runtime", *arguments, "--json", "--model", model],
        cwd=project.folder,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        enough = 4 if latency_s < 1 else 0
        lines_until(process, lambda r: r["type"] == "progress" and r["rows_done"] >= enough)
        for number in signals:
            process.send_signal(number)
            process.stderr.readline()  # it has been heard
        rest = [json.loads(line) for line in process.stdout]
        return process.wait(), rest
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_a_signal_drains_and_leaves_a_run_to_resume(
    number: signal.Signals, code: int, project: Project
) -> None:
    returned, said = interrupted(project, number)
    done = said[-1]

    assert returned == code
    assert done["status"] == "paused"
    assert done["exit_code"] == code
    assert 0 < done["rows_done"] < 2000
    assert done["resume"] == f"tenter resume {done['run']}"
    assert not (project.folder / "out.csv").exists(), "a part is not an output"


@pytest.mark.slow
def test_a_second_signal_stops_at_once(project: Project) -> None:
    returned, said = interrupted(project, signal.SIGINT, signal.SIGINT, latency_s=3600)

    assert returned == 130
    assert said[-1]["status"] == "paused"


@pytest.mark.slow
def test_resume_does_the_rest_and_repeats_nothing(project: Project) -> None:
    _, said = interrupted(project, signal.SIGINT, latency_s=0.005)
    before = said[-1]["rows_done"]
    code, out, _ = project.run("resume", "last", "--json")
    done = records(out)[-1]

    assert code == 0
    assert done["summary"]["rows"]["resumed"] == before
    assert done["summary"]["calls"]["made"] == 2000 - before
    assert [row["id"] for row in project.rows()] == [str(number) for number in range(2000)]


@pytest.fixture(autouse=True)
def _same_signals() -> Iterator[None]:
    """A command in this process gives the signals back."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
