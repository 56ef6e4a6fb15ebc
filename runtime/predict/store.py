"""What was learned, between runs: a JSON document per workflow and models (see `books` for where).

`NAME-DIGEST.json` holds what is known of the workflow NAME whose fingerprint, with that of its
models, has that digest; `tools.json` what is known of tools, by name and first argument word. A
save reads the document again, and adds what the run has seen: runs that end at the same time, on
several machines too, lose nothing of each other's. What is old fades with what is new: of each key
the last CARRIED amounts are kept, so a run's own count for more than all before it from then on.

No text is kept: lengths, seconds, names of steps and tools, hashes of words, counts of classes, stop
rules with the evidence of their shadow runs.
"""

import logging
import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from ...kvpolicy import Predictor
from ..reasoning.shadow import Shadows, State
from ..reasoning.shadow import restored as restored_shadow
from .asked import Row
from .books import Books, Unreadable
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
TOOLS_NAME = "tools.json"


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
    """A document."""

    version: int = VERSION
    workflow: str = ""
    fingerprint: str = ""
    amounts: dict[Kind, _Amounts] = {}
    rows: list[Row] = []
    rows_since_fit: int = 0
    ranker: dict[str, Any] | None = None
    shadows: dict[str, State] = {}


class Shelf:
    """The documents of one workflow on some models."""

    def __init__(self, books: Books, workflow: str, fingerprint: str) -> None:
        self._books = books
        self.workflow, self.fingerprint = workflow, fingerprint
        digest = blake2b(f"{workflow}\0{fingerprint}".encode(), digest_size=6).hexdigest()
        self._slug = re.sub(r"\W+", "_", workflow, flags=re.ASCII)[:40] or "_"
        self.name = f"{self._slug}-{digest}.json"

    def load(self) -> Known:
        """What is known; nothing, where there is no document or none that can be read."""
        known = Known()
        self._fill(known, self.name)
        self._fill(known, TOOLS_NAME)
        return known

    def _fill(self, known: Known, name: str) -> None:
        """Add what a document holds, or for a new workflow what its former self has learned."""
        try:
            document, last = self._read(name), CARRIED
            if document is None and name == self.name:
                document, last = self._predecessor(), EDITED
            if document is not None:
                _restore(known, document, last)
        except Unreadable as error:
            log.warning("%s; going on without what earlier runs have learned there", error)

    def _read(self, name: str) -> _Document | None:
        data = self._books.read(name)
        return None if data is None else _decoded(data, self._books.shown(name))

    def _predecessor(self) -> _Document | None:
        """What is known of the version of the workflow that was saved last."""
        pattern = re.compile(re.escape(self._slug) + r"-[0-9a-f]{12}\.json")
        with suppress(Unreadable):
            for name in self._books.names():
                document = self._read(name) if pattern.fullmatch(name) else None
                if document is not None and document.workflow == self.workflow:
                    document.rows.clear()
                    document.ranker = None
                    document.shadows = {}
                    return document
        return None

    def save(self, fresh: Fresh, known: Known) -> bool:
        """Add `fresh` to what is kept. False, and a warning, where it cannot be."""
        books = self._books
        try:
            news = fresh.rows or any(fresh.amounts.values()) or fresh.fitted
            if news or known.shadows.fresh:
                books.change(self.name, lambda old: self._workflow_with(old, fresh, known))
            if fresh.amounts[TOOLS]:
                books.change(TOOLS_NAME, lambda old: self._tools_with(old, fresh))
            spare = [name for name in books.names()[FILES:] if name != TOOLS_NAME]
            if spare:
                books.remove(spare)
        except Unreadable as error:
            log.warning("what this run has learned is not kept: %s", error)
            return False
        return True

    def _workflow_with(self, old: bytes | None, fresh: Fresh, known: Known) -> bytes:
        document = self._for_update(old, self.name)
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
        shadows.heed(known.shadows)
        shadows.add(known.shadows.fresh)
        document.shadows = {name: each.state() for name, each in shadows.monitors.items()}
        if fresh.fitted:
            document.rows_since_fit = known.rows_since_fit
            document.ranker = dict(known.ranker.data()) if known.ranker is not None else None
        return msgspec.json.encode(document)

    def _tools_with(self, old: bytes | None, fresh: Fresh) -> bytes:
        document = self._for_update(old, TOOLS_NAME) or _Document()
        _add(document, TOOLS, fresh, CARRIED)
        return msgspec.json.encode(document)

    def _for_update(self, old: bytes | None, name: str) -> _Document | None:
        """The document to add to; a damaged one is made anew, a newer one left alone."""
        if old is None:
            return None
        try:
            document = _decoded(old, self._books.shown(name))
            _restore(Known(), document, 1)
            return document
        except _Newer:
            raise
        except Unreadable as error:
            log.warning("%s; it is written anew", error)
            return None


class _Newer(Unreadable):
    """A document of a newer Tenter, which must not be overwritten."""


def _decoded(data: bytes, shown: str) -> _Document:
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version > VERSION:
            raise _Newer(
                f"{shown} is of a newer Tenter (version {version}; this one reads {VERSION})"
            )
        return msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"{shown} is damaged ({error})") from None


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
        raise Unreadable(f"what was learned is damaged ({error})") from None


def _ranker(data: Mapping[str, Any]) -> Any:
    try:
        return restored(data)
    except ValueError as error:
        raise Unreadable(f"what was learned is damaged ({error})") from None


def _shadows(document: _Document) -> Shadows:
    try:
        return Shadows({name: restored_shadow(one) for name, one in document.shadows.items()})
    except ValueError as error:
        raise Unreadable(f"what was learned is damaged ({error})") from None


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
