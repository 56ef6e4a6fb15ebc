"""How a worker is shared out among processes: max-min fair by what each says it needs.

Max-min fairness (D. Bertsekas, R. Gallager, Data Networks, 1992, section 6.5.2): nobody's share can
grow but at the cost of one that is no larger. Here each is given a minimum besides, so that what
comes up between two beats may start at once, and what nobody needs is shared out evenly.
"""

from collections.abc import Sequence
from typing import NamedTuple

LEAST = 8  # a process always gets this fraction of an equal share


class Amount(NamedTuple):
    """KV tokens and calls at once, of one worker."""

    tokens: int = 0
    slots: int = 0


def fair_share(whole: int, mine: int, others: Sequence[int]) -> int:
    """What one process gets of `whole`, where it and the others need so much."""
    least = whole // (LEAST * (len(others) + 1))
    needs = sorted(max(need, least) for need in others)
    my_need = max(mine, least)
    left, share = whole, 0
    for place, need in enumerate(sorted((*needs, my_need))):
        level = left // (len(needs) + 1 - place)
        if need > level:  # and so all that come after it
            return level if my_need >= need else share
        if need == my_need:
            share = need
        left -= need
    return share + left // (len(needs) + 1)


def fair(whole: Amount, mine: Amount, others: Sequence[Amount]) -> Amount:
    """`fair_share` of tokens and of slots; of slots at least one."""
    return Amount(
        fair_share(whole.tokens, mine.tokens, [other.tokens for other in others]),
        max(1, fair_share(whole.slots, mine.slots, [other.slots for other in others])),
    )


def equal_split(whole: Amount, processes: int) -> Amount:
    """What each of so many processes gets where nobody knows what they need."""
    return Amount(whole.tokens // processes, max(1, whole.slots // processes))
