"""Where what was learned lies between runs: `<home>/learned/`, a JSON file per workflow and models.

`NAME-DIGEST.json` holds what is known of the workflow NAME whose fingerprint, with that of its
models, has that digest; `tools.json` what is known of tools, by name and first argument word. A
save reads the file again, under a lock, and adds what the run has seen: runs that end at the same
time lose nothing of each other's. What is old fades with what is new: of each key the last CARRIED
amounts are kept, so a run's own count for more than all before it from then on.

No text is kept: lengths, seconds, names of steps and tools, hashes of words, counts of classes, stop
rules with the evidence of their shadow runs.
"""

import fcntl
import logging
import os
import re
import time
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from ...kvpolicy import Predictor
from ..reasoning.shadow import Shadows, State
from ..reasoning.shadow import restored as restored_shadow
from .asked import Row
from .known import KINDS, TOOLS, Kind, Known
from .ranker import restored

log = logging.getLogger(__name__)

VERSION = 1
CARRIED = 400  # amounts of a key
EDITED = 100  # of them, where the workflow or its models have changed
KEYS_KEPT = 200  # first words of a kind, and keys of two
ROWS_KEPT = 2_000
FRESH_KEPT = 2_000  # amounts of a kind that one save adds
FILES = 200  # workflows of a home; those saved last are kept
MAX_BYTES = 16 * 1024 * 1024
LOCK_LOOKS, LOOK_S = 50, 0.01


@dataclass(slots=True)
class Fresh:
    """What was learned since the last save: the last amounts of each kind, and calls."""

    amounts: dict[Kind, deque[tuple[str, float]]] = field(
        default_factory=lambda: {kind: deque(maxlen=FRESH_KEPT) for kind in KINDS}
    )
    rows: deque[Row] = field(default_factory=lambda: deque[Row](maxlen=ROWS_KEPT))
    fitted: bool = False  # the ranker is of this run


class _Levels(msgspec.Struct):
    """A snapshot of a history."""

    pool: list[float]
    heads: dict[str, list[float]]
    keys: dict[str, list[float]]


class _Amounts(msgspec.Struct):
    """A snapshot of a predictor."""

    history: _Levels
    scores: list[float]


class _Version(msgspec.Struct):
    version: int


class _Document(msgspec.Struct):
    """A file."""

    version: int = VERSION
    workflow: str = ""
    fingerprint: str = ""
    amounts: dict[Kind, _Amounts] = {}
    rows: list[Row] = []
    rows_since_fit: int = 0
    ranker: dict[str, Any] | None = None
    shadows: dict[str, State] = {}


