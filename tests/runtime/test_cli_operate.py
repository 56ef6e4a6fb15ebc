"""Runs steered from another terminal, stopped in every way, and resumed: processes and exit codes."""

import csv
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tenter.runtime.cli import main

# Rows from the fifth on wait at the gate, so that nothing here depends on how fast a machine is.
FLOW = '''
from pathlib import Path

import anyio
from tenter.runtime import llm, tool, workflow

say = llm("Say something about {{ text }}.")


@tool(effect="idempotent")
async def gate(text: str) -> str:
    """Let through."""
    while Path("gate").exists() and int(text.split()[1]) >= 4:
        await anyio.sleep(0.02)
    if Path("broken").exists() and text.endswith("5"):
        raise ValueError("not today")
    return text


@workflow
async def flow(text: str) -> str:
    return f"{await say(text=text)}: {await gate(text=text)}"
'''
ROWS = 20


class Project:
    """A folder with a workflow and a table, in which commands run."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self._capture = capture
        (folder / "flows.py").write_text(FLOW)
        rows = [f"{number},row {number}" for number in range(ROWS)]
        (folder / "table.csv").write_text("\n".join(["id,text", *rows]) + "\n")

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command in this process."""
        self._capture.readouterr()
        code = main(arguments)
        said = self._capture.readouterr()
        return code, said.out, said.err

    def arguments(self, *more: str, model: str = "reply=fine") -> list[str]:
        given = ["--out", "out.csv", "--concurrency", "2", "--model", f"default=fake:{model}"]
        return ["map", "flows.py:flow", "table.csv", *given, *more]

    def command(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "tenter.runtime", *more]

    @contextmanager
    def live(self, *before: str) -> Iterator[subprocess.Popen[str]]:
        """A run in a process of its own, whose first four rows are done and two wait."""
        self.gate.touch()
        command = [*before, *self.command(*self.arguments("--json"))]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=self.folder, **streams) as process:  # type: ignore[call-overload]
            try:
                told(process, 4)
                yield process
            finally:
                process.kill()

    def complete(self) -> bool:
        """Whether the output has every row, once, in order, and without an error."""
        with (self.folder / "out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        answers = [(row["id"], row["answer"], row["error"]) for row in rows]
        return answers == [(f"{row}", f"fine: row {row}", "") for row in range(ROWS)]


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENTER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TENTER_DEBUG", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Project(tmp_path, capsys)


def told(process: subprocess.Popen[str], rows: int) -> None:
    """Read progress until so many rows are done."""
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("rows_done") == rows:
            return
    assert process.stderr is not None
    raise AssertionError(f"it ended before: {process.stderr.read()}")


def last(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """The exit code and the last record of a process that ends."""
    assert process.stdout is not None
    records = [json.loads(line) for line in process.stdout]
    return process.wait(), records[-1]


# ---- from another terminal --------------------------------------------------------------------------


@pytest.mark.slow
def test_another_process_pauses_changes_watches_and_cancels(project: Project) -> None:
    with project.live() as process:
        code, out, err = project.run("pause", "last")
        assert (code, err) == (0, "") and "paused; " in out
        code, _, err = project.run(*project.arguments())
        assert code == 2 and "is writing out.csv; name another file, or tenter cancel run_" in err
        project.gate.unlink()
        told(process, 6)  # the two that had begun have ended, and no other begins
        assert "running (paused)" in project.run("ls")[1]
        (record,) = json_of(project.run("ls", "--json")[1])
        assert (record["status"], record["state"], record["rows_done"]) == ("running", "paused", 6)

        code, out, _ = project.run("set", "last", "--concurrency", "3", "--order", "fair", "--json")
        (answer,) = json_of(out)
        assert code == 0 and answer["ok"]
        assert answer["said"] == "concurrency 2 -> 3, order fcfs -> fair"
        assert project.run("set", "last", "--order", "lifo")[0] == 2

        watch = project.command("watch", "last", "--json")
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(watch, cwd=project.folder, **streams) as watcher:  # type: ignore[call-overload]
            assert watcher.stdout is not None
            assert json.loads(watcher.stdout.readline())["state"] == "paused"
            assert project.run("cancel", "last")[0] == 0
            code, done = last(process)
            assert (code, done["status"], done["reason"]) == (8, "paused", "asked")
            code, seen = last(watcher)
        assert (code, seen["type"], seen["status"], seen["rows_done"]) == (1, "done", "paused", 6)

    assert project.run("resume", "last")[0] == 0
    assert project.complete()
    shown = project.run("show", "last")[1]
    for said in ("pause: paused; ", "set: concurrency 2 -> 3, order fcfs -> fair", "cancel: "):
        assert said in shown
    assert f"(process {os.getpid()})" in shown


def json_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
def test_a_run_that_was_killed_hears_nothing_and_its_successor_not_what_was_said_to_it(
    project: Project,
) -> None:
    with project.live() as process:
        process.kill()
        process.wait()
        for command in (
            ["pause"],
            ["continue"],
            ["cancel", "--now"],
            ["set", "--concurrency", "3"],
        ):
            verb, *options = command
            code, _, err = project.run(verb, "last", *options)
            assert code == 2 and "is not running; to go on: tenter resume run_" in err
        code, _, err = project.run("watch", "last")
        assert code == 1 and "to go on: tenter resume" in err
    project.gate.unlink()
    assert project.run("resume", "last")[0] == 0
    assert project.complete()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pause", "last"], "there are no runs"),
        (["watch"], "there are no runs"),
        (["retry", "run_x"], "there are no runs"),
        (["set", "last"], "name what is to change, as in --concurrency 8"),
        (["set", "last", "--concurrency", "0"], "--concurrency 0: it must be at least 1"),
        (["set", "last", "--time-limit", "soon"], "write seconds, or 90s, 15m, 8h, 2d"),
        (["set", "last", "--retention", "x"], "there is no retention policy 'x'"),
        (["set", "last", "--limits", "{tenants: {a: {runs: 1}}}"], "there is no 'runs'; known:"),
        (["map", "f.yaml", "t.csv", "--out", "o.csv", "--token-budget", "0"], "must be at least 1"),
        (["map", "f.yaml", "t.csv", "--out", "o.csv", "--time-limit", "0s"], "more than 0 s"),
        (["continue"], "RUN"),
    ],
    ids=lambda value: "-".join(value[:4]) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_one_line_and_exit_2(
    project: Project, arguments: list[str], said: str
) -> None:
    code, out, err = project.run(*arguments)
    assert (code, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["watch", "pause", "continue", "cancel", "set", "retry"])
def test_help_has_an_example(project: Project, command: str) -> None:
    code, out, _ = project.run(command, "--help")
    assert code == 0 and f" tenter {command} last" in out


def test_a_finished_run_says_so(project: Project) -> None:
    assert project.run(*project.arguments())[0] == 0
    code, _, err = project.run("pause", "last")
    assert code == 2 and err.endswith("is done already\n")
    code, _, err = project.run("watch", "last")
    assert code == 0 and "is done: 20 rows done, 0 failed" in err
    code, _, err = project.run("retry", "last")
    assert code == 0 and "no row has failed" in err


# ---- retry ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_up", [False, True], ids=["done", "given up"])
def test_retry_runs_failed_rows_again_and_makes_the_output_right(
    project: Project, given_up: bool
) -> None:
    broken = project.folder / "broken"
    broken.touch()
    limit = ["--max-errors", "0"] if given_up else []
    assert project.run(*project.arguments(*limit))[0] == (1 if given_up else 3)
    assert project.run("watch", "last")[0] == (1 if given_up else 3)
    if not given_up:
        assert not project.complete() and (project.folder / "out.csv.errors.jsonl").exists()
        assert "`tenter retry run_" in project.run("pause", "last")[2]
        code, _, err = project.run("resume", "last")
        assert code == 3, "what failed stays failed"
        assert f"{ROWS - 2} of {ROWS} done, 2 failed" in err
        assert project.run("retry", "last")[0] == 3, "it fails again"

    broken.unlink()
    code, out, _ = project.run("retry", "last", "--json")
    done = json_of(out)[-1]
    assert (code, done["rows_done"], done["rows_failed"]) == (0, ROWS, 0)
    if not given_up:
        assert done["summary"]["calls"]["made"] == 0, "the step before the one that failed is kept"
    assert project.complete()
    assert not (project.folder / "out.csv.errors.jsonl").exists()
    assert project.run("resume", "last")[0] == 0


# ---- every way to stop ------------------------------------------------------------------------------


def test_a_token_budget_exits_4_and_each_resume_has_it_again(project: Project) -> None:
    """A row takes about 30 tokens, and two are in flight."""
    code, out, _ = project.run(*project.arguments("--token-budget", "150", "--json"))
    done = json_of(out)[-1]
    assert (code, done["status"], done["reason"]) == (4, "paused", "tokens")
    used = done["summary"]["tokens"]
    assert 150 <= used["prompt"] + used["output"] < 150 + 2 * 40
    before = done["rows_done"]
    code, out, err = project.run("resume", "last")
    assert code == 4 and "the token budget is spent" in err and "tenter resume" in err
    assert project.run("resume", "last", "--token-budget", "100000")[0] == 0
    assert 0 < before < ROWS and project.complete()


@pytest.mark.slow
def test_a_time_limit_exits_7_and_resume_goes_on(project: Project) -> None:
    slow = project.arguments("--time-limit", "0.3s", model="reply=fine,latency_s=0.5")
    code, _, err = project.run(*slow)
    assert code == 7 and "the time limit has passed" in err
    assert project.run("resume", "last", "--time-limit", "1h", "--concurrency", "20")[0] == 0
    assert project.complete()


@pytest.mark.slow
def test_a_hangup_drains_however_often_it_is_told(project: Project) -> None:
    with project.live() as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGHUP)
        assert "finishing the 2 rows that run" in process.stderr.readline()
        process.send_signal(signal.SIGHUP)
        project.gate.unlink()
        code, done = last(process)
    assert (code, done["exit_code"], done["reason"], done["rows_done"]) == (129, 129, "signal", 6)
    assert project.run("resume", "last")[0] == 0
    assert project.complete()


@pytest.mark.slow
def test_nohup_is_respected(project: Project) -> None:
    with project.live("sh", "-c", 'trap "" HUP; exec "$@"', "sh") as process:
        process.send_signal(signal.SIGHUP)
        project.gate.unlink()
        code, done = last(process)
    assert (code, done["rows_done"]) == (0, ROWS)
    assert project.complete()


@pytest.mark.slow
def test_a_lost_terminal_drains_and_leaves_a_run_to_resume(project: Project) -> None:
    """The terminal is closed: the kernel tells it, and nothing can be written any more."""
    project.gate.touch()
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        project.command(*project.arguments()),
        cwd=project.folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=own_terminal,  # noqa: PLW1509
    )
    with process:
        try:
            os.close(theirs)
            said = b""
            while b"4/20 rows" not in said:
                said += os.read(ours, 4096)
            os.close(ours)
            project.gate.unlink()
            assert process.wait() == 129
        finally:
            process.kill()
    assert project.run("resume", "last")[0] == 0
    assert project.complete()


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_stop_the_run(project: Project) -> None:
    with project.live() as process:
        assert process.stdout is not None
        process.stdout.close()
        project.gate.unlink()
        assert process.wait() == 0
    assert project.complete()
