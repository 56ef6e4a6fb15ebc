"""Who may enter: a worker's room for one more call, by what may come or by what is expected."""

from collections.abc import Iterable
from math import ceil
from random import Random
from typing import NamedTuple

from ...kvpolicy.peak import Future, outputs_seen, sample_length
from ...kvpolicy.window import Window
from .events import CallEnded, CallReady
from .state import CallState, WorkerState

HEADROOM = 0.95  # share of the KV capacity that calls may reserve (Past-Future, 2507.10150)
SAMPLES = 3  # futures that are drawn, of which the worst counts
SEEN = 32  # answers that must have been seen before they are believed
STEPS = 1_000  # steps whose answers are told apart from those of all
LATE = 1 / 16  # so much longer, at the least, is a call that takes longer than all before


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


class _Entered(NamedTuple):
    """A call that runs: its first step on its worker's count, and its end in each future."""

    ready: CallReady
    demand: int  # KV tokens that it may come to hold
    first: float
    ends: list[float]

    @property
    def used(self) -> float:
        """What it would have held at step 0."""
        return self.demand - self.ready.max_tokens - self.first


class _Ahead:
    """What may come on one worker. `now` counts steps, each a token of each of its calls."""

    def __init__(self) -> None:
        self.calls: dict[str, _Entered] = {}
        self.futures = [Future() for _ in range(SAMPLES)]
        self.own_tokens = 0  # that its calls may come to hold
        self.now = 0.0
        self._seen_s = 0.0

    def pass_to(self, now_s: float, per_s: float) -> None:
        """Time goes on, at so many seconds per step."""
        if now_s > self._seen_s:
            self.now += (now_s - self._seen_s) / per_s if per_s else 0
            self._seen_s = now_s


class Forecast:
    """Past-Future's test: the peak of what running calls will hold, by the lengths of late answers.

    How far a running call has come is told by its time and the pace of late answers. Its length is
    drawn when it enters, and again where it turns out to be longer. Until enough answers of a model
    were seen, every call is taken to produce all it may.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._outputs: dict[tuple[str, str], Window] = {}  # by model and step; "": all of them
        self._pace: dict[str, tuple[float, float]] = {}  # model -> s before, and s per, token
        self._ahead: dict[str, _Ahead] = {}  # by worker

    def learn(self, model: str, event: CallEnded) -> None:
        """An answer has ended by itself, or at its limit."""
        for key in ((model, ""), (model, event.step)):
            if key in self._outputs or len(self._outputs) < STEPS:
                self._outputs.setdefault(key, outputs_seen()).add(event.output_tokens)
        if event.output_tokens < 2 or event.decode_s <= 0:
            return  # it tells no pace: with many such answers there would be no time left per token
        first_s, per_s = event.queue_s + event.prefill_s, event.decode_s / event.output_tokens
        before = self._pace.get(model, (first_s, per_s))
        self._pace[model] = (
            before[0] + (first_s - before[0]) / 16,
            before[1] + (per_s - before[1]) / 16,
        )

    def enter(self, call: CallState, worker: str) -> None:
        """A call begins to run, with its demand on `worker`."""
        ahead = self._ahead.setdefault(worker, _Ahead())
        first_s, per_s = self._pace.get(call.ready.model, (0.0, 0.0))
        ahead.pass_to(call.sent_s, per_s)
        first = ahead.now + (first_s / per_s if per_s else 0)
        entered = _Entered(call.ready, call.demand_tokens, first, [])
        for future in ahead.futures:
            entered.ends.append(first + self._length(call.ready))
            future.add(call.ready.call, entered.ends[-1], entered.used)
        ahead.calls[call.ready.call] = entered
        ahead.own_tokens += entered.demand

    def leave(self, call: str, worker: str) -> None:
        """A call runs on `worker` no more."""
        ahead = self._ahead[worker]
        entered = ahead.calls.pop(call)
        for future, end in zip(ahead.futures, entered.ends, strict=True):
            future.remove(call, end)
        ahead.own_tokens -= entered.demand

    def running(self, worker: str) -> set[str]:
        """The calls that are taken to run on `worker`."""
        ahead = self._ahead.get(worker)
        return set(ahead.calls) if ahead is not None else set()

    def forget(self, worker: str) -> None:
        """A worker is gone, and all that ran on it."""
        self._ahead.pop(worker, None)

    def lacks(
        self,
        worker: WorkerState,
        entering: Iterable[tuple[CallReady, int]],
        room: int,
        now_s: float,
    ) -> int | None:
        """How much room is lacking for those that enter, given with their demand in KV tokens.

        None where too little was seen to tell.
        """
        ahead = self._ahead.get(worker.name)
        if ahead is None or not self._knows(worker.model):
            return None
        ahead.pass_to(now_s, self._pace.get(worker.model, (0.0, 0.0))[1])
        for number, future in enumerate(ahead.futures):
            for call in future.overdue(ahead.now):
                self._draw_again(ahead, call, number)
        calls = [_Entered(ready, demand, ahead.now, []) for ready, demand in entering]
        peak = max(self._peak(future, calls) for future in ahead.futures)
        shared = worker.kv_reserved - ahead.own_tokens
        return ceil((peak + shared) / HEADROOM) - room

    def _peak(self, future: Future, entering: list[_Entered]) -> float:
        """The peak with some calls more, which stay out."""
        *others, last = [(call, call.first + self._length(call.ready)) for call in entering]
        for call, end in others:
            future.add(call.ready.call, end, call.used)
        peak = future.peak(last[1], last[0].used)
        for call, end in others:
            future.remove(call.ready.call, end)
        return peak

    def _draw_again(self, ahead: _Ahead, call: str, number: int) -> None:
        """A call has produced more than was drawn for one of the futures."""
        entered, future = ahead.calls[call], ahead.futures[number]
        produced = ahead.now - entered.first
        end = entered.first + self._length(entered.ready, produced)
        late = min(produced, entered.ready.max_tokens) * LATE
        future.remove(call, entered.ends[number])
        end = entered.ends[number] = max(end, ahead.now + 1 + late)
        future.add(call, end, min(entered.used, entered.demand - end))  # its demand at the most

    def _length(self, call: CallReady, produced: float = 0) -> float:
        step = call.step if self._knows(call.model, call.step) else ""
        if not self._knows(call.model, step):
            return call.max_tokens
        ordered = self._outputs[call.model, step].ordered
        return sample_length(produced, call.max_tokens, ordered, self._random)

    def _knows(self, model: str, step: str = "") -> bool:
        return len(self._outputs.get((model, step), ())) >= SEEN
