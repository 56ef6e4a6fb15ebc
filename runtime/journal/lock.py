"""The lease of a run in a folder: a lock that ends with its owner, and the owner's signs of life.

The kernel lets go of the lock (flock) when its owner dies, however it dies. An owner that lives and
gives no sign of life for LEASE_S, frozen or on a disk that hangs, may be taken over: the new owner
puts a lock file of its own in the place of the other. What keeps the old owner from writing when it
comes back is the token in the journal (see `file`), not the lock.

Signs of life are counted on the clock since boot, which nobody can set.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from ..errors import JournalError

LEASE_S = 30.0
_LOOKS = 5  # a look of `ls` may hold the lock for an instant


class RunLock:
    """A run's lock, held by this process until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.beat()

    @classmethod
    def take(cls, folder: Path, run: str) -> "RunLock":
        """Take the lock of the run in `folder`. Raises JournalError that names who has it."""
        try:
            return cls._take(folder / "lock", run)
        except OSError as error:
            raise JournalError(f"run folder {folder}: {error.strerror or error}") from error

    @classmethod
    def _take(cls, path: Path, run: str) -> "RunLock":
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        for look in range(_LOOKS):
            if _try(descriptor, fcntl.LOCK_EX):
                return cls(descriptor)
            if look < _LOOKS - 1:
                time.sleep(0.005)
        owner, silent_s = _read(descriptor)
        os.close(descriptor)
        if silent_s > LEASE_S:
            return cls._take_over(path)
        raise JournalError(
            f"run {run} is running already, in process {owner}; wait for it or stop it"
            + (f" (silent for {silent_s:.0f} s of {LEASE_S:.0f})" if silent_s > LEASE_S / 3 else "")
        )

    @classmethod
    def _take_over(cls, path: Path) -> "RunLock":
        own = path.with_name(f"lock.{os.getpid()}")
        descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        lock = cls(descriptor)
        os.replace(own, path)
        return lock

    def beat(self) -> None:
        """Give a sign of life. A disk that fails says so at the next record."""
        with suppress(OSError):
            os.pwrite(self._descriptor, b"%-10d\n%020.3f\n" % (os.getpid(), _since_boot_s()), 0)

    def release(self) -> None:
        os.close(self._descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process that gives signs of life runs the run in `folder`."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH) and _read(descriptor)[1] <= LEASE_S
    finally:
        os.close(descriptor)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(descriptor: int) -> tuple[str, float]:
    """The owner's number, and for how long it has been silent (s)."""
    lines = os.pread(descriptor, 64, 0).decode("ascii", "replace").split()
    owner = lines[0] if lines else "unknown"
    try:
        return owner, _since_boot_s() - float(lines[1])
    except (IndexError, ValueError):  # of an earlier Tenter, or just being written
        return owner, 0.0


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
