"""A real redis-server of a test's own, which can be killed, frozen and started again."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BINARY = shutil.which("redis-server")
READY_S = 20.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(ready: Callable[[], bool]) -> None:
    """Wait for it, some twenty seconds."""
    for _ in range(400):
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("it does not become ready")


class RedisServer:
    """redis-server on a loopback port, with its files in `folder`."""

    def __init__(self, folder: Path, *flags: str, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._flags: Sequence[str] = flags
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: int = 0, **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis://127.0.0.1:{self.port}/{database}" + (f"?{query}" if query else "")

    def start(self, *flags: str, wait: bool = True) -> None:
        assert BINARY is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self.folder), "--daemonize", "no", *self._flags, *flags]
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait()

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start_sentinel(self, config: Path) -> None:
        assert BINARY is not None
        command = [BINARY, str(config), "--sentinel", "--port", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.wait()

    def wait(self) -> None:
        """Until it answers."""
        from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError

        until_s = time.monotonic() + READY_S
        while True:
            try:
                self.ask("PING")
                return
            except (ConnectionError, TimeoutError, BusyLoadingError):
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.02)

    def ask(self, *command: object) -> Any:
        import redis

        with redis.Redis(port=self.port, socket_timeout=2, protocol=2) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        """Throw away what it has on its disk; it is not running."""
        for name in os.listdir(self.folder):
            if name != "log":
                path = self.folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
