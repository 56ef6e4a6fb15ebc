"""The core's workers: which serve a model, what each holds and does, and which takes a call."""

from collections.abc import Sequence

from ...kvpolicy.state import PREFILL_TOKENS_PER_S
from ..blocks import FINE_TOKENS
from .admission import Forecast, lacks, may_enter
from .events import (
    CallEnded,
    CallReady,
    Command,
    WorkerDown,
    WorkerLoad,
    WorkerShare,
    WorkerUp,
)
from .line import Line
from .placement import OUTPUT_WEIGHT
from .sessions import Sessions
from .state import CallState, RunningGroup, WorkerState, need

WEIGH_EVERY_S = 0.05  # how often the pins of a busy worker are weighed against the queue
LINE = 2  # calls in a worker's own waiting line; with more it is given none


class Fleet:
    """Workers by name and by model; a part of the core's state."""

    def __init__(
        self,
        workers: dict[str, WorkerState],
        kept: Sessions,
        forecast: Forecast | None = None,
    ) -> None:
        self._workers = workers
        self._kept = kept
        self._forecast = forecast
        self.away: dict[str, tuple[str, int]] = {}  # may come back: their model, their KV tokens
        self._by_model: dict[str, list[WorkerState]] = {}
        self._shares: dict[str, WorkerShare] = {}
        self._rooms: dict[str, int | None] = {}  # model -> what its largest worker holds
        self.weigh_again_s: float | None = None
        self.outputs: dict[str, float] = {}  # model -> mean length of its late answers

    def of(self, model: str) -> Sequence[WorkerState]:
        """The workers that serve `model`."""
        return self._by_model.get(model, ())

    def add(self, event: WorkerUp) -> WorkerState:
        """A worker may be used."""
        worker = WorkerState(
            event.worker, event.model, event.max_running, event.kv_tokens, event.page_tokens
        )
        worker.joins, worker.tiered = event.joins, event.tiered
        worker.share_tokens, worker.share_slots = self._share(worker)
        self._workers[worker.name] = worker
        self._by_model.setdefault(worker.model, []).append(worker)
        self.away.pop(worker.name, None)
        self._measure(worker.model)
        return worker

    def share(self, event: WorkerShare) -> WorkerState | None:
        """So much of a worker is ours from now on, also after a restart."""
        self._shares[event.worker] = event
        worker = self._workers.get(event.worker)
        if worker is not None:
            worker.share_tokens, worker.share_slots = self._share(worker)
        return worker

    def _share(self, worker: WorkerState) -> tuple[int, int]:
        event = self._shares.get(worker.name)
        if event is None:
            return worker.kv_tokens, worker.max_running
        return min(event.kv_tokens, worker.kv_tokens), min(event.max_running, worker.max_running)

    def remove(self, event: WorkerDown) -> tuple[str, WorkerState | None] | None:
        """A worker is gone: its model, and its state if it was up; None: nobody knew it."""
        name = event.worker
        worker = self._workers.pop(name, None)
        model, kv_tokens = self.away.pop(name, (event.model, 0))
        if worker is not None:
            if self._forecast is not None:
                self._forecast.forget(name)
            model, kv_tokens = worker.model, worker.kv_tokens
            self._by_model[model].remove(worker)
        if not model:
            return None
        if event.returns:
            self.away[name] = (model, kv_tokens)
        self._measure(model)
        return model, worker

    def _measure(self, model: str) -> None:
        away = [kv_tokens for name, kv_tokens in self.away.values() if name == model]
        here = self.largest(model)
        self._rooms[model] = max([*away, here or 0]) or None if away else here

    def largest(self, model: str) -> int | None:
        """The KV capacity of the largest worker of `model`; None while there is none."""
        workers = self._by_model.get(model)
        if not workers:
            return None
        return max([worker.kv_tokens for worker in workers])

    def room(self, model: str) -> int | None:
        """The KV capacity of the largest worker of `model`, those included that may come back."""
        return self._rooms.get(model)

    def too_large(self, call: CallReady) -> str | None:
        """Why no worker could take a call, even an empty one; None: one could, or there is none."""
        room = self._rooms.get(call.model)
        if room is None or call.prompt_tokens + call.max_tokens <= room:
            return None
        return (
            f"it needs {call.prompt_tokens} prompt tokens plus {call.max_tokens} for the answer, "
            f"more than the {room} KV tokens of the largest worker"
        )

    def kv_tokens(self, model: str) -> int:
        """The KV capacity of all workers of `model` together, as far as it is ours."""
        return sum(worker.share_tokens for worker in self.of(model))

    def tiered(self, model: str) -> bool:
        """Whether evicted KV of `model` comes back from a tier below."""
        return any(worker.tiered for worker in self.of(model))

    def chooses(self, model: str) -> bool:
        """Whether calls of `model` may go to more than one worker."""
        return len(self.of(model)) > 1

    def any_open(self, model: str, now_s: float) -> bool:
        """Whether a worker of `model` may be given one more call, memory aside."""
        workers = self._by_model.get(model)
        if not workers:
            return False
        return workers[0].open(now_s) or any(worker.open(now_s) for worker in workers[1:])

    # ---- a call and its worker ------------------------------------------------------------------

    def take(self, call: CallState, worker: WorkerState) -> None:
        """`call` goes to `worker`."""
        ready = call.ready
        if len(self._by_model[ready.model]) > 1:
            held = self._held(call, worker)
            output = min(ready.max_tokens, self.outputs.get(ready.model, ready.max_tokens))
            call.matched_tokens = held
            call.work_tokens = int(ready.prompt_tokens - held + OUTPUT_WEIGHT * output)
            worker.work_tokens += call.work_tokens
            worker.holds.add(ready.blocks)
        if ready.leader is not None:
            _enter_group(call, worker)
        call.demand_tokens = _demand(call, worker)
        call.worker = worker.name
        worker.running.add(ready.call)
        worker.kv_reserved += call.demand_tokens
        if self._forecast is not None:
            self._forecast.enter(call, worker.name)

    def leave(self, call: CallState) -> None:
        """`call` runs on no worker any more."""
        worker = self._workers.get(call.worker) if call.worker is not None else None
        if worker is not None:
            worker.running.discard(call.ready.call)
            worker.kv_reserved -= call.demand_tokens
            worker.work_tokens -= call.work_tokens
            if call.grouped:
                _leave_group(call, worker)
            if self._forecast is not None:
                self._forecast.leave(call.ready.call, worker.name)
        call.grouped = False
        call.work_tokens = call.matched_tokens = call.promised_tokens = 0
        call.worker = None

    def learn(self, call: CallState, event: CallEnded) -> None:
        """What the end of a call tells of its worker's speed, of lengths, and of what it holds."""
        worker = self._workers.get(call.worker) if call.worker is not None else None
        if worker is None:
            return
        worker.computed_tokens += event.prompt_tokens - event.cached_tokens
        worker.prefill_s += event.prefill_s
        if event.finish not in ("stop", "length"):
            return
        worker.answered()
        model = call.ready.model
        if self._forecast is not None:
            self._forecast.learn(model, event)
        mean = self.outputs.get(model, float(event.output_tokens))
        self.outputs[model] = mean + (event.output_tokens - mean) / 16
        missing = call.matched_tokens - event.cached_tokens
        if missing > FINE_TOKENS:
            worker.holds.missed(call.ready.blocks, missing)

    def report(self, event: WorkerLoad) -> WorkerState | None:
        """Make room for what others run there; a report may be a second old."""
        worker = self._workers.get(event.worker)
        if worker is not None:
            foreign = max(0, event.running + event.waiting - len(worker.running))
            worker.foreign, worker.foreign_before = min(foreign, worker.foreign_before), foreign
            worker.crowded = event.waiting > LINE
        return worker

    # ---- which worker ---------------------------------------------------------------------------

    def choose(
        self, calls: Sequence[CallState], workers: Sequence[WorkerState], now_s: float
    ) -> WorkerState | None:
        """Of `workers`, those that may take all of `calls` now: the one with the least to do.

        One that turned away its last call is taken where no other has room.
        """
        first = calls[0]
        best: WorkerState | None = None
        least = (False, 0)
        for worker in workers:
            if not worker.open(now_s):
                continue
            demand = _demands(calls, worker)
            room = self._room(first, worker)
            running, slots = len(worker.running), worker.slots
            if not may_enter(running, slots, worker.kv_reserved, room, demand, len(calls)) and (
                self._forecast is None
                or running + len(calls) > slots
                or self._lacks(calls, worker, room, now_s) > 0
            ):
                continue
            if len(workers) == 1:
                return worker
            refuses = worker.refused_s is not None
            load = (refuses, worker.work_tokens - self._held(first, worker))
            if best is None or load < least:
                best, least = worker, load
        return best

    def planned(self, calls: Sequence[CallState], now_s: float) -> WorkerState | None:
        """The worker that a plan wants for `calls`, if it may take them now."""
        worker = self._workers.get(calls[0].ready.worker or "")
        return None if worker is None else self.choose(calls, [worker], now_s)

    def up(self, worker: str | None) -> bool:
        """Whether a worker may be used."""
        return worker in self._workers

    def prefix_s(self, call: CallReady) -> float:
        """Seconds that computing what the call's group begins with takes, about."""
        known = [worker.rebuild_s(call.shared_tokens) for worker in self.of(call.model)]
        told = [seconds for seconds in known if seconds is not None]
        return max(told, default=call.shared_tokens / PREFILL_TOKENS_PER_S)

    def full_home(self, call: CallState, now_s: float) -> float | None:
        """Seconds that computing the call's session elsewhere takes, if its worker has no room."""
        state = self._kept.of(call)
        home = self._workers.get(state.worker) if state is not None else None
        if state is None or home is None or self.choose([call], [home], now_s) is not None:
            return None
        rebuild_s = home.rebuild_s(state.tokens)
        return state.tokens / PREFILL_TOKENS_PER_S if rebuild_s is None else rebuild_s

    def make_room(
        self, calls: Sequence[CallState], line: Line, now_s: float, out: list[Command]
    ) -> WorkerState | None:
        """Give up pins on a worker that nothing but pins keeps from taking `calls`.

        What a busy worker holds is weighed against the queue, and not at every event: where it
        was weighed just now, `weigh_again_s` says when it may be again.
        """
        self.weigh_again_s = None
        first = calls[0]
        for worker in self.of(first.ready.model):
            running = len(worker.running)
            fits = (
                _demands(calls, worker) <= worker.kv_tokens and running + len(calls) <= worker.slots
            )
            if not fits or not worker.kv_pinned or not worker.open(now_s):
                continue
            if running:
                if now_s < worker.weighed_s + WEIGH_EVERY_S:
                    self.weigh_again_s = worker.weighed_s + WEIGH_EVERY_S
                    continue
                worker.weighed_s = now_s
            lack = self._lacks(calls, worker, self._room(first, worker), now_s)
            if self._kept.give_way(lack, worker, line, now_s, out, first.ready):
                return worker
        return None

    def could_take(self, calls: Sequence[CallState]) -> bool:
        """Whether some worker could take all of `calls` if it were empty."""
        return any(
            len(calls) <= worker.max_running and _demands(calls, worker) <= worker.kv_tokens
            for worker in self.of(calls[0].ready.model)
        )

    def _lacks(
        self, calls: Sequence[CallState], worker: WorkerState, room: int, now_s: float
    ) -> int:
        """How much memory is lacking on `worker` for all of `calls`; 0 or less: none."""
        running = len(worker.running)
        if self._forecast is not None and running:
            entering = ((call.ready, _demand(call, worker)) for call in calls)
            found = self._forecast.lacks(worker, entering, room, now_s)
            if found is not None:
                return found
        return lacks(running, worker.kv_reserved, room, _demands(calls, worker))

    def _room(self, call: CallState, worker: WorkerState) -> int:
        """KV tokens for us that no pin holds, the pin of the call's own session aside.

        A worker that runs nothing of ours takes any call that it can hold, however small our share.
        """
        room = (worker.share_tokens if worker.running else worker.kv_tokens) - worker.kv_pinned
        if call.ready.session is None:
            return room
        state = self._kept.of(call)
        if state is not None and state.retained and state.worker == worker.name:
            room += state.tokens
        return room

    def _held(self, call: CallState, worker: WorkerState) -> int:
        """Tokens of the call's prompt that `worker` is believed to hold."""
        held = worker.holds.matched_tokens(call.ready.blocks)
        state = self._kept.of(call)
        if state is not None and state.worker == worker.name:
            held = max(held, min(state.tokens, call.ready.prompt_tokens))
        return held

    def check(self, calls: dict[str, CallState]) -> None:
        """Raise AssertionError where the state contradicts itself."""
        running: dict[str, list[CallState]] = {}
        for name, call in calls.items():
            if call.worker is not None:
                assert name in self._workers[call.worker].running, name
                running.setdefault(call.worker, []).append(call)
        for name, worker in self._workers.items():
            mine = running.get(name, [])
            assert len(worker.running) <= worker.max_running, name
            shared = sum(group.tokens for group in worker.groups.values())
            assert worker.kv_reserved == shared + sum(call.demand_tokens for call in mine), name
            if self._forecast is not None:
                assert self._forecast.running(name) == worker.running, name
            members = sum(group.calls for group in worker.groups.values())
            assert members == sum(call.grouped for call in mine), name
            assert worker.work_tokens == sum(call.work_tokens for call in mine), name
            assert worker.running == {call.ready.call for call in mine}, name


