"""Servers start, answer and end; nothing outlives the tests, however they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from environment import build
from processes import Guarded
from servers import Server, StartFailed

HERE = Path(__file__).parent
PATIENCE_S = 30.0  # until something that must happen counts as failed

# -- processes


def living(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def becomes_true(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def sleepers(tmp_path: Path, *, trap: str = "") -> Guarded:
    """A command with a child; `trap` is what it does when it is asked to end."""
    command = ["sh", "-c", f"{trap}\nsleep 600 & echo ready; while :; do wait; done"]
    guarded = Guarded(command, tmp_path / "log", os.environ)
    assert becomes_true(lambda: "ready" in (tmp_path / "log").read_text())
    return guarded


def test_a_command_that_is_asked_to_end_takes_its_children_along(tmp_path: Path) -> None:
    guarded = sleepers(tmp_path, trap="trap 'echo bye; exit 3' TERM")
    guarded.end(PATIENCE_S)

    assert guarded.status == 3
    assert "bye" in (tmp_path / "log").read_text()
    assert becomes_true(lambda: not living(guarded.pid))


def test_a_command_that_will_not_end_is_killed(tmp_path: Path) -> None:
    guarded = sleepers(tmp_path, trap="trap 'echo no' TERM")
    guarded.end(0.2)

    assert guarded.status == -signal.SIGKILL
    assert becomes_true(lambda: not living(guarded.pid))


def test_kill_9_of_the_tests_leaves_no_server(tmp_path: Path) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from pathlib import Path; from processes import Guarded\n"
        "command = ['sh', '-c', 'sleep 600 & wait']\n"
        f"print(Guarded(command, Path({str(tmp_path / 'log')!r}), os.environ).pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout is not None
        group = int(tests.stdout.readline())
        assert becomes_true(lambda: len(living(group)) == 2)
        tests.kill()

    assert becomes_true(lambda: not living(group))


# -- servers


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    server = Server("broken", (), python=Path(sys.executable), folder=tmp_path)

    with pytest.raises(StartFailed, match=r"'broken' ended with status 1[\s\S]*sglang"), server:
        pytest.fail("it cannot be ready")
    assert not server.alive


def test_the_port_of_a_server_is_kept_for_it(tmp_path: Path) -> None:
    server, other = (Server("any", (), python=Path("python"), folder=tmp_path) for _ in range(2))
    address = server.url.removeprefix("http://").split(":")[0], int(server.url.split(":")[-1])

    assert server.url != other.url
    with socket.create_server(address, reuse_port=False):
        socket.create_connection(address).close()
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(address)
    server.close()
    other.close()


def info(server: Server) -> dict[str, object]:
    with urllib.request.urlopen(f"{server.url}/server_info", timeout=30) as answer:
        return json.load(answer)


@pytest.mark.sglang
def test_the_stock_server_has_nothing_beyond_the_release(sglang_stock: Server) -> None:
    found = info(sglang_stock)

    assert found["version"] == build.pinned("sglang")
    assert (found["dtype"], found["max_total_tokens"]) == ("float32", 4096)
    assert not found["enable_priority_scheduling"]
    assert not found["enable_session_radix_cache"]
    assert not found["enable_metrics"]


@pytest.mark.sglang
def test_the_server_with_sessions_has_them_and_priorities(sglang_sessions: Server) -> None:
    found = info(sglang_sessions)

    assert found["enable_session_radix_cache"]
    assert found["enable_priority_scheduling"]
    assert found["default_priority_value"] == 0


@pytest.mark.sglang
def test_the_server_with_our_plugin_uses_our_cache(sglang_plugin: Server) -> None:
    assert info(sglang_plugin)["radix_cache_backend"] == "tenter"


@pytest.mark.sglang
def test_a_killed_server_comes_back_where_it_was(start_server: Callable[..., Server]) -> None:
    server = start_server("fragile", pool_tokens=2048)
    url, group = server.url, server.pid
    server.kill()
    assert becomes_true(lambda: not living(group))
    with pytest.raises(OSError, match="refused"):
        info(server)

    server.restart()

    assert server.url == url
    assert info(server)["max_total_tokens"] == 2048
