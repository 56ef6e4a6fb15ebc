"""Whose turn it is: order policies, each a pure key over one waiting call; the smallest goes first.

Ties break by the sequence in which calls became ready, so an order is total and deterministic.
"""

from collections.abc import Callable

from .state import CallView

Order = Callable[[CallView], float]


def program_fcfs(call: CallView) -> float:
    """Programs in the order of their arrival, whichever call is ready first.

    Continuum (2511.02230), section 4: a late turn of an early program precedes the first turn of
    a late one, so that programs finish instead of all advancing a little.
    """
    return call.program_arrival


def call_fcfs(call: CallView) -> float:
    """Calls in the order in which they became ready: what an engine does that knows no programs."""
    return call.sequence


def least_attained(call: CallView) -> float:
    """Programs with the least service so far first (Autellix, 2502.13965, section 4.2)."""
    return call.program_attained_tokens


ORDERS: dict[str, Order] = {
    "fcfs": program_fcfs,
    "call-fcfs": call_fcfs,
    "least-attained": least_attained,
}
