"""Who may enter: a worker's room for one more call, by what may come or by what is expected."""

from collections.abc import Iterable
from math import ceil
from random import Random

from ...kvpolicy.peak import Running, future_peak_tokens, outputs_seen
from ...kvpolicy.window import Window
from .events import CallEnded
from .state import CallState

HEADROOM = 0.95  # share of the KV capacity that calls may reserve (Past-Future, 2507.10150)
SAMPLES = 3  # futures that are drawn, of which the worst counts
SEEN = 32  # answers that must have been seen before they are believed


def lacks(running: int, reserved: int, room: int, demand: int) -> int:
    """How much room is lacking for `demand` KV tokens beside what runs; 0 or less: none."""
    if running == 0:
        return demand - room
    return ceil((reserved + demand) / HEADROOM) - room


def may_enter(
    running: int, max_running: int, reserved: int, room: int, demand: int, calls: int = 1
) -> bool:
    """Whether `calls` that may come to hold `demand` KV tokens together fit beside what runs.

    `reserved` is what the running calls may come to hold, `room` the capacity less pins. A worker
    that runs nothing takes any call that fits it at all, so that the headroom starves nobody.
    """
    if running + calls > max_running:
        return False
    if running == 0:
        return demand <= room
    return reserved + demand <= HEADROOM * room


class Forecast:
    """Past-Future's test: the peak of what running calls will hold, by the lengths of late answers.

    How far a running call has come is told by its time and the pace of late answers. Until enough
    answers of a model were seen, every call is taken to produce all it may.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._outputs: dict[str, Window] = {}  # model -> late lengths
        self._pace: dict[
            str, tuple[float, float]
        ] = {}  # model -> s before, and s per, output token

    def learn(self, model: str, event: CallEnded) -> None:
        """An answer has ended by itself, or at its limit."""
        self._outputs.setdefault(model, outputs_seen()).add(event.output_tokens)
        if not event.output_tokens:
            return
        first_s, per_s = event.queue_s + event.prefill_s, event.decode_s / event.output_tokens
        before = self._pace.get(model, (first_s, per_s))
        self._pace[model] = (
            before[0] + (first_s - before[0]) / 16,
            before[1] + (per_s - before[1]) / 16,
        )

    def lacks(
        self,
        model: str,
        running: Iterable[CallState],
        entering: Iterable[tuple[CallState, int]],
        room: int,
        now_s: float,
    ) -> int | None:
        """How much room is lacking for those that enter, given with their demand in KV tokens.

        None where too little was seen to tell.
        """
        seen = self._outputs.get(model)
        if seen is None or len(seen) < SEEN:
            return None
        calls = [self._running(model, call, now_s) for call in running]
        for call, demand in entering:
            most = call.ready.max_tokens
            calls.append(Running(demand - most, 0, most))
        peak = future_peak_tokens(calls, seen.ordered, self._random, SAMPLES)
        return ceil(peak / HEADROOM) - room

    def _running(self, model: str, call: CallState, now_s: float) -> Running:
        most = call.ready.max_tokens
        first_s, per_s = self._pace.get(model, (0.0, 0.0))
        produced = most
        if per_s > 0:
            produced = min(most, max(0, int((now_s - call.sent_s - first_s) / per_s)))
        return Running(call.demand_tokens - most + produced, produced, most)
