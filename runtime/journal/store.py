"""All runs of a home: a folder, with an SQLite journal for each run, or a Redis.

Beside a Redis there is a folder too (`?folder=DIR` of its URL, else `.tenter`), for what belongs to
this machine: traces and statistics of tables.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from ..errors import InvalidConfig, InvalidInput, JournalError
from .address import is_redis, parse_redis
from .base import Entry, Journal, Manifest, RunInfo
from .folders import FolderRuns
from .names import is_dated, is_run, new_run_id
from .results import MAX_AGE_S, MAX_BYTES, Bounds, ResultStore
from .upkeep import Checked, Compacted

__all__ = ["HOME_VARIABLE", "Runs", "Store", "default_home", "new_run_id"]

HOME_VARIABLE = "TENTER_HOME"
CACHE_MB_VARIABLE, CACHE_DAYS_VARIABLE = "TENTER_CACHE_MB", "TENTER_CACHE_DAYS"
_MB, _DAY_S = 1_000_000, 86_400

_OnFailure = Callable[[JournalError], None] | None


class Runs(Protocol):
    """Where the runs of a home lie. `run` is always a full and checked name."""

    @property
    def shown(self) -> str:
        """The place, fit for messages."""
        ...

    def names(self) -> Iterable[str]:
        """The runs that have a journal, by name."""
        ...

    def has(self, run: str) -> bool: ...

    def create(self, manifest: Manifest, on_failure: _OnFailure) -> Journal:
        """A new run, claimed by this process. Raises JournalError if it is there."""
        ...

    def open(self, run: str, on_failure: _OnFailure) -> tuple[Manifest, Journal]:
        """A run that is there, claimed. Raises JournalError that names who else runs it."""
        ...

    def info(self, run: str) -> RunInfo: ...

    def check(self, run: str) -> Checked:
        """Every record read; also beside the run's owner."""
        ...

    def compact(self, run: str) -> Compacted:
        """Throw away what no resume asks for. Raises JournalError if somebody runs the run."""
        ...

    def entries(self, run: str) -> Iterator[Entry]:
        """Every record, by row: its steps, then how it ended."""
        ...

    def results(self, bounds: Bounds) -> ResultStore:
        """The home's result cache, made if it is not there."""
        ...

    def missing(self, run: str) -> InvalidInput:
        """Why `run` is not there."""
        ...


def default_home() -> Path | str:
    """$TENTER_HOME, or `.tenter` in the working folder; a Redis's URL is a str."""
    home = os.environ.get(HOME_VARIABLE) or ".tenter"
    return home if is_redis(home) else Path(home)


def cache_bounds() -> Bounds:
    """How much a result cache keeps: $TENTER_CACHE_MB and $TENTER_CACHE_DAYS, else 1,000 and 30."""
    megabytes = _positive(CACHE_MB_VARIABLE, MAX_BYTES / _MB)
    days = _positive(CACHE_DAYS_VARIABLE, MAX_AGE_S / _DAY_S)
    return Bounds(round(megabytes * _MB), days * _DAY_S)


def _positive(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise InvalidConfig(f"{variable}={text}: it must be a number above 0")
    return value


class Store:
    """The runs of `home`: a folder, or the URL of a Redis (see `address`).

    `home` is then the folder of what lies on this machine; `shown` is the place to name to a user,
    `place` what was given: a folder or a URL.
    """

    def __init__(self, home: Path | str | None = None) -> None:
        home = self.place = default_home() if home is None else home
        if isinstance(home, str) and is_redis(home):
            from .redis_runs import RedisRuns

            address = parse_redis(home)
            self.home = Path(address.options.folder)
            self.runs: Runs = RedisRuns(address, self.home)
        else:
            self.home = Path(home)
            self.runs = FolderRuns(self.home)

    @property
    def shown(self) -> str:
        return self.runs.shown

    def folder(self, run: str) -> Path:
        """Where `run` keeps its files; the name is checked, so that it stays below `home`."""
        if not is_run(run):
            raise InvalidInput(f"{run!r} is not the name of a run")
        return self.home / "runs" / run

    def trace_path(self, run: str) -> Path:
        return self.folder(run) / "trace.jsonl"

    def create(self, manifest: Manifest, on_failure: _OnFailure = None) -> Journal:
        """A new run, claimed by this process until the journal is closed."""
        self.folder(manifest.run)
        return self.runs.create(manifest, on_failure)

    def open(self, run: str, on_failure: _OnFailure = None) -> tuple[Manifest, Journal]:
        """A run to resume (its full name; see `find`), claimed by this process."""
        self._check_there(run)
        return self.runs.open(run, on_failure)

    def info(self, run: str) -> RunInfo:
        """A look at one run, also while it runs. A run whose process died is `paused`."""
        self._check_there(run)
        return self.runs.info(run)

    def check(self, run: str) -> Checked:
        """Every record of a run read and compared with its checksum, also while it runs."""
        self._check_there(run)
        return self.runs.check(run)

    def compact(self, run: str) -> Compacted:
        """Throw away steps that no resume asks for, and values that nothing names any more."""
        self._check_there(run)
        return self.runs.compact(run)

    def entries(self, run: str) -> Iterator[Entry]:
        """Every record of a run, by row: its steps, then how it ended."""
        self._check_there(run)
        return self.runs.entries(run)

    def results(self) -> ResultStore:
        """The result cache that the runs of this home share (see `results`)."""
        return self.runs.results(cache_bounds())

    def list(
        self, on_damaged: Callable[[str, JournalError], None] | None = None
    ) -> tuple[RunInfo, ...]:
        """All runs, oldest first; those that cannot be read go to `on_damaged`."""
        infos: list[RunInfo] = []
        for run in self.runs.names():
            try:
                infos.append(self.info(run))
            except JournalError as error:
                if on_damaged is not None:
                    on_damaged(run, error)
        return tuple(sorted(infos, key=lambda info: info.manifest.created_at))

    def find(self, name: str) -> str:
        """The full name of the run that `name` begins (with or without `run_`), or of the `last`
        of those that nobody gave a name."""
        runs = tuple(self.runs.names())
        if name == "last" and runs:
            dated = [run for run in runs if is_dated(run)]
            return (dated or runs)[-1]
        if name in runs:
            return name
        found = [run for run in runs if name and run.startswith((name, f"run_{name}"))]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidInput(
                f"{name!r} is the beginning of {len(found)} runs: {', '.join(found[:5])}"
            )
        if is_run(name) and self.folder(name).is_dir():
            raise self.runs.missing(name)
        if not runs:
            raise InvalidInput(f"there are no runs in {self.shown}")
        raise InvalidInput(
            f"there is no run {name!r} in {self.shown}; it has {', '.join(runs[-3:])}"
        )

    def _check_there(self, run: str) -> None:
        self.folder(run)
        if not self.runs.has(run):
            raise self.runs.missing(run)
