"""The nouns of prediction: a call as it is asked, and what is expected of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

CLASSES = 128  # of prompt tokens, by a hash
SEEN = 256  # the last tokens of a prompt that are looked at
_MIX = 0x9E3779B1  # Knuth's multiplicative hash: 2**32 over the golden ratio
_SHIFT = 25  # of a 32-bit hash, its upper log2(CLASSES) bits

Count = Annotated[int, Meta(ge=0)]


class Asked(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is known of a call before it runs; `classes` counts the last tokens of its prompt.

    No text and no token can be read back from it, so that it may be kept between runs.
    """

    step: str  # workflow and step
    prompt_tokens: Count
    own_tokens: Count  # of the prompt, behind what it shares with others
    max_tokens: Count
    calls: Count  # of its program that have ended
    program_tokens: Count  # that they have written
    last_tokens: Count  # that the last of them has written
    usual_tokens: float  # the mean of the step so far; 0: nothing is known
    schema: bool = False  # the answer has to fit one
    session: bool = False
    classes: bytes = b""


class Row(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A call that was answered. Rows of one `program` are never split between fit and judgement."""

    program: Count
    tokens: Count  # of the answer
    asked: Asked


@dataclass(frozen=True, slots=True)
class Hints:
    """What a call is expected to take, as `CallReady` has it; None: nothing is known."""

    expected_tokens: float | None = None  # of its answer
    remaining_tokens: float | None = None  # work of its program, this call included


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is still to come of a program. Means, or one quantile each; None: nothing is known.

    `work_tokens` are prompt tokens to compute and OUTPUT_WEIGHT times the output tokens.
    """

    calls: float | None
    output_tokens: float | None
    work_tokens: float | None


def token_classes(token_ids: Sequence[int], skip: int = 0) -> bytes:
    """How often each of CLASSES classes occurs among the last SEEN tokens behind the first `skip`.

    What all prompts of a step share tells nothing of one of them, hence `skip`.
    """
    counts = bytearray(CLASSES)
    for token in token_ids[max(skip, len(token_ids) - SEEN) :]:
        at = (token * _MIX & 0xFFFFFFFF) >> _SHIFT
        if counts[at] < 255:
            counts[at] += 1
    return bytes(counts)
