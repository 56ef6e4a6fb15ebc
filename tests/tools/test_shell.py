"""The shell tool: argument lists, limits that hold, nothing left running."""

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from tenter.tools import (
    InvalidArguments,
    InvalidTool,
    Tool,
    ToolError,
    ToolTimeout,
    call,
    shell_guard,
)
from tenter.tools.capped import Capped
from tenter.tools.shell import shell_tool


def tool(folder: Path, **limits: object) -> Tool:
    return shell_tool(["sh", "cat", "env", "sleep", sys.executable], folder, **limits)  # type: ignore[arg-type]


def running(mark: str) -> list[str]:
    """Command lines of processes that contain `mark` and go on living."""
    deadline = time.monotonic() + 20
    while True:
        found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
        live = [line for line in found.stdout.splitlines() if mark in line]
        if not live or time.monotonic() > deadline:
            return live
        time.sleep(0.1)


async def test_arguments_reach_the_program_as_they_are(tmp_path: Path) -> None:
    argv = ["sh", "-c", 'printf "%s|" "$@"; cat; exit 3', "sh", "a b", "$(id)", "; rm x"]
    found = await call(tool(tmp_path), {"argv": argv, "stdin": "in"})
    assert found == {"exit": 3, "stdout": "a b|$(id)|; rm x|in", "stderr": ""}


async def test_a_program_sees_no_variable_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "canary")
    found = await call(tool(tmp_path, environment={"SHOWN": "1"}), {"argv": ["env"]})
    assert "canary" not in found["stdout"]
    assert "SHOWN=1" in found["stdout"]


async def test_a_program_is_given_the_secrets_that_the_author_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PIN", "canary-7f")
    shell = tool(tmp_path, environment={"PIN": "env:SHOP_PIN", "NONE": "a"})
    test = ["sh", "-c", 'test "$PIN" = canary-7f && echo "it is $PIN"']
    assert (await call(shell, {"argv": test}))["stdout"] == "it is [secret]\n"
    monkeypatch.delenv("SHOP_PIN")
    with pytest.raises(ToolError, match="SHOP_PIN is not set"):
        await call(shell, {"argv": test})


def scopes_signals() -> bool:
    """Whether the kernel has Landlock that keeps signals within (Linux 6.12)."""
    return ctypes.CDLL(None).syscall(444, None, 0, 1) >= 6


@pytest.mark.skipif(not scopes_signals(), reason="needs Linux 6.12 with Landlock")
async def test_a_program_cannot_reach_the_runtime_or_its_guard(tmp_path: Path) -> None:
    script = f"kill -9 $PPID; kill -0 {os.getpid()}; sleep 0 & wait"
    found = await call(tool(tmp_path), {"argv": ["sh", "-c", script]})
    assert found["exit"] == 0
    assert found["stderr"].count("not permitted") == 2
    if os.getuid() != 0:  # root may look into every process
        found = await call(tool(tmp_path), {"argv": ["cat", f"/proc/{os.getpid()}/environ"]})
        assert (found["exit"], found["stdout"]) == (1, "")


async def test_only_the_named_programs_run(tmp_path: Path) -> None:
    for program in ("ls", "/bin/ls", "../sh", "./sh"):
        with pytest.raises(InvalidArguments, match="there is no program"):
            await call(tool(tmp_path), {"argv": [program]})
    with pytest.raises(InvalidArguments, match="NUL"):
        await call(tool(tmp_path), {"argv": ["cat", "a\0b"]})
    with pytest.raises(InvalidArguments, match="argv"):
        await call(tool(tmp_path), {"argv": "cat x"})


async def test_output_is_kept_at_both_ends_and_the_cut_is_marked(tmp_path: Path) -> None:
    script = "print('begin'); print('x' * 5_000_000); print('end')"
    found = await call(tool(tmp_path, output_bytes=100), {"argv": [sys.executable, "-c", script]})
    assert found["stdout"].startswith("begin\nxx")
    assert found["stdout"].endswith("xx\nend\n")
    assert "bytes left out ...]" in found["stdout"]
    assert len(found["stdout"]) < 200


async def test_memory_and_processes_are_limited(tmp_path: Path) -> None:
    hungry = [sys.executable, "-c", "x = bytearray(1 << 31)"]
    found = await call(tool(tmp_path, memory_bytes=1 << 29), {"argv": hungry})
    assert found["exit"] == 1
    assert "MemoryError" in found["stderr"]
    bomb = "while true; do sleep 77.25 & done"
    with pytest.raises(ToolError, match="more than 10 processes"):
        await call(tool(tmp_path, processes=10), {"argv": ["sh", "-c", bomb]})
    assert not running("sleep 77.25")


