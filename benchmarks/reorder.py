"""Rows and fields in an order that a prefix cache likes: hit rates, and what the planner costs.

    python benchmarks/reorder.py [--quick] [--data DIR]

For every table of DIR/tables: the share of prompt tokens (cl100k) that a paged cache of 16-token
blocks holds, for the author's order, a fixed order by statistics, GGR as published, and ours, with
an unlimited cache and with 16k, 64k and 256k tokens (LRU). `ggr` measures values in characters, as
published, `ggr_tokens` fields as rendered; the published 0.801 rests on columns merged by hand. A
prompt is an instruction of about 75 tokens and the row as a JSON object, whose fields are all free.
`solver_s` is CPU time from codes to order; statistics and tokenising are timed apart. Prompts are
put together from the tokens of their segments; without `--quick` each is tokenised whole.
"""

import argparse
import csv
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _cl100k import Cl100k
from _common import Figures, one_thread
from _ggr import Ggr

from tenter.planner.reorder import Layout, Table, arrange, encode, error_of_sums
from tenter.planner.reorder.search import by_statistics
from tenter.planner.reorder.solve import depth_first
from tenter.planner.stats import collect

BLOCK = 16
CACHES = (None, 16_384, 65_536, 262_144)
INSTRUCTION = (
    "You work for a team that reads tables. Below is one row of a table, written as a JSON object "
    "whose keys are the names of the columns. Read all of its fields with care, then decide "
    "whether the record should be looked at by a person before it is published. Reply with YES or "
    "NO, in capitals, without any explanation. The row to judge:\n"
)
PUBLISHED = {"beer": {"original": 0.499, "ggr": 0.801}}
Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Ordered:
    """The rows in order, each with the order of its fields, and the seconds it took to find."""

    rows: Sequence[int]
    order_of: Callable[[int], Sequence[int]]
    solver_s: float


def methods(rows: list[Row], table: Table) -> Iterator[tuple[str, Ordered]]:
    fields = range(len(table.columns))
    yield "original", Ordered(range(len(rows)), lambda row: fields, 0.0)
    started_s = time.process_time()
    order = by_statistics(table)
    sorted_rows = depth_first(table, [order], [0] * len(rows))
    yield "fixed", Ordered(sorted_rows, lambda row: order, time.process_time() - started_s)
    chars = [[len(value) for value in column] for column in zip(*rows, strict=True)]
    tokens = [list(map(column.tokens.__getitem__, column.codes)) for column in table.columns]
    for name, lengths in (("ggr", chars), ("ggr_tokens", tokens)):
        started_s = time.process_time()
        ggr = Ggr.solve([column.codes for column in table.columns], lengths)
        yield name, Ordered(ggr.rows, ggr.orders.__getitem__, time.process_time() - started_s)
    started_s = time.process_time()
    ours = arrange(table)
    yield "ours", Ordered(ours.rows, ours.order_of, time.process_time() - started_s)


class Prompts:
    """Token ids of prompts: of segments joined, each tokenised once, or of the whole text."""

    def __init__(self, rows: list[Row], layout: Layout, tokenizer: Cl100k, whole: bool) -> None:
        self.rows, self.layout, self.tokenizer, self.whole = rows, layout, tokenizer, whole
        self.known: dict[tuple[int, str, bool, bool], list[int]] = {}
        self.before = tokenizer.ids([layout.before[:-1]])[0]  # the brace goes with the first field

    def blocks(self, ordered: Ordered) -> Iterator[tuple[list[int], int]]:
        """The hash of each prefix of whole blocks, and the tokens in all, per prompt in order."""
        for start in range(0, len(ordered.rows), 2048):
            part = ordered.rows[start : start + 2048]
            for ids in self._whole(part, ordered) if self.whole else self._joined(part, ordered):
                prefix, keys = 0, list[int]()
                for at in range(0, len(ids) - BLOCK + 1, BLOCK):
                    prefix = hash((prefix, *ids[at : at + BLOCK]))
                    keys.append(prefix)
                yield keys, len(ids)

    def _whole(self, part: Sequence[int], ordered: Ordered) -> list[list[int]]:
        texts = [self.layout.render(self.rows[row], ordered.order_of(row)) for row in part]
        return self.tokenizer.ids(texts)

    def _joined(self, part: Sequence[int], ordered: Ordered) -> Iterator[list[int]]:
        names = [self._names(row, ordered.order_of(row)) for row in part]
        new = [n for n in dict.fromkeys(n for row in names for n in row) if n not in self.known]
        ids = self.tokenizer.ids([self._text(name) for name in new])
        self.known.update(zip(new, ids, strict=True))
        for row in names:
            yield [*self.before, *(token for name in row for token in self.known[name])]

    def _names(self, row: int, order: Sequence[int]) -> list[tuple[int, str, bool, bool]]:
        values, last = self.rows[row], len(order) - 1
        return [(c, values[c], at == 0, at == last) for at, c in enumerate(order)]

    def _text(self, name: tuple[int, str, bool, bool]) -> str:
        column, value, first, last = name
        text = self.layout.segment(column, self.layout.fields[column].written(value))
        text = "{" + text.lstrip(" ") if first else text
        return text.removesuffix(",") + "}" if last else text


