"""Whose turn it is: order policies, each a pure key over one waiting call; the smallest goes first.

Equal keys go by the program's priority, then by the sequence in which calls became ready, so an
order is total and deterministic. No order starves a call. Those that could are aged: what was
passed over for PASSED decisions goes first, the oldest first, for TURNS decisions, after which the
count begins anew (vllm-ltr, 2408.15792, section 4.3; there for each request by itself, here for a
whole line at once, so that aging costs nothing while a call waits).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import frexp

from .placement import OUTPUT_WEIGHT
from .state import CallView

PASSED, TURNS = 200, 10  # decisions (vllm-ltr's threshold and quantum)
LEVEL_TOKENS = 2_048 * OUTPUT_WEIGHT  # work up to which a program stays on the first level
BETA = 4.0  # a program that has waited so many times as long as it was served is promoted
LEAST_SERVED_S = 1.0  # and that has been served for a moment only is not, for every short wait
PATIENT_S = 3_600.0  # programs without a deadline are ordered as if wanted after so long

Key = Callable[[CallView], float]


@dataclass(frozen=True, slots=True)
class Order:
    """An order policy. Called with a view it gives the call's key.

    `ages`: what was passed over too often goes first for a while. `promoted_at_s`: when a call that
    still waits is to be asked for its key again, None: never. `fair`: tenants take turns by the work
    that was done for them, and the key ranks the calls of one tenant.
    """

    key: Key
    ages: bool = False
    promoted_at_s: Callable[[CallView], float | None] | None = None
    fair: bool = False

    def __call__(self, call: CallView) -> float:
        return self.key(call)


def program_fcfs(call: CallView) -> float:
    """Programs in the order of their arrival, whichever call is ready first.

    Continuum (2511.02230), section 4: a late turn of an early program precedes the first turn of
    a late one, so that programs finish instead of all advancing a little. A plan may give a call
    the turn of an earlier program, whose prompts begin as its own does.
    """
    return call.program_arrival if call.order_key is None else call.order_key


def call_fcfs(call: CallView) -> float:
    """Calls in the order in which they became ready: what an engine does that knows no programs."""
    return call.sequence


def least_attained(call: CallView) -> float:
    """Programs with the least service so far first (Autellix, 2502.13965, section 4.2).

    Service is the work of the longest chain of finished calls, so a program is not set back for
    calling in parallel. Levels double; within one, calls go in the order in which they became
    ready. A program that has waited BETA times as long as it was served is on the first level.
    """
    if call.now_s >= _promoted_at_s(call):
        return 0.0
    return _level(call.program_path_tokens)


def _promotion(call: CallView) -> float | None:
    at_s = _promoted_at_s(call)
    return at_s if at_s > call.now_s and _level(call.program_path_tokens) else None


def _promoted_at_s(call: CallView) -> float:
    served_s = max(LEAST_SERVED_S, call.program_served_s)
    return call.ready_at_s + BETA * served_s - call.program_waited_s


def _level(tokens: float) -> float:
    return max(0.0, float(frexp(tokens / LEVEL_TOKENS)[1]))


def shortest_remaining(call: CallView) -> float:
    """Programs with the least work left first, as predicted (vllm-ltr, 2408.15792).

    Without a prediction a program is taken to be half done: what has taken long takes as long
    again, as heavy-tailed work does.
    """
    if call.remaining_tokens is not None:
        return call.remaining_tokens
    return call.work_tokens + call.program_path_tokens


def deadline(call: CallView) -> float:
    """The most urgent first: the time of the step less what is left of its budget.

    HexGen-Text2SQL (2505.05286), section 4: what is left until the program's deadline is shared out
    over its stages in proportion to their expected times, and urgency is the expected time of this
    one less the rest of its budget. All that wait become urgent alike, so the key, the time at
    which a call must begin, stays as it is while it waits.
    """
    due_s = call.program_deadline_s
    if due_s is None:
        due_s = call.program_arrived_s + PATIENT_S
    left = shortest_remaining(call)
    share = min(1.0, call.work_tokens / left) if left > 0 else 1.0
    budget_s = (due_s - call.ready_at_s) * share
    return call.ready_at_s + budget_s - call.work_tokens * call.s_per_token


def virtual_finish(call: CallView) -> float:
    """Programs of a tenant by their virtual finish: as if all of them ran side by side.

    UWFQ (2510.15485): the second of its two levels; `fair` has the first.
    """
    return call.program_finish


ORDERS: dict[str, Order] = {
    "fcfs": Order(program_fcfs),
    "call-fcfs": Order(call_fcfs),
    "least-attained": Order(least_attained, ages=True, promoted_at_s=_promotion),
    "shortest-remaining": Order(shortest_remaining, ages=True),
    "deadline": Order(deadline, ages=True),
    "fair": Order(virtual_finish, ages=True, fair=True),
}


DEFAULT_ORDER = "fcfs"


def ordered(name: str) -> Order:
    """The order called `name`; `fair:NAME` is fair between tenants, and NAME within each.

    Raises ValueError for a name that is unknown.
    """
    if name in ORDERS:
        return ORDERS[name]
    prefix, _, base = name.partition(":")
    if prefix == "fair" and base in ORDERS and not ORDERS[base].fair:
        return replace(ORDERS[base], fair=True)
    known = ", ".join(ORDERS)
    raise ValueError(f"there is no order {name!r}; there is {known}, and fair:ORDER")


def as_order(order: str | Order | Key) -> Order:
    """An order by name, as it is, or by its key alone; such a key is aged."""
    if isinstance(order, str):
        return ordered(order)
    if isinstance(order, Order):
        return order
    return Order(order, ages=order not in (program_fcfs, call_fcfs))
