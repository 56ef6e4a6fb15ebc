"""The core's sessions and pins: whose KV lies where, for how long it was promised, and how it went."""

import heapq

from ...kvpolicy.durations import Durations
from ...kvpolicy.state import Hold, Pause
from .events import (
    CallEnded,
    Command,
    PinJudged,
    PrefixKnown,
    Release,
    Retain,
    ToolStarted,
    Warm,
)
from .state import CallState, ProgramState, SessionState, WorkerState

PIN_SHARE = 0.5  # of a worker's KV capacity that pins may hold, so that they cannot wedge it


class Sessions:
    """Sessions by name, and what is pinned on which worker; a part of the core's state."""

    def __init__(
        self,
        workers: dict[str, WorkerState],
        programs: dict[str, ProgramState],
        hold: Hold | None,
    ) -> None:
        self._workers = workers
        self._programs = programs
        self._hold = hold
        self.by_name: dict[str, SessionState] = {}
        self.durations = Durations()
        self.prefixes: dict[str, PrefixKnown] = {}
        self.ends: list[tuple[float, str]] = []  # heap: when a session's pin is over

    def of(self, call: CallState) -> SessionState | None:
        """The session that a call goes on with, if it lies anywhere."""
        name = call.ready.session
        return self.by_name.get(name) if name is not None else None

    # ---- the life of a session ------------------------------------------------------------------

    def use(self, name: str, call: CallState, worker: WorkerState, out: list[Command]) -> None:
        """The call's session now lies on `worker`; its pin is used up by the call itself."""
        state = self.by_name.get(name)
        if state is not None and state.worker != worker.name:
            self.forget(name, out)
            state = None
        if state is None:
            self.by_name[name] = SessionState(call.ready.program, worker.name, 0)
            self._programs[call.ready.program].sessions.add(name)
        elif state.retained:
            worker.kv_pinned -= state.tokens
            state.retained = False
            call.promised_tokens = min(state.tokens, call.ready.prompt_tokens)

    def grow(self, call: CallState, event: CallEnded, out: list[Command]) -> None:
        """A turn has ended: the session holds its context; a pin that it used is judged."""
        state = self.of(call)
        if state is None or call.ready.session is None:
            return
        worker = self._workers.get(state.worker)
        tokens = event.prompt_tokens + event.output_tokens
        if worker is not None and state.retained:
            worker.kv_pinned += tokens - state.tokens
        state.tokens = tokens
        if worker is None or not call.promised_tokens or not event.prompt_tokens:
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

    def pause(self, event: ToolStarted, now_s: float, waiting: int, out: list[Command]) -> None:
        """A tool runs: keep its session's KV for as long as the policy finds it worth."""
        state = self.by_name.get(event.session) if event.session else None
        if state is None or self._hold is None or event.session is None:
            return
        worker = self._workers[state.worker]
        if state.retained or worker.kv_pinned + state.tokens > PIN_SHARE * worker.kv_tokens:
            return
        hold_s = self._hold(
            Pause(
                tool=event.tool,
                tokens=state.tokens,
                durations=self.durations,
                eta_s=event.eta_s,
                waiting=waiting,
                prefill_s=worker.rebuild_s(state.tokens),
            )
        )
        if hold_s == 0:
            return
        state.retained = True
        worker.kv_pinned += state.tokens
        state.until_s = until_s = None if hold_s is None else now_s + hold_s
        if until_s is not None:
            heapq.heappush(self.ends, (until_s, event.session))
        out.append(Retain(session=event.session, worker=state.worker, until_s=until_s))

    def expire(self, now_s: float) -> list[str]:
        """Count no longer what workers have let go of by themselves; the models they serve."""
        changed: list[str] = []
        while self.ends and self.ends[0][0] <= now_s:
            until_s, session = heapq.heappop(self.ends)
            state = self.by_name.get(session)
            if state is None or not state.retained or state.until_s != until_s:
                continue  # given up, or renewed, since
            worker = self._workers[state.worker]
            worker.kv_pinned -= state.tokens
            state.retained = False
            changed.append(worker.model)
        return changed

    def release(self, session: str, out: list[Command]) -> None:
        """Give up a pin; the session's KV may be evicted from now on."""
        state = self.by_name[session]
        if state.retained:
            self._workers[state.worker].kv_pinned -= state.tokens
            state.retained = False
        out.append(Release(session=session, worker=state.worker))

    def forget(self, session: str, out: list[Command]) -> None:
        """Nobody will go on with it."""
        state = self.by_name.get(session)
        if state is None:
            return
        self.release(session, out)
        del self.by_name[session]
        program = self._programs.get(state.program)
        if program is not None:
            program.sessions.discard(session)

    def lost(self, worker: str) -> None:
        """All that lay on a worker is gone with it."""
        for session, state in list(self.by_name.items()):
            if state.worker == worker:
                del self.by_name[session]
                self._programs[state.program].sessions.discard(session)

    # ---- prefixes that many calls share ---------------------------------------------------------

    def pin_prefix(self, prefix: PrefixKnown, worker: WorkerState, out: list[Command]) -> None:
        """Compute a shared prefix on `worker`, and keep it, if pins may take so much."""
        if worker.kv_pinned + prefix.tokens > PIN_SHARE * worker.kv_tokens:
            return
        worker.kv_pinned += prefix.tokens
        worker.prefixes.add(prefix.session)
        out.append(Warm(session=prefix.session, worker=worker.name))
        out.append(Retain(session=prefix.session, worker=worker.name, until_s=None))

    def _unpin_prefix(self, session: str, worker: WorkerState, out: list[Command]) -> None:
        if session in worker.prefixes:
            worker.prefixes.remove(session)
            worker.kv_pinned -= self.prefixes[session].tokens
            out.append(Release(session=session, worker=worker.name))

    # ---- room -----------------------------------------------------------------------------------

    def give_way(self, demand_tokens: int, worker: WorkerState, out: list[Command]) -> bool:
        """Give up pins on an idle worker until a call of `demand_tokens` fits; whether it does.

        The program that arrived last loses its pin first (Continuum, 2511.02230, section 4.3).
        """
        pinned = [
            (self._programs[state.program].arrival, session)
            for session, state in self.by_name.items()
            if state.retained and state.worker == worker.name
        ]
        for _, session in sorted(pinned, reverse=True):
            self.release(session, out)
            if demand_tokens <= worker.kv_tokens - worker.kv_pinned:
                return True
        for prefix in sorted(self.prefixes):
            self._unpin_prefix(prefix, worker, out)
            if demand_tokens <= worker.kv_tokens - worker.kv_pinned:
                return True
        return False

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
        for name, session in self.by_name.items():
            assert name in self._programs[session.program].sessions, name
