"""What this process wants of each worker, for those who share it out among processes."""

from collections import defaultdict
from collections.abc import Mapping
from math import ceil
from typing import NamedTuple

from .state import CallState, SessionState, WorkerState, need


class Demand(NamedTuple):
    """KV tokens and calls at once.

    What running calls may come to hold, what is pinned, the contexts of sessions between two calls,
    and all that waits, evenly over the workers of its model.
    """

    tokens: int
    slots: int


def demands(
    workers: Mapping[str, WorkerState],
    calls: Mapping[str, CallState],
    sessions: Mapping[str, SessionState],
) -> dict[str, Demand]:
    """The demand on each worker, by its name."""
    running = {call.ready.session for call in calls.values() if call.worker is not None}
    tokens: defaultdict[str, float] = defaultdict(float)
    slots: defaultdict[str, float] = defaultdict(float)
    for name, session in sessions.items():
        if not session.retained and name not in running:
            tokens[session.worker] += session.tokens
    of_model: defaultdict[str, list[str]] = defaultdict(list)
    for name, worker in workers.items():
        of_model[worker.model].append(name)
    for call in calls.values():
        if call.worker is not None:
            continue
        session = sessions.get(call.ready.session) if call.ready.session is not None else None
        places = of_model[call.ready.model] if session is None else [session.worker]
        there = 0 if session is None else min(session.tokens, call.ready.prompt_tokens)
        for place in places:
            tokens[place] += (need(call.ready) - there) / len(places)
            slots[place] += 1 / len(places)
    return {name: _demand(worker, tokens[name], slots[name]) for name, worker in workers.items()}


def _demand(worker: WorkerState, tokens: float, slots: float) -> Demand:
    return Demand(
        worker.kv_reserved + worker.kv_pinned + round(tokens), len(worker.running) + ceil(slots)
    )
