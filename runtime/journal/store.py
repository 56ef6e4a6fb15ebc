"""All runs of a home folder: `<home>/runs/<run>/` with `journal.db`, `trace.jsonl` and `lock`.

A run's lock (flock on a file in its folder) keeps a second process from running it; the kernel
lets go of it when the owner dies, however it dies.
"""

import fcntl
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import InvalidInput, JournalError
from .base import Manifest, RunInfo
from .file import JournalFile
from .sqlite import SqliteJournal

HOME_VARIABLE = "TENTER_HOME"

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: sorts as its numbers do
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_LOOKS = 5  # a look of `list` may hold the lock for an instant


def default_home() -> Path:
    """$TENTER_HOME, or `.tenter` in the working folder."""
    return Path(os.environ.get(HOME_VARIABLE) or ".tenter")


def new_run_id(epoch_s: float, rng: random.Random) -> str:
    """A run's name: 48 bits of milliseconds, then 32 random bits; names sort by time."""
    number = (int(epoch_s * 1000) & ((1 << 48) - 1)) << 32 | rng.getrandbits(32)
    return "run_" + "".join(_BASE32[number >> shift & 31] for shift in range(75, -1, -5))


class Store:
    """The runs below `home`."""

    def __init__(self, home: Path | str | None = None) -> None:
        self.home = Path(home) if home is not None else default_home()

    def folder(self, run: str) -> Path:
        """Where `run` keeps its files; the name is checked, so that it stays below `home`."""
        if _RUN.fullmatch(run) is None:
            raise InvalidInput(f"{run!r} is not the name of a run")
        return self.home / "runs" / run

    def trace_path(self, run: str) -> Path:
        return self.folder(run) / "trace.jsonl"

    def create(
        self, manifest: Manifest, on_failure: Callable[[JournalError], None] | None = None
    ) -> SqliteJournal:
        """A new run, locked by this process until the journal is closed."""
        folder = self.folder(manifest.run)
        try:
            folder.mkdir(parents=True)
            _sync(folder.parent)
        except FileExistsError:
            raise JournalError(f"run {manifest.run} exists already; resume it instead") from None
        except OSError as error:
            raise JournalError(f"run folder {folder}: {error.strerror or error}") from error
        lock = _lock(folder, manifest.run)
        path = folder / "journal.db"

        def opened() -> JournalFile:
            file = JournalFile.create(path, manifest)
            _sync(folder)
            return file

        return SqliteJournal(opened, on_failure=on_failure, on_close=lambda: os.close(lock))

    def open(
        self, run: str, on_failure: Callable[[JournalError], None] | None = None
    ) -> tuple[Manifest, SqliteJournal]:
        """A run to resume (its full name; see `find`), locked by this process."""
        path = self.folder(run) / "journal.db"
        if not path.is_file():
            raise InvalidInput(f"there is no run {run} in {self.home}")
        lock = _lock(path.parent, run)
        journal = SqliteJournal(
            lambda: JournalFile.open(path), on_failure=on_failure, on_close=lambda: os.close(lock)
        )
        return journal.manifest, journal

    def info(self, run: str) -> RunInfo:
        """A look at one run, also while it runs. A run whose process died is `paused`."""
        path = self.folder(run) / "journal.db"
        if not path.is_file():
            raise InvalidInput(f"there is no run {run} in {self.home}")
        file = JournalFile.read(path)
        try:
            info = file.info()
        finally:
            file.close()
        if info.status == "running" and not _locked(path.parent):
            return replace(info, status="paused")
        return info

    def list(
        self, on_damaged: Callable[[str, JournalError], None] | None = None
    ) -> tuple[RunInfo, ...]:
        """All runs, oldest first; those that cannot be read go to `on_damaged`."""
        infos: list[RunInfo] = []
        for run in self._names():
            try:
                infos.append(self.info(run))
            except JournalError as error:
                if on_damaged is not None:
                    on_damaged(run, error)
        return tuple(infos)

    def find(self, name: str) -> str:
        """The full name of the run that `name` begins (with or without `run_`), or of the `last`."""
        runs = tuple(self._names())
        if not runs:
            raise InvalidInput(f"there are no runs in {self.home}")
        if name == "last":
            return runs[-1]
        if name in runs:
            return name
        found = [run for run in runs if name and run.startswith((name, f"run_{name}"))]
        if len(found) == 1:
            return found[0]
        if not found:
            raise InvalidInput(f"there is no run {name!r} in {self.home}; the last is {runs[-1]}")
        raise InvalidInput(
            f"{name!r} is the beginning of {len(found)} runs: {', '.join(found[:5])}"
        )

    def _names(self) -> Iterator[str]:
        """The runs that have a journal, by name. One killed while it was created has none."""
        folder = self.home / "runs"
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            path = folder / name / "journal.db"
            if _RUN.fullmatch(name) is not None and path.is_file() and path.stat().st_size > 0:
                yield name


def _sync(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path, run: str) -> int:
    """The descriptor that holds the run's lock; closing it lets go."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise JournalError(f"run folder {folder}: {error.strerror or error}") from error
    for look in range(_LOOKS):
        if _try_lock(descriptor, fcntl.LOCK_EX):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            return descriptor
        if look < _LOOKS - 1:
            time.sleep(0.005)
    owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    os.close(descriptor)
    raise JournalError(f"run {run} is running already, in process {owner}; wait for it or stop it")


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked(folder: Path) -> bool:
    """Whether a process runs the run in `folder`."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
