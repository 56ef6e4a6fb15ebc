"""Runs in a folder: `<home>/runs/<run>/` with `journal.db`, `trace.jsonl` and `lock`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import InvalidInput, JournalError
from .base import Entry, Manifest, RunInfo
from .file import JournalFile, reported
from .file_upkeep import check_file, compact_file, entries_of_file
from .lock import RunLock, is_held
from .names import is_run
from .results import Bounds
from .results_file import ResultFile
from .sqlite import SqliteJournal
from .upkeep import Checked, Compacted


class FolderRuns:
    """The runs below `home`, each with an SQLite journal."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def shown(self) -> str:
        return str(self.home)

    def names(self) -> Iterator[str]:
        """The runs that have a journal, by name. One killed while it was created has none."""
        folder = self.home / "runs"
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if is_run(name) and self.has(name):
                yield name

    def has(self, run: str) -> bool:
        path = self.path(run)
        return path.is_file() and not _is_unmade(path)

    def path(self, run: str) -> Path:
        return self.home / "runs" / run / "journal.db"

    def create(
        self, manifest: Manifest, on_failure: Callable[[JournalError], None] | None
    ) -> SqliteJournal:
        path = self.path(manifest.run)
        folder = path.parent
        exists = JournalError(f"run {manifest.run} exists already; resume it instead")
        try:
            if self.has(manifest.run):
                raise exists
            folder.mkdir(parents=True, exist_ok=True)
            _sync(folder.parent)
            lock = RunLock.take(folder, manifest.run)
            if self.has(manifest.run):  # by now
                lock.release()
                raise exists
            for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
                (folder / name).unlink(missing_ok=True)  # of one that died while it made the run
        except OSError as error:
            raise JournalError(f"run folder {folder}: {error.strerror or error}") from error

        def opened() -> JournalFile:
            file = JournalFile.create(path, manifest)
            try:
                with reported(path):
                    _sync(folder)
            except BaseException:
                file.close()
                raise
            return file

        return _journal(opened, lock, on_failure)

    def open(
        self, run: str, on_failure: Callable[[JournalError], None] | None
    ) -> tuple[Manifest, SqliteJournal]:
        path = self.path(run)
        lock = RunLock.take(path.parent, run)
        journal = _journal(lambda: JournalFile.open(path), lock, on_failure)
        return journal.manifest, journal

    def info(self, run: str) -> RunInfo:
        path = self.path(run)
        file = JournalFile.read(path)
        try:
            info = file.info()
        finally:
            file.close()
        if info.status == "running" and not is_held(path.parent):
            return replace(info, status="paused")
        return info

    def check(self, run: str) -> Checked:
        return check_file(self.path(run))

    def compact(self, run: str) -> Compacted:
        path = self.path(run)
        lock = RunLock.take(path.parent, run)
        try:
            return compact_file(path)
        finally:
            lock.release()

    def entries(self, run: str) -> Iterator[Entry]:
        return entries_of_file(self.path(run))

    def results(self, bounds: Bounds) -> ResultFile:
        return ResultFile(self.home / "results.db", bounds)

    def missing(self, run: str) -> InvalidInput:
        return InvalidInput(f"there is no run {run} in {self.home}")


def _is_unmade(path: Path) -> bool:
    """Whether a process died while it made this journal: an SQLite file without an owner, or none."""
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size:
        return False
    with path.open("rb") as file:
        head = file.read(72)  # its last four bytes say whose it is
    return not head or (head.startswith(b"SQLite format 3\0") and head[68:] == bytes(4))


def _journal(
    opened: Callable[[], JournalFile],
    lock: RunLock,
    on_failure: Callable[[JournalError], None] | None,
) -> SqliteJournal:
    return SqliteJournal(opened, on_failure=on_failure, on_close=lock.release, on_beat=lock.beat)


def _sync(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