class Shelf:
    """The files of one workflow on some models, in the folder `learned` of `home`."""

    def __init__(self, home: Path, workflow: str, fingerprint: str) -> None:
        self.folder = home / "learned"
        self.workflow, self.fingerprint = workflow, fingerprint
        digest = blake2b(f"{workflow}\0{fingerprint}".encode(), digest_size=6).hexdigest()
        self._slug = re.sub(r"\W+", "_", workflow, flags=re.ASCII)[:40] or "_"
        self.path = self.folder / f"{self._slug}-{digest}.json"
        self.tools_path = self.folder / "tools.json"

    def load(self) -> Known:
        """What is known; nothing, where there is no file or none that can be read."""
        known = Known()
        self._fill(known, self.path)
        self._fill(known, self.tools_path)
        return known

    def _fill(self, known: Known, path: Path) -> None:
        """Add what `path` holds, or for a new workflow what its former self has learned."""
        try:
            document, last = _read(path), CARRIED
            if document is None and path == self.path:
                document, last = self._predecessor(), EDITED
            if document is not None:
                _restore(known, document, last)
        except _Unreadable as error:
            log.warning("%s; going on without what earlier runs have learned there", error)

    def _predecessor(self) -> _Document | None:
        """What is known of the version of the workflow that was saved last."""
        pattern = re.compile(re.escape(self._slug) + r"-[0-9a-f]{12}\.json")
        with suppress(_Unreadable):
            for path in _newest_first(self.folder):
                document = _read(path) if pattern.fullmatch(path.name) else None
                if document is not None and document.workflow == self.workflow:
                    document.rows.clear()
                    document.ranker = None
                    document.shadows = {}
                    return document
        return None

    def save(self, fresh: Fresh, known: Known) -> bool:
        """Add `fresh` to what is kept. False, and a warning, where it cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder):
                news = fresh.rows or any(fresh.amounts.values()) or fresh.fitted
                if news or known.shadows.fresh:
                    self._save_workflow(fresh, known)
                if fresh.amounts[TOOLS]:
                    self._save_tools(fresh)
                self._tidy()
        except (OSError, _Unreadable) as error:
            log.warning("what this run has learned is not kept: %s", error)
            return False
        return True

    def _save_workflow(self, fresh: Fresh, known: Known) -> None:
        document = _for_update(self.path)
        if document is None:
            document, last = self._predecessor() or _Document(), EDITED
        else:
            last = CARRIED
        document.workflow, document.fingerprint = self.workflow, self.fingerprint
        for kind in KINDS:
            if kind != TOOLS:
                _add(document, kind, fresh, last)
        document.rows = [*document.rows, *fresh.rows][-ROWS_KEPT:]
        document.rows_since_fit += len(fresh.rows)
        shadows = _shadows(document)
        shadows.add(known.shadows.fresh)
        document.shadows = {name: each.state() for name, each in shadows.monitors.items()}
        if fresh.fitted:
            document.rows_since_fit = known.rows_since_fit
            document.ranker = dict(known.ranker.data()) if known.ranker is not None else None
        _write(self.path, document)

    def _save_tools(self, fresh: Fresh) -> None:
        document = _for_update(self.tools_path) or _Document()
        _add(document, TOOLS, fresh, CARRIED)
        _write(self.tools_path, document)

    def _tidy(self) -> None:
        for path in _newest_first(self.folder)[FILES:]:
            if path != self.tools_path:
                path.unlink(missing_ok=True)


class _Unreadable(Exception):
    """A file that this Tenter cannot use; the message says which and why."""


class _Newer(_Unreadable):
    """A file of a newer Tenter, which must not be overwritten."""


def _read(path: Path) -> _Document | None:
    """The document in `path`, or None if there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Unreadable(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise _Unreadable(f"{path} is larger than {MAX_BYTES:,} bytes")
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version > VERSION:
            raise _Newer(
                f"{path} is of a newer Tenter (version {version}; this one reads {VERSION})"
            )
        return msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Unreadable(f"{path} is damaged ({error})") from None


def _for_update(path: Path) -> _Document | None:
    """The document in `path` to add to; a damaged one is made anew, a newer one left alone."""
    try:
        document = _read(path)
        if document is not None:
            _restore(Known(), document, 1)
        return document
    except _Newer:
        raise
    except _Unreadable as error:
        log.warning("%s; it is written anew", error)
        return None


def _restore(known: Known, document: _Document, last: int) -> None:
    """Fill `known` from a document, with the `last` amounts of each key; all of it, or nothing."""
    predictors: dict[Kind, Predictor] = {
        kind: _predictor(found, last) for kind, found in document.amounts.items()
    }
    ranker = None if document.ranker is None else _ranker(document.ranker)
    shadows = _shadows(document)
    known.predictors.update(predictors)
    known.rows.extend(document.rows)
    known.rows_since_fit += document.rows_since_fit
    known.ranker = ranker or known.ranker
    known.shadows.monitors.update(shadows.monitors)


def _predictor(amounts: _Amounts, last: int) -> Predictor:
    try:
        return Predictor.restore(msgspec.to_builtins(_cut(amounts, last)))
    except ValueError as error:
        raise _Unreadable(f"what was learned is damaged ({error})") from None


def _ranker(data: Mapping[str, Any]) -> Any:
    try:
        return restored(data)
    except ValueError as error:
        raise _Unreadable(f"what was learned is damaged ({error})") from None


def _shadows(document: _Document) -> Shadows:
    try:
        return Shadows({name: restored_shadow(one) for name, one in document.shadows.items()})
    except ValueError as error:
        raise _Unreadable(f"what was learned is damaged ({error})") from None


def _add(document: _Document, kind: Kind, fresh: Fresh, last: int) -> None:
    """Add the fresh amounts of a kind to those of the document, and cut them."""
    if kind not in document.amounts and not fresh.amounts[kind]:
        return
    known = document.amounts.get(kind)
    predictor = _predictor(known, last) if known is not None else Predictor()
    for name, amount in fresh.amounts[kind]:
        predictor.observe(name, amount)
    document.amounts[kind] = _cut(msgspec.convert(predictor.snapshot(), _Amounts), CARRIED)


def _cut(amounts: _Amounts, last: int) -> _Amounts:
    levels = amounts.history
    return _Amounts(
        _Levels(_last(levels.pool, last), _newest(levels.heads, last), _newest(levels.keys, last)),
        _last(amounts.scores, last),
    )


def _newest(level: dict[str, list[float]], last: int) -> dict[str, list[float]]:
    """Of the keys, which lie in the order in which they were last seen, those seen last."""
    kept = islice(level.items(), max(0, len(level) - KEYS_KEPT), None)
    return {name: _last(amounts, last) for name, amounts in kept}


def _last(amounts: list[float], last: int) -> list[float]:
    return [float(f"{amount:.6g}") for amount in amounts[-last:]]


def _write(path: Path, document: _Document) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        draft.write_bytes(msgspec.json.encode(document))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    """The files of `folder` by the time of their last save."""
    try:
        found = [(path.stat().st_mtime_ns, path.name, path) for path in folder.glob("*.json")]
    except OSError as error:
        raise _Unreadable(f"{folder}: {error.strerror or error}") from None
    return [path for _, _, path in sorted(found, reverse=True)]


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """One process at a time adds to what is kept; half a second is waited for another."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        for _ in range(LOCK_LOOKS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOOK_S)
        else:
            raise _Unreadable(f"{folder} is being saved to by another run")
        yield
    finally:
        os.close(descriptor)
