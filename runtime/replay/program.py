"""The nouns of a replay: what programs ask of a model, when, and which of their text is equal.

A prompt is a tuple of spans. A stream is an endless text that everybody agrees on, a span a piece
of it: two prompts share a prefix exactly as far as their spans read the same pieces of the same
streams. So a system prompt is one stream for all programs, a session another one that grows by a
piece per turn, and a block of a recorded trace is a piece of the stream of blocks.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

POSITION_BITS = 32  # a stream is shorter than 2**32 tokens
STREAM_BITS = 31  # with both, a token id fits into a signed 64-bit integer

StreamId = Annotated[int, Meta(ge=0, lt=1 << STREAM_BITS)]
Position = Annotated[int, Meta(ge=0, lt=1 << POSITION_BITS)]
Seconds = Annotated[float, Meta(ge=0)]
Tokens = Annotated[int, Meta(ge=1, lt=1 << POSITION_BITS)]


class Span(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Tokens `start` up to, not including, `stop` of a stream."""

    stream: StreamId
    start: Position
    stop: Position

    def __len__(self) -> int:
        return self.stop - self.start


Prompt = tuple[Span, ...]


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """What a program waits for after a turn: a tool, or a person."""

    seconds: Seconds
    kind: Literal["tool", "human"] = "tool"
    tool: str = ""  # its name, where known
    word: str = ""  # the first word of its argument: `git` of a shell's `git log`


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """One call of the model.

    The answer reads on in the stream of the prompt's last span, so a later prompt that holds that
    piece of the stream shares the answer's KV too.
    """

    prompt: Annotated[Prompt, Meta(min_length=1)]
    output_tokens: Tokens
    pause: Pause | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompt))

    @property
    def answer(self) -> Span:
        """The piece of text that the model writes."""
        last = self.prompt[-1]
        return Span(last.stream, last.stop, last.stop + self.output_tokens)


class Program(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True
):
    """One agent, or one request of a pipeline.

    The turns of a stage run side by side. A stage begins when every turn of the one before it has
    been answered and every pause after them is over; the first begins on arrival.
    """

    arrival_s: Seconds
    name: str
    stages: Annotated[
        tuple[Annotated[tuple[Turn, ...], Meta(min_length=1)], ...], Meta(min_length=1)
    ]
    kind: str = ""  # programs of one kind are of one workflow
    user: str = ""

    @property
    def turns(self) -> Iterator[Turn]:
        """All turns, in the order of the stages."""
        return (turn for stage in self.stages for turn in stage)


@dataclass(frozen=True)
class Workload:
    """Programs in order of arrival. Iterating makes them anew each time, one after another."""

    name: str
    make: Callable[[], Iterator[Program]]

    def __iter__(self) -> Iterator[Program]:
        return self.make()

    @cached_property
    def programs(self) -> int:
        """How many there are; counted once, by reading all."""
        return sum(1 for _ in self)


# ---- prompts -----------------------------------------------------------------------------------


def joined(spans: Iterable[Span]) -> Prompt:
    """`spans` as a prompt: empty ones left out, neighbours in a stream made one."""
    prompt: list[Span] = []
    for span in spans:
        if prompt and (last := prompt[-1]).stream == span.stream and last.stop == span.start:
            prompt[-1] = Span(span.stream, last.start, span.stop)
        elif span.stop > span.start:
            prompt.append(span)
    return tuple(prompt)


def cut(prompt: Prompt, tokens: int) -> Prompt:
    """The first `tokens` tokens of `prompt`, or all of it if it is shorter."""
    kept: list[Span] = []
    for span in prompt:
        if tokens <= 0:
            break
        kept.append(Span(span.stream, span.start, min(span.stop, span.start + tokens)))
        tokens -= len(span)
    return tuple(kept)


def shared_tokens(one: Prompt, other: Prompt) -> int:
    """How long the common beginning of two prompts is."""
    shared = 0
    for mine, theirs in zip(joined(one), joined(other), strict=False):
        if (mine.stream, mine.start) != (theirs.stream, theirs.start):
            break
        shared += min(len(mine), len(theirs))
        if len(mine) != len(theirs):
            break
    return shared


def new_tokens(turn: Turn, before: Turn | None) -> int:
    """Tokens of the prompt of `turn` that are neither in the prompt nor the answer of `before`."""
    if before is None:
        return turn.prompt_tokens
    known = joined((*before.prompt, before.answer))
    return turn.prompt_tokens - shared_tokens(turn.prompt, known)


def token_ids(prompt: Prompt) -> list[int]:
    """A token id for every token: equal ids at equal places, exactly where the text is equal."""
    ids: list[int] = []
    for span in prompt:
        base = span.stream << POSITION_BITS
        ids += range(base + span.start, base + span.stop)
    return ids


def page_ids(prompt: Prompt, page_tokens: int) -> list[int]:
    """An id for every whole page of `prompt`: two pages have equal ids if their tokens are equal.

    A radix tree over these ids with pages of one is the tree over `token_ids` with pages of
    `page_tokens`, at that fraction of the work. Ids of pages that lie in one span are their first
    token's; the others are negative hashes.
    """
    ids: list[int] = []
    pieces: list[tuple[int, int]] = []  # of the page that is not full yet: first id, length
    filled = 0
    for span in prompt:
        first = (span.stream << POSITION_BITS) + span.start
        stop = (span.stream << POSITION_BITS) + span.stop
        if filled:
            taken = min(page_tokens - filled, len(span))
            pieces.append((first, taken))
            filled, first = filled + taken, first + taken
            if filled == page_tokens:
                ids.append(_page(pieces))
                pieces, filled = [], 0
        whole = (stop - first) // page_tokens * page_tokens
        ids += range(first, first + whole, page_tokens)
        if first + whole < stop:
            pieces, filled = [(first + whole, stop - first - whole)], stop - first - whole
    return ids


def _page(pieces: list[tuple[int, int]]) -> int:
    """The id of a page made of runs of tokens, however they were cut."""
    runs: list[tuple[int, int]] = []
    for first, length in pieces:
        if runs and sum(runs[-1]) == first:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((first, length))
    if len(runs) == 1:
        return runs[0][0]
    digest = blake2b(repr(runs).encode(), digest_size=8).digest()
    return ~(int.from_bytes(digest, "big") >> 1)
