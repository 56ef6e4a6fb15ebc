"""Statistics of a job's table: one pass, tokens by the model's own tokenizer, kept by content.

Of a big table blocks of rows are looked at, evenly from its beginning to its end, since tables are
often sorted. What neighbours have in common can still be seen within a block.

They lie in `<home>/stats/`, a JSON file under a hash of the table's content, of what is read of it
and of the tokenizer, so that a table is looked through once, however often it is planned for.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

from ..planner.errors import PlannerError
from ..planner.plan import Tokens
from ..planner.stats import TableStats, collect
from .backends.estimate import EstimatedTokenizer
from .calls import Message, Tokenizer
from .errors import InvalidInput
from .tables import BadRow, Table
from .tokenizer import HFTokenizer
from .workflow import ModelSpec

ROWS = 200_000  # of a bigger table about so many
BLOCK_ROWS = 1_000
SMALL_BYTES = 4 * 2**20  # of a file that is read whole, however many rows it has
FILES = 200  # of a home; those used last are kept
EVERY_ROWS = 1_000  # between two words about how far it is
_MARK = "\u2063x\u2063"  # stands for what a chat says when the template is probed

log = logging.getLogger(__name__)
Told = Callable[[int], None]


# ---- tokens ------------------------------------------------------------------------------------


def tokens_of(tokenizer: Tokenizer) -> Tokens:
    """How a model's texts become tokens, for the planner; each text is counted once."""
    if isinstance(tokenizer, HFTokenizer):
        name = blake2b(tokenizer.json.encode(), digest_size=8).hexdigest()
        count = tokenizer.count
    else:
        name, count = type(tokenizer).__name__, _counting(tokenizer)
    before, after = _around(tokenizer)
    return Tokens(_remembering(count), before, after, name)


def tokens_of_spec(spec: ModelSpec) -> Tokens:
    """The same for a model that is not opened: by its tokenizer's folder, else by estimate."""
    folder = spec.options.get("tokenizer")
    if spec.backend == "embedded":
        folder = spec.options.get("path", "tiny")
    if isinstance(folder, str) and folder == "tiny":
        from .models import tiny_path

        folder = str(tiny_path())
    if isinstance(folder, str) and (Path(folder) / "tokenizer.json").is_file():
        try:
            return replace(tokens_of(HFTokenizer(folder)), context_tokens=_context_of(Path(folder)))
        except InvalidInput as error:  # told where the model is opened
            log.info("%s", error)
    return Tokens()


def _context_of(folder: Path) -> int | None:
    """What a model takes, as its checkpoint says; a folder may have a tokenizer alone."""
    try:
        found: Any = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    match found:
        case {"max_position_embeddings": int(context)}:
            return context
        case _:
            return None


def _counting(tokenizer: Tokenizer) -> Callable[[Sequence[str]], list[int]]:
    if isinstance(tokenizer, EstimatedTokenizer):
        return lambda texts: [-(-len(text.encode("utf-8", "replace")) // 4) for text in texts]
    return lambda texts: [len(tokenizer.encode(text)) for text in texts]


def _remembering(
    count: Callable[[Sequence[str]], Sequence[float]],
) -> Callable[[Sequence[str]], Sequence[float]]:
    """`count`, which is asked once for a text that stands alone, such as a prompt's fixed part."""
    known: dict[str, float] = {}

    def counted(texts: Sequence[str]) -> Sequence[float]:
        if len(texts) != 1:
            return count(texts)
        (text,) = texts
        if text not in known:
            known[text] = count(texts)[0]
        return [known[text]]

    return counted


def _around(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens that a chat puts before and behind what is said."""
    try:
        whole = tokenizer.chat([Message("user", _MARK)])
        own = tokenizer.encode(_MARK)
    except InvalidInput:  # the model has no template
        return 0, 0
    other = tokenizer.chat([Message("user", "x")])
    before = next((i for i, (a, b) in enumerate(zip(whole, other, strict=False)) if a != b), 0)
    return before, max(0, len(whole) - before - len(own))


# ---- statistics --------------------------------------------------------------------------------


def table_stats(
    table: Table,
    columns: Mapping[str, str],
    tokens: Tokens,
    folder: Path | None,
    limit: int | None = None,
    tell: Told | None = None,
) -> TableStats:
    """The statistics of a table's `columns` by input, from `folder` where they are there.

    The table ends after `limit` rows. `tell` hears how many were read. Without a folder nothing is
    kept.
    """
    key = _key(table, columns, tokens, limit)
    path = None if folder is None else folder / f"{key}.json"
    known = None if path is None else _read(path)
    if known is not None:
        return known
    count = tokens.count if tokens.name else None
    every = _every(table)
    first = Random(key).randrange(every)
    found = collect(_inputs(table, columns, tell, every, first), tuple(columns), None, count)
    found = replace(found, sampled=every > 1)
    if path is not None:
        _write(path, found)
    return found


def _every(table: Table) -> int:
    """Of how many blocks one is looked at."""
    rows = table.rows_total
    if rows is None:
        rows = 0 if table.path.stat().st_size < SMALL_BYTES else table.count_rows()
    return max(1, ceil(rows / ROWS))


def _inputs(
    table: Table, columns: Mapping[str, str], tell: Told | None, every: int, first: int
) -> Iterator[dict[str, Any]]:
    """The inputs of the rows in each of `every` blocks, from block `first` on."""
    for number, item in enumerate(table):
        if tell is not None and number and number % EVERY_ROWS == 0:
            tell(number)
        if number // BLOCK_ROWS % every == first and not isinstance(item, BadRow):
            yield {name: item[1].get(column) for name, column in columns.items()}


def _key(table: Table, columns: Mapping[str, str], tokens: Tokens, limit: int | None) -> str:
    """A hash of all that statistics depend on."""
    parts = [table.fingerprint(), limit, dict(columns), ROWS, BLOCK_ROWS, tokens.name]
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _read(path: Path) -> TableStats | None:
    """What is kept; None where it is not there, or of another version."""
    try:
        found = TableStats.from_json(path.read_text(encoding="utf-8"))
        os.utime(path)
    except (OSError, UnicodeDecodeError, PlannerError):
        return None
    return found


def _write(path: Path, stats: TableStats) -> None:
    """Keep statistics; a failure is nothing that a run should end for."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".new", delete=False
        ) as file:
            file.write(stats.to_json())
        os.replace(file.name, path)
        _prune(path.parent)
    except OSError as error:
        log.info("%s: %s; the statistics are not kept", path, error.strerror or error)


def _prune(folder: Path) -> None:
    found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in found[:-FILES]:
        with suppress(OSError):
            path.unlink()
