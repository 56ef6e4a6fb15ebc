"""The core's sessions and pins: whose KV lies where, for how long it was promised, and how it went."""

import heapq
from collections import deque
from math import inf
from statistics import fmean

from ...kvpolicy import (
    Decision,
    Durations,
    Hold,
    Memory,
    Pause,
    Pin,
    Policy,
    Price,
    QueueDelay,
    memory_price,
    to_release,
    turns_eta,
)
from .events import (
    CallEnded,
    CallReady,
    Command,
    PinJudged,
    PrefixKnown,
    Release,
    Retain,
    ToolEnded,
    ToolProgress,
    ToolStarted,
    Warm,
)
from .line import Line
from .pins import Pins
from .state import CallState, ProgramState, SessionState, WorkerState

PIN_SHARE = 0.8  # of a worker's KV capacity that pins may hold; the rest is for what runs
PREFIX_SHARE = 0.5  # of it that shared prefixes may hold, which are not weighed against the queue
ENDED = 200  # programs whose numbers of turns are remembered
RETURNED = 64  # sessions that came back without a pin, of which it is remembered what was lost


class Sessions(Pins):
    """Sessions by name, and what is pinned on which worker; a part of the core's state."""

    def __init__(
        self,
        workers: dict[str, WorkerState],
        programs: dict[str, ProgramState],
        policy: Hold | Policy | None,
    ) -> None:
        super().__init__(workers, programs)
        self._policy = _as_policy(policy)
        self._delay = QueueDelay()  # of sessions that came back without their KV
        self._turns: deque[int] = deque(maxlen=ENDED)
        self._eta = 1.0
        self._lost: deque[float] = deque([1.0], maxlen=RETURNED)  # shares, of these sessions
        self._lost_share = 1.0
        self.durations = Durations()
        self.prefixes: dict[str, PrefixKnown] = {}

    def follow(self, policy: Policy) -> None:
        """From now on another policy says how long sessions are kept."""
        self._policy = policy

    # ---- the life of a session ------------------------------------------------------------------

    def use(
        self, name: str, call: CallState, worker: WorkerState, now_s: float, out: list[Command]
    ) -> None:
        """The call's session now lies on `worker`; its pin is used up by the call itself."""
        state = self.by_name.get(name)
        if state is not None:
            state.tool = ""
            if not state.retained:
                self._delay.add(now_s - call.ready_at_s)
                if state.worker == worker.name:
                    call.unpinned_tokens = min(state.tokens, call.ready.prompt_tokens)
        if state is not None and state.worker != worker.name:
            self.forget(name, out)
            state = None
        if state is None:
            self.by_name[name] = SessionState(call.ready.program, worker.name, 0)
            self._programs[call.ready.program].sessions.add(name)
        elif state.retained:
            self._unpin(name, state)
            call.promised_tokens = min(state.tokens, call.ready.prompt_tokens)

    def grow(self, call: CallState, event: CallEnded, out: list[Command]) -> None:
        """A turn has ended: the session holds its context; a pin that it used is judged."""
        state = self.of(call)
        if state is None or call.ready.session is None or not event.prompt_tokens:
            return
        if call.unpinned_tokens:
            self._lost.append(1 - min(1.0, event.cached_tokens / call.unpinned_tokens))
            self._lost_share = fmean(self._lost)
        worker = self._workers.get(state.worker)
        state.released = False
        tokens = event.prompt_tokens + event.output_tokens
        if worker is not None and state.retained:
            worker.kv_pinned += tokens - state.tokens
        state.tokens = tokens
        self._programs[state.program].turns += 1
        if worker is None or not call.promised_tokens:
            return
        # The last token drawn has no KV yet, and the cache knows whole pages only.
        least = call.promised_tokens - 1 - worker.page_tokens
        out.append(
            PinJudged(
                session=call.ready.session,
                worker=worker.name,
                promised_tokens=call.promised_tokens,
                cached_tokens=event.cached_tokens,
                held=event.cached_tokens >= least,
            )
        )

    def pause(
        self, event: ToolStarted, now_s: float, line: Line, out: list[Command]
    ) -> float | None:
        """A tool runs: keep its session's KV for as long as the policy finds it worth.

        Returns when the pin is over, if it was taken for a time.
        """
        state = self.by_name.get(event.session) if event.session else None
        if state is None or self._policy is None or event.session is None:
            return None
        if not state.tool:  # of several tools at once, the first one's durations count
            state.tool, state.paused_s = tool_key(event), now_s - event.ran_s
            state.eta_s = None
            state.ends_s.clear()
        if event.eta_s is not None:
            state.expect(tool_key(event), event.eta_s, now_s)
        elif state.retained:
            return None
        return self._hold(event.session, state, now_s, line, out)

    def foretold(
        self, event: ToolProgress, now_s: float, line: Line, out: list[Command]
    ) -> float | None:
        """A tool tells its end, which counts for more than what was learned: decide anew.

        Returns when the pin is over, if it was taken, or renewed, for a time.
        """
        state = self.by_name.get(event.session) if event.session else None
        if state is None or self._policy is None or event.session is None or not state.tool:
            return None
        state.expect(tool_key(event), event.left_s, now_s)
        return self._hold(event.session, state, now_s, line, out)

    def _hold(
        self, name: str, state: SessionState, now_s: float, line: Line, out: list[Command]
    ) -> float | None:
        """Pin the session, renew its pin, or give it up, as the policy says now."""
        worker = self._workers[state.worker]
        full = worker.kv_pinned + state.tokens > PIN_SHARE * worker.share_tokens
        if not state.retained and (full or state.released):
            return None
        assert self._policy is not None
        price = memory_price(_memory(worker, line))
        hold_s = self._decide(state, worker, line, price, now_s).hold_s
        if hold_s is not None and hold_s <= 0:
            if state.told:  # for an earlier tool, or before it told
                self.release(name, out)
            return None
        until_s = None if hold_s is None else now_s + hold_s
        if state.retained and state.until_s == until_s:
            return None
        if not state.retained:
            state.retained = state.told = True
            worker.pins.add(name)
            worker.kv_pinned += state.tokens
        state.until_s = until_s
        if until_s is not None:
            heapq.heappush(self.ends, (until_s, name))
        out.append(Retain(session=name, worker=state.worker, until_s=until_s))
        return until_s

    def tool_ended(self, event: ToolEnded, now_s: float) -> None:
        """Its duration teaches; the session waits on until its next call, or for other tools."""
        if event.ok:
            self.durations.observe(tool_key(event), event.seconds)
        state = self.by_name.get(event.session) if event.session else None
        if state is not None and state.ends_s:
            state.tool_over(tool_key(event), now_s)

    def program_ended(self, program: ProgramState) -> None:
        """Its number of turns teaches what the age of a program tells."""
        if program.turns:
            self._turns.append(program.turns)
            if len(self._turns) % 8 == 0:
                self._eta = turns_eta(self._turns)

    def _decide(
        self, state: SessionState, worker: WorkerState, line: Line, price: Price, now_s: float
    ) -> Decision:
        assert self._policy is not None
        return self._policy.decide(
            Pause(
                tool=state.tool,
                tokens=state.tokens,
                durations=self.durations,
                elapsed_s=now_s - state.paused_s,
                eta_s=state.eta_s,
                waiting=line.calls,
                prefill_s=worker.rebuild_s(state.tokens),
                queue_delay_s=self._delay.mean_s,
                eta=self._eta,
                price=price,
                running_tokens=worker.kv_reserved,
                arrival=self._programs[state.program].arrival,
                lost_share=self._lost_share,
            )
        )

    # ---- prefixes that many calls share ---------------------------------------------------------

    def pin_prefix(self, prefix: PrefixKnown, worker: WorkerState, out: list[Command]) -> None:
        """Compute a shared prefix on `worker`, and keep it, if pins may take so much."""
        held = sum(self.prefixes[name].tokens for name in worker.prefixes)
        if held + prefix.tokens > PREFIX_SHARE * worker.share_tokens:
            return
        worker.kv_pinned += prefix.tokens
        worker.prefixes.add(prefix.session)
        out.append(Warm(session=prefix.session, worker=worker.name))
        out.append(Retain(session=prefix.session, worker=worker.name, until_s=None))

    def end_prefix(self, session: str, out: list[Command]) -> PrefixKnown | None:
        """Give a shared prefix up everywhere; None where nothing was known of it."""
        prefix = self.prefixes.get(session)
        if prefix is None:
            return None
        for worker in self._workers.values():
            self._unpin_prefix(session, worker, out)
        return self.prefixes.pop(session)

    def _unpin_prefix(self, session: str, worker: WorkerState, out: list[Command]) -> None:
        if session in worker.prefixes:
            worker.prefixes.remove(session)
            worker.kv_pinned -= self.prefixes[session].tokens
            out.append(Release(session=session, worker=worker.name))

    # ---- room -----------------------------------------------------------------------------------

    def give_way(
        self,
        lack_tokens: int,
        worker: WorkerState,
        line: Line,
        now_s: float,
        out: list[Command],
        call: CallReady,
    ) -> bool:
        """Give up pins on `worker` that are worth less than `lack_tokens` of room; whether it did.

        Those worth the least go first, and none if all that may go are too few. On an idle worker
        nothing can be worth more than the call that would run there; shared prefixes go last. What
        `call` itself goes on with stays.
        """
        idle = not worker.running
        price = memory_price(_memory(worker, line))
        pins = [
            self._weigh(name, worker, line, price, now_s)
            for name in worker.pins
            if name != call.session
        ]
        chosen = to_release(pins, lack_tokens, inf if idle else price.per_token_s)
        lack_tokens -= sum(pin.tokens for pin in chosen)
        if lack_tokens > 0 and not idle:
            return False
        for pin in chosen:
            self.release(pin.session, out)
        for prefix in sorted(worker.prefixes):
            if lack_tokens <= 0:
                break
            if prefix == call.group:
                continue
            lack_tokens -= self.prefixes[prefix].tokens
            self._unpin_prefix(prefix, worker, out)
        return lack_tokens <= 0

    def fit(self, worker: WorkerState, line: Line, now_s: float, out: list[Command]) -> None:
        """Give up the pins worth the least that our share of `worker` has no room for any more."""
        over_tokens = worker.kv_reserved + worker.kv_pinned - worker.share_tokens
        if over_tokens <= 0 or not worker.pins:
            return
        price = memory_price(_memory(worker, line))
        pins = [self._weigh(name, worker, line, price, now_s) for name in sorted(worker.pins)]
        for pin in to_release(pins, over_tokens):
            self.release(pin.session, out)

    def _weigh(
        self, session: str, worker: WorkerState, line: Line, price: Price, now_s: float
    ) -> Pin:
        state = self.by_name[session]
        worth = 0.0
        if self._policy is not None and state.tool:
            worth = self._decide(state, worker, line, price, now_s).worth
        return Pin(session, state.until_s, state.tokens, worth)

    def check(self) -> None:
        """Raise AssertionError where the state contradicts itself."""
        for name, worker in self._workers.items():
            pinned = sum(
                state.tokens
                for state in self.by_name.values()
                if state.retained and state.worker == name
            )
            prefixes = sum(self.prefixes[session].tokens for session in worker.prefixes)
            assert worker.kv_pinned == pinned + prefixes, name
            held = {session for session in worker.pins if self.by_name[session].retained}
            assert held == worker.pins, name
            back = {session for session in held if self.by_name[session].next_call}
            assert back == worker.returned, name
            assert all(self.by_name[session].worker == name for session in held), name
        for name, session in self.by_name.items():
            assert name in self._programs[session.program].sessions, name


def tool_key(event: ToolStarted | ToolProgress | ToolEnded) -> str:
    """What its duration is remembered under: the tool, and the first word of its argument."""
    return f"{event.tool} {event.word}" if event.word else event.tool


def _memory(worker: WorkerState, line: Line) -> Memory:
    """What waits for the memory of `worker`; calls that wait for its slots do not."""
    starved = len(worker.running) < worker.slots
    return Memory(
        capacity_tokens=worker.share_tokens,
        running_tokens=worker.kv_reserved,
        pinned_tokens=worker.kv_pinned,
        waiting_tokens=line.tokens + line.outside_tokens if starved else 0,
        waiting_calls=line.calls + line.outside_calls if starved else 0,
        running_calls=len(worker.running),
    )


def _as_policy(policy: Hold | Policy | None) -> Policy | None:
    if policy is None or isinstance(policy, Policy):
        return policy
    return Policy(lambda pause: Decision(policy(pause)))
