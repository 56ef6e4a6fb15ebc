"""Who runs a run: a process, told apart from every other, here and on other machines."""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

_STARTED = 19  # of the fields behind the name in /proc/PID/stat: ticks since boot (proc(5))


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. `space` is its boot and its PID namespace, `began` when it started in ticks."""

    host: str
    pid: int
    space: str = ""
    began: int = 0

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" on {self.host}" if self.host else "")


def this_process() -> Owner:
    """The process that asks."""
    pid = os.getpid()
    return Owner(socket.gethostname(), pid, _space(), _began(pid) or 0)


def read_owner(text: str | bytes) -> Owner | None:
    """What `Owner.text` wrote; None for anything else."""
    try:
        return msgspec.json.decode(text, type=Owner)
    except msgspec.MsgspecError:
        return None


def is_dead(owner: Owner) -> bool:
    """Whether the process has certainly ended: it was one of this machine's, and is no more."""
    return bool(owner.space) and owner.space == _space() and _began(owner.pid) != owner.began


@cache
def _space() -> str:
    """The boot and the PID namespace in which process numbers mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """When the process started; None if there is none, or it is only waiting to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[_STARTED])
