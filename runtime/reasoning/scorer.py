"""What a scorer is asked, and what it may answer.

A scorer is an author's function, a tool or a model: its answers are judged before they steer
anything. A higher reward is a better thought; for `Routed` it is a harder part.
"""

import math
from typing import Any

from .nouns import Event, Failed, Scored

# What a scorer may ask to be told; it is given those that it names.
ARGUMENTS = {
    "question": "the step's prompt",
    "thought": "the text of the sample so far",
    "answer": "the answer of a sample that has ended, else nothing",
    "part": "the sub-problem whose difficulty is asked for (routed)",
}
MOST = 1e9


def reward_of(value: Any) -> float:
    """The reward that a scorer gave; ValueError says why it is none.

    True and False are 1 and 0. Sums and exponentials of what passes stay finite.
    """
    number = isinstance(value, int | float)
    if not number or abs(value) > MOST or math.isnan(value):
        raise ValueError(
            f"the scorer gave {value!r:.60}; a reward is a number between -1e9 and 1e9"
        )
    return float(value)


def checked(event: Event) -> Event:
    """A reward that is none is a scorer that failed, whoever drives."""
    if isinstance(event, Scored):
        try:
            reward_of(event.reward)
        except ValueError as error:
            return Failed(event.request, str(error))
    return event


def chance(logprobs: tuple[float, ...]) -> float:
    """The probability of the first of some choices, given that it is one of them."""
    top = max(logprobs)
    weights = [math.exp(each - top) for each in logprobs]
    return weights[0] / math.fsum(weights)


def unknown_arguments(names: list[str]) -> str | None:
    """What is wrong with the arguments that a scorer wants; None if they are known."""
    spare = [name for name in names if name not in ARGUMENTS]
    if not spare:
        return None
    known = "; ".join(f"{name}: {what}" for name, what in ARGUMENTS.items())
    return f"a scorer is not told {spare[0]!r}; it may ask for {known}"