def _demand(call: CallState, worker: WorkerState) -> int:
    """KV tokens that it may come to hold on `worker` of its own: a pinned prefix counts once."""
    ready = call.ready
    if ready.leader is not None and ready.group in worker.groups:
        return need(ready) - min(ready.shared_tokens, worker.groups[ready.group].tokens)
    if ready.group is None or ready.group in worker.prefixes:
        return need(ready) - ready.shared_tokens
    return need(ready)


def _enter_group(call: CallState, worker: WorkerState) -> None:
    """What the call's group begins with is reserved once, however many of it run."""
    name, tokens = call.ready.group, call.ready.shared_tokens
    if name is None or name in worker.prefixes:
        return
    group = worker.groups.get(name)
    if group is None:
        group = worker.groups[name] = RunningGroup(tokens)
        worker.kv_reserved += tokens
    group.calls += 1
    call.grouped = True


def _leave_group(call: CallState, worker: WorkerState) -> None:
    assert call.ready.group is not None
    group = worker.groups[call.ready.group]
    group.calls -= 1
    if not group.calls:
        worker.kv_reserved -= group.tokens
        del worker.groups[call.ready.group]


def _demands(calls: Sequence[CallState], worker: WorkerState) -> int:
    """What all of them may come to hold on `worker`."""
    if len(calls) == 1:
        return _demand(calls[0], worker)
    return sum(_demand(call, worker) for call in calls)
