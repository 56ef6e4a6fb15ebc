"""Real SGLang servers on this machine's loopback, for the tests and the benchmarks.

    with server("stock", folder=logs) as stock:
        ...  # stock.url answers

All serve the tiny model in float32 with a KV pool of a few thousand tokens. A benchmark imports
this module after putting this folder on `sys.path`; tests use the fixtures of conftest.py.
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from environment import build
from processes import Guarded

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "runtime" / "models" / "tiny"
POOL_TOKENS = 4096
START_S = 300.0  # longest start, on a busy machine
STOP_S = 30.0  # longest orderly end
POLL_S = 0.2
TAIL_BYTES = 6000  # of a log, shown with a failure

# What the shared servers of the tests are started with.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "stock": (),
    "plugin": ("--radix-cache-backend", "tenter", "--enable-metrics"),
    "sessions": (
        "--enable-session-radix-cache",
        "--enable-priority-scheduling",
        *("--schedule-policy", "fcfs"),
        "--disable-priority-preemption",
        *("--default-priority-value", "0"),
        "--enable-cache-report",
        "--enable-metrics",
    ),
}
ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_PROXY": "*",  # it asks itself over HTTP before it is ready
}


class StartFailed(Exception):
    """A server did not come up; the message ends with the tail of its log."""


class Server:
    """One SGLang server on a port of its own. As a context manager: ready inside, gone after.

    `flags` are those beyond what every server gets; `python` is the interpreter of an environment
    with SGLang, and `packages` a folder that it can import from as well.
    """

    def __init__(
        self,
        name: str,
        flags: tuple[str, ...],
        *,
        python: Path,
        folder: Path,
        pool_tokens: int = POOL_TOKENS,
        packages: Path | None = None,
    ) -> None:
        self.name, self.flags = name, flags
        self._port = _Port()
        self.url = f"http://127.0.0.1:{self._port.number}"
        self.log = folder / f"{name}-{self._port.number}.log"
        self._command = _command(python, self._port.number, pool_tokens, flags)
        self._environment = _environment(packages)
        self._process: Guarded | None = None
        self._ready = False

    @property
    def pid(self) -> int:
        """Of the server's parent process."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether its parent process runs."""
        return self._process is not None and self._process.status is None

    def launch(self) -> None:
        """Begin to start it, without waiting. No effect while it runs."""
        if not self.alive:
            self._ready = False
            self._process = Guarded(self._command, self.log, self._environment)

    def wait(self) -> None:
        """Return when it answers; raises StartFailed, and ends it, if it does not in time."""
        process, deadline_s = self._running(), time.monotonic() + START_S
        while not self._ready:
            if process.status is not None:
                self._fail(f"ended with status {process.status} before it was ready")
            if time.monotonic() > deadline_s:
                self._fail(f"was not ready after {START_S:.0f} s")
            self._ready = self._healthy()
            if not self._ready:
                time.sleep(POLL_S)

    def stop(self) -> None:
        """End it in order, or by force after `STOP_S`. No effect if it has ended."""
        if self._process is not None:
            self._process.end(STOP_S)

    def kill(self) -> None:
        """End it at once, as a crash would: every process of it."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """End it if it runs and start it again on the same port, with an empty cache; waits."""
        self.stop()
        self.launch()
        self.wait()

    def close(self) -> None:
        """Stop it and give its port back."""
        self.stop()
        self._port.close()

    def __enter__(self) -> Self:
        self.launch()
        try:
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({self.name!r}, {self.url}, {' '.join(self.flags)!r})"

    def _running(self) -> Guarded:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not launched")
        return self._process

    def _healthy(self) -> bool:
        """Whether GET /health answers 200: before that the model is loading or warming up."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port.number, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _fail(self, what: str) -> None:
        self.kill()
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            tail = log.read().decode(errors="replace")
        raise StartFailed(f"the SGLang server {self.name!r} {what}; its log ends:\n{tail}")


class _Port:
    """A free loopback port, kept for one server for as long as that may start again.

    The socket is bound but never listens: the kernel then gives the port to nobody who asks for any
    port, while a server, which names it and sets SO_REUSEADDR as we do, can bind it and listen.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


def server(name: str, *flags: str, folder: Path, pool_tokens: int = POOL_TOKENS) -> Server:
    """A server that is not launched yet; its log lies in `folder`.

    A `name` of CONFIGURATIONS stands for the flags of that one, before `flags`. Our plugin is
    installed for it where the flags ask for `tenter`. Raises StartFailed if there is no
    environment with SGLang.
    """
    home = build.find()
    if home is None:
        raise StartFailed("there is no SGLang here: run `make sglang`")
    folder, flags = folder.resolve(), (*CONFIGURATIONS.get(name, ()), *flags)
    packages = plugin(folder) if "tenter" in flags else None
    python = build.python_of(home)
    return Server(
        name, flags, python=python, folder=folder, pool_tokens=pool_tokens, packages=packages
    )


def close_all(servers: Iterable[Server]) -> None:
    """Close servers side by side: an orderly end takes seconds."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(Server.close, servers))


@cache
def plugin(folder: Path) -> Path:
    """A folder in `folder` with this checkout as it is now, for servers to import tenter from.

    Built once per process, from a copy and without the network: the environment is shared by all
    clones, so none of them is installed there.
    """
    source, target = folder / "tenter-source", folder / "tenter-installed"
    rooms = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-dir"
    ]
    for room in rooms.values():
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    install = ["install", "--quiet", "--disable-pip-version-check", "--root-user-action", "ignore"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    command = [sys.executable, "-m", "pip", *install, *offline, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartFailed(f"cannot build tenter from {ROOT}:\n{done.stderr[-TAIL_BYTES:]}")
    return target


def _command(python: Path, port: int, pool_tokens: int, flags: tuple[str, ...]) -> list[str]:
    """How a server is started; a flag given twice counts as given last."""
    return [
        *(str(python), "-m", "sglang.launch_server"),
        *("--model-path", str(MODEL), "--dtype", "float32"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--device", "cpu", "--attention-backend", "torch_native", "--disable-cuda-graph"),
        *("--max-total-tokens", str(pool_tokens), "--mem-fraction-static", "0.05"),
        *("--max-running-requests", "16", "--sleep-on-idle"),
        *flags,
    ]


def _environment(packages: Path | None) -> dict[str, str]:
    """Our environment without what would lead another interpreter astray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    paths = {} if packages is None else {"PYTHONPATH": str(packages)}
    return {**kept, **ENVIRONMENT, **paths}
