"""Recorded requests of chat services: Mooncake's conversations and Azure's code completions."""

import csv
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path

import msgspec

from .program import Pause, Program, Span, Turn, Workload, joined
from .text import open_text, row_error

MOONCAKE_TOKENS = 512  # of a block


class _Asked(msgspec.Struct, frozen=True, gc=False):
    """A line of Mooncake's file. `timestamp` is in milliseconds."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def mooncake(path: Path | str) -> Workload:
    """agents/mooncake_conversation.jsonl.gz as conversations, at their recorded times.

    A request goes on with the conversation whose last request had all its whole blocks (two or
    more) at the beginning of this one's; the person's pause is the time between the two requests
    (so it includes the answer's own). All conversations are in memory while iterating, their
    blocks as runs. Raises InvalidInput while iterating, for a damaged file.
    """
    return Workload("mooncake", lambda: _conversations(Path(path)))


def _conversations(path: Path) -> Iterator[Program]:
    conversations: list[tuple[float, list[Turn]]] = []
    # The last whole block of a conversation (a hash of all up to it), and where it goes on.
    open_ends: dict[int, tuple[int, float]] = {}
    for index, asked in enumerate(_asked(path)):
        at_s = asked.timestamp / 1000
        turn = _turn(asked, tail=index + 1)
        before = next((b for b in reversed(asked.hash_ids[1:]) if b in open_ends), None)
        if before is None:
            place = len(conversations)
            conversations.append((at_s, [turn]))
        else:
            place, last_s = open_ends.pop(before)
            turns = conversations[place][1]
            pause = Pause(at_s - last_s, "human")
            turns[-1] = Turn(turns[-1].prompt, turns[-1].output_tokens, pause)
            turns.append(turn)
        whole = asked.input_length // MOONCAKE_TOKENS
        if whole > 1:
            open_ends[asked.hash_ids[whole - 1]] = place, at_s
    for index, (at_s, turns) in enumerate(conversations):
        stages = tuple((turn,) for turn in turns)
        yield Program(at_s, f"conversation-{index}", stages, "chat", f"user-{index}")


def _asked(path: Path) -> Iterator[_Asked]:
    decode, latest = msgspec.json.Decoder(_Asked).decode, 0.0
    with open_text(path) as file:
        for line, text in enumerate(file, start=1):
            try:
                asked = decode(text)
                if asked.timestamp < latest:
                    raise ValueError("timestamps go back")
                if asked.input_length < 1:
                    raise ValueError("input_length must be at least 1")
                if len(asked.hash_ids) != -(-asked.input_length // MOONCAKE_TOKENS):
                    raise ValueError("hash_ids must have one block per 512 tokens of input_length")
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                raise row_error(path, line, error) from None
            latest = asked.timestamp
            yield asked


def _turn(asked: _Asked, tail: int) -> Turn:
    """Whole blocks are pieces of stream 0; what is left over is the request's own."""
    size, whole = MOONCAKE_TOKENS, asked.input_length // MOONCAKE_TOKENS
    blocks = (Span(0, block * size, (block + 1) * size) for block in asked.hash_ids[:whole])
    prompt = joined((*blocks, Span(tail, 0, asked.input_length - whole * size)))
    return Turn(prompt, max(asked.output_length, 1))


def azure_code(path: Path | str) -> Workload:
    """lengths/azure_code.csv.gz: one program of one turn per request, nothing shared, at the
    recorded times. Raises InvalidInput while iterating, for a damaged file."""
    return Workload("azure-code", lambda: _completions(Path(path)))


def _completions(path: Path) -> Iterator[Program]:
    first, streams = None, count()
    with open_text(path) as file:
        reader = csv.DictReader(file)
        try:
            for index, row in enumerate(reader):
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                first = first or at
                prompt = (Span(next(streams), 0, max(int(row["ContextTokens"]), 1)),)
                turn = Turn(prompt, max(int(row["GeneratedTokens"]), 1))
                arrival_s = (at - first).total_seconds()
                yield Program(arrival_s, f"request-{index}", ((turn,),), "completion")
        except (KeyError, ValueError, TypeError) as error:
            raise row_error(path, reader.line_num, error) from None