@pytest.mark.parametrize(
    "script", ["sleep 88.5", "setsid sleep 88.5 & sleep 88.5", "(sleep 88.5 &)"]
)
async def test_nothing_runs_on_after_a_timeout_or_the_end(tmp_path: Path, script: str) -> None:
    with suppress(ToolTimeout):
        await call(tool(tmp_path, timeout_s=0.3), {"argv": ["sh", "-c", script]})
    assert not running("sleep 88.5")


async def test_nothing_runs_on_after_a_cancel(tmp_path: Path) -> None:
    started = tmp_path / "started"
    argv = ["sh", "-c", f"setsid sleep 99.5 & touch {started}; sleep 99.5"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, tool(tmp_path), {"argv": argv})
        while not started.exists():  # noqa: ASYNC110 (another process makes it)
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert not running("sleep 99.5")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_call_ends_though_its_guard_was_killed_or_stopped(
    tmp_path: Path, number: signal.Signals
) -> None:
    """As a command can do it that has the rights: here we do it, when the cancel is due."""
    guard, draft, late = tmp_path / "guard", tmp_path / "draft", tmp_path / "late"
    tell = f"echo $PPID > {draft}; mv {draft} {guard}"
    script = f"sleep 35.5 & {tell}; sleep 35.5; touch {late}"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, tool(tmp_path), {"argv": ["sh", "-c", script]})
        while not guard.exists():  # noqa: ASYNC110 (another process makes it)
            await anyio.sleep(0.01)
        os.kill(int(guard.read_text()), number)
        tasks.cancel_scope.cancel()
    assert not running("sleep 35.5")
    assert not late.exists(), "it was killed, and did not come to its end"


async def test_a_killed_guard_is_told(tmp_path: Path) -> None:
    guard, draft = tmp_path / "guard", tmp_path / "draft"
    argv = ["sh", "-c", f"echo $PPID > {draft}; mv {draft} {guard}; sleep 44.5"]

    async def kill() -> None:
        while not guard.exists():  # noqa: ASYNC110 (another process makes it)
            await anyio.sleep(0.01)
        os.kill(int(guard.read_text()), signal.SIGKILL)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        with pytest.raises(ToolError, match="guard was killed"):
            await call(tool(tmp_path), {"argv": argv})
    assert not running("sleep 44.5")


def test_descendants_are_found_without_the_kernels_list_of_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["sh", "-c", "sleep 33.5 & echo on; wait"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    listed = shell_guard._descendants()
    monkeypatch.setattr(shell_guard.os.path, "exists", lambda _: False)
    found = shell_guard._descendants()
    assert child.pid in found and set(listed) <= set(found) and len(found) >= 2
    os.killpg(child.pid, signal.SIGKILL)  # and nothing else: other tests' servers are found too
    child.communicate()


def test_nothing_runs_on_after_a_kill_of_the_runtime(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import anyio
        from tenter.tools import call
        from tenter.tools.shell import shell_tool
        tool = shell_tool(["sh"], {str(tmp_path)!r})
        anyio.run(call, tool, {{"argv": ["sh", "-c", "touch started; setsid sleep 66.5"]}})
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not running("sleep 66.5")


async def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    shell = tool(tmp_path)
    await call(shell, {"argv": ["cat"]})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await call(shell, {"argv": ["cat"]})
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_cannot_work_is_refused_when_the_tool_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidTool, match="no-such-program"):
        shell_tool(["no-such-program"], tmp_path)
    with pytest.raises(InvalidTool, match="no folder"):
        shell_tool(["sh"], tmp_path / "missing")
    with pytest.raises(InvalidTool, match="any"):
        shell_tool([], tmp_path)


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
@pytest.mark.parametrize("pieces", [[3], [1] * 50, [200], [6, 1], [50, 50]])
def test_a_capped_text_has_its_two_ends(limit: int, pieces: list[int]) -> None:
    whole = bytes(range(97, 123)) * 10
    kept, at = Capped(limit), 0
    for size in pieces:
        kept.write(whole[at : at + size])
        at += size
    text = whole[:at].decode()
    assert kept.cut == (at > limit)
    if kept.cut:
        head, _, tail = kept.text().partition("\n[... ")
        tail = tail.partition(" ...]\n")[2]
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(head) + len(tail) == limit
    else:
        assert kept.text() == text