def hit_rate(prompts: list[tuple[list[int], int]], cache_tokens: int | None) -> float:
    """The share of tokens found in an LRU cache of blocks that drops leaves before their roots."""
    room = None if cache_tokens is None else cache_tokens // BLOCK
    held: OrderedDict[int, None] = OrderedDict()
    hits = tokens = 0
    for keys, length in prompts:
        tokens += length
        for key in keys:
            if key not in held:
                break
            hits += BLOCK
        for key in reversed(keys):
            held[key] = None
            held.move_to_end(key)
        while room is not None and len(held) > room:
            held.popitem(last=False)
    return hits / max(tokens, 1)


def read(path: Path) -> tuple[list[str], list[Row]]:
    """A table's columns, whose names are made to differ, and its rows; cells that a short row lacks
    are empty, and those beyond the header are left out."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    names: list[str] = []
    for name in header:
        names.append(f"{name}_{len(names)}" if name in names else name)
    width = len(names)
    return names, [(row + [""] * width)[:width] for row in rows]


def measure(path: Path, tokenizer: Cl100k, figures: Figures, quick: bool) -> None:
    names, rows = read(path)
    if not rows:
        print(f"{path.name} is left out: it has no rows", file=sys.stderr)
        return
    layout = Layout.json_object(names, INSTRUCTION, free=names)
    started_s = time.process_time()
    table = encode(rows, layout, tokenizer.count)
    encode_s = time.process_time() - started_s
    prompts = Prompts(rows, layout, tokenizer, whole=not quick)
    started_s = time.process_time()
    collect((dict(zip(names, row, strict=True)) for row in rows), names)
    stats_s = time.process_time() - started_s
    where = {"table": path.stem, "rows": len(rows)}
    for method, ordered in methods(rows, table):
        figures.add("solver_s", ordered.solver_s, unit="s", **where, method=method)
        found = list(prompts.blocks(ordered))
        for cache in CACHES:
            known = PUBLISHED.get(path.stem, {}).get(method) if cache is None else None
            setup = {**where, "method": method, "cache_tokens": cache}
            figures.add("hit_rate", hit_rate(found, cache), known, **setup)
    rate = table.prompt_tokens / max(encode_s, 1e-9)
    figures.add("encode_tokens_per_s", rate, unit="tokens/s", **where)
    figures.add("stats_tokens_per_s", table.prompt_tokens / max(stats_s, 1e-9), **where)
    few = rows[:: max(1, len(rows) // 300)]
    figures.add("error_of_sums", error_of_sums(few, layout, tokenizer.count), **where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    one_thread()
    figures = Figures("reorder")
    paths = sorted((given.data / "tables").glob("*.csv"))
    if not paths:
        sys.exit(f"no tables: {given.data}/tables has no CSV file; name the folder by --data")
    csv.field_size_limit(1 << 30)
    tokenizer = Cl100k()
    for path in paths:
        measure(path, tokenizer, figures, given.quick)
    figures.table("Row and field order")


if __name__ == "__main__":
    main()
