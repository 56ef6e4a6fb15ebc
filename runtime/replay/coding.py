"""Recorded sessions of a coding agent: agents/coding_sessions.csv.gz of the shared data.

What is taken from the file and what is assumed is written down in docs/replay.md.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path
from random import Random
from typing import Literal

from .program import Pause, Program, Prompt, Span, Turn, Workload, cut, joined, shared_tokens
from .text import number, open_text, row_error

BLOCK_TOKENS = 64
LONGEST_TOOL_S = 60.0  # a longer gap is a person's

Gaps = Literal["recorded", "drawn", "capped"]
_Row = dict[str, str]


def coding_sessions(path: Path | str, gaps: Gaps = "drawn", seed: int = 0) -> Workload:
    """Every session, and every agent that it started, as a program that arrives at 0.

    `gaps` says what becomes of pauses over 60 s, which are people's: "recorded" keeps them,
    "drawn" replaces each by one of the same session's shorter ones (60 s if it has none) at
    random, "capped" makes each 60 s. Raises InvalidInput while iterating, for a damaged file.
    """
    if gaps not in ("recorded", "drawn", "capped"):
        raise ValueError(f"gaps must be recorded, drawn or capped, got {gaps!r}")
    return Workload(f"coding-sessions/{gaps}", lambda: _programs(Path(path), gaps, seed))


def _programs(path: Path, gaps: Gaps, seed: int) -> Iterator[Program]:
    random, streams = Random(seed), _Streams()
    with open_text(path) as file:
        reader = csv.DictReader(file)
        numbered = ((reader.line_num, row) for row in reader)
        for trace, rows in groupby(numbered, lambda pair: pair[1].get("trace", "")):
            for agent, turns in _sessions(path, rows, streams).items():
                yield _program(trace + agent, trace, turns, gaps, random)


def _program(
    name: str, user: str, turns: list[tuple[Turn, float]], gaps: Gaps, random: Random
) -> Program:
    """`turns` come with the gap before each; a pause belongs to the turn before it."""
    before_s = [gap_s for _, gap_s in turns[1:]]
    tool_like = [gap_s for gap_s in before_s if gap_s <= LONGEST_TOOL_S] or [LONGEST_TOOL_S]
    pauses = [_pause(gap_s, gaps, tool_like, random) for gap_s in before_s]
    stages = [
        (Turn(t.prompt, t.output_tokens, p),) for (t, _), p in zip(turns, pauses, strict=False)
    ]
    return Program(0.0, name, (*stages, (turns[-1][0],)), "coding", user)


def _pause(gap_s: float, gaps: Gaps, tool_like: list[float], random: Random) -> Pause:
    if gap_s <= LONGEST_TOOL_S:
        return Pause(gap_s)
    match gaps:
        case "recorded":
            return Pause(gap_s, "human")
        case "drawn":
            return Pause(random.choice(tool_like))
        case "capped":
            return Pause(LONGEST_TOOL_S)


@dataclass(slots=True)
class _Streams:
    """Names for what is shared by all sessions, and for all else."""

    fresh: Iterator[int] = field(default_factory=count)
    shared: dict[tuple[int, ...], int] = field(default_factory=dict[tuple[int, ...], int])

    def of(self, *key: int) -> int:
        return self.shared.setdefault(key, next(self.fresh))


@dataclass(frozen=True, slots=True)
class _Seen:
    """An earlier request of the same trace."""

    prompt: Prompt
    tokens: int

    @property
    def blocks(self) -> int:
        return self.tokens // BLOCK_TOKENS


def _sessions(
    path: Path, rows: Iterable[tuple[int, _Row]], streams: _Streams
) -> dict[str, list[tuple[Turn, float]]]:
    """The turns of each agent of one trace, with the gap before each."""
    seen: list[_Seen] = []
    heads: set[tuple[int, ...]] = set()
    agents: dict[str, list[tuple[Turn, float]]] = {}
    latest: dict[str, tuple[_Row, _Seen]] = {}
    for line, row in rows:
        try:
            agent, tokens = row["path"], max(int(row["in"]), 1)
            row_before, before = latest.get(agent, (None, None))
            now = _Seen(_prompt(row, tokens, before, seen, heads, streams), tokens)
            turn = Turn(now.prompt, max(int(row["out"]), 1))
            agents.setdefault(agent, []).append((turn, _gap_s(row, row_before)))
        except (KeyError, ValueError, TypeError) as error:
            raise row_error(path, line, error) from None
        seen.append(now)
        latest[agent] = row, now
    return agents


def _gap_s(row: _Row, before: _Row | None) -> float:
    """From the last answer to this request. Where it was not recorded: between the requests."""
    if row["think_time"]:
        return max(number(row["think_time"]), 0.0)
    if before is None:
        return 0.0
    busy_s = number(before["api_time"] or "0")
    return max(number(row["t"]) - number(before["t"]) - busy_s, 0.0)


def _prompt(
    row: _Row,
    tokens: int,
    before: _Seen | None,
    seen: list[_Seen],
    heads: set[tuple[int, ...]],
    streams: _Streams,
) -> Prompt:
    """As much of an earlier prompt as was recorded to be shared, and something new."""
    best, previous = int(row["lcp_best"]), int(row["lcp_prev"])
    if best == 0:
        head = () if before else _head(row, heads, streams)
        return _filled(cut(head, tokens), tokens, next(streams.fresh))
    if before and previous == best <= before.blocks:
        donor = before
    else:
        donor = _donor(seen, best, before, previous)
    if donor is before and best == donor.blocks and tokens > donor.tokens:
        return _filled(donor.prompt, tokens, donor.prompt[-1].stream)
    return _filled(cut(donor.prompt, min(best * BLOCK_TOKENS, tokens)), tokens, next(streams.fresh))


def _donor(seen: list[_Seen], blocks: int, before: _Seen | None, previous: int) -> _Seen:
    """The latest earlier request with so many blocks that shares `previous` of them with `before`.

    Without such a one, the latest with so many blocks.
    """
    long_enough = [one for one in reversed(seen) if one.blocks >= blocks]
    if not long_enough:
        raise ValueError(f"no earlier request of the trace has {blocks} blocks")
    for one in long_enough:
        if before and shared_tokens(one.prompt, before.prompt) // BLOCK_TOKENS == previous:
            return one
    return long_enough[0]


def _head(row: _Row, heads: set[tuple[int, ...]], streams: _Streams) -> Prompt:
    """Tool definitions and system prompt: taken to be equal where their lengths are.

    Not within a trace, where it is recorded what is shared.
    """
    tools, system = int(row["tool_tokens"]), int(row["system_tokens"])
    if (tools, system) in heads:
        return ()
    heads.add((tools, system))
    return joined((Span(streams.of(tools), 0, tools), Span(streams.of(tools, system), 0, system)))


def _filled(prompt: Prompt, tokens: int, stream: int) -> Prompt:
    """`prompt`, and `stream` up to `tokens` tokens: where that stream ends the prompt, it goes on."""
    missing = tokens - sum(map(len, prompt))
    start = prompt[-1].stop if prompt and prompt[-1].stream == stream else 0
    return joined((*prompt, Span(stream, start, start + missing)))
