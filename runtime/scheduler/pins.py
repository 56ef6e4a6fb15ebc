"""The pins of sessions: which are in force, until when, and for which calls that wait."""

import heapq
from collections.abc import Iterable, Iterator

from .events import Command, Release, Retain
from .state import CallState, ProgramState, SessionState, WorkerState


class Pins:
    """Sessions by name, and what is pinned where."""

    def __init__(self, workers: dict[str, WorkerState], programs: dict[str, ProgramState]) -> None:
        self._workers = workers
        self._programs = programs
        self.by_name: dict[str, SessionState] = {}
        self.ends: list[tuple[float, str]] = []  # heap: when a session's pin is over

    def of(self, call: CallState) -> SessionState | None:
        """The session that a call goes on with, if it lies anywhere."""
        name = call.ready.session
        return self.by_name.get(name) if name is not None else None

    def pinned(self, session: str) -> bool:
        """Whether the session's KV is kept."""
        state = self.by_name.get(session)
        return state is not None and state.retained

    def expire(self, now_s: float) -> list[str]:
        """Count no longer what workers have let go of by themselves; the models they serve."""
        changed: list[str] = []
        while self.ends and self.ends[0][0] <= now_s:
            until_s, session = heapq.heappop(self.ends)
            state = self.by_name.get(session)
            if state is None or not state.retained or state.until_s != until_s or state.next_call:
                continue  # given up, or renewed, since; or about to be used
            self._unpin(session, state)
            changed.append(self._workers[state.worker].model)
        return changed

    def release(self, session: str, out: list[Command]) -> None:
        """Give up a pin; the session's KV may be evicted from now on."""
        state = self.by_name[session]
        if state.retained:
            self._unpin(session, state)
        state.told, state.released = False, True
        out.append(Release(session=session, worker=state.worker))

    def _unpin(self, session: str, state: SessionState) -> None:
        worker = self._workers[state.worker]
        worker.pins.discard(session)
        worker.kv_pinned -= state.tokens
        worker.returned.discard(session)
        state.retained, state.next_call = False, ""

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

    def lost(self, worker: str) -> list[str]:
        """All that lay on a worker is gone with it: the sessions."""
        gone = [session for session, state in self.by_name.items() if state.worker == worker]
        for session in gone:
            state = self.by_name.pop(session)
            self._programs[state.program].sessions.discard(session)
        return gone

    # ---- the calls that they are for ------------------------------------------------------------

    def come_back(self, call: CallState, out: list[Command]) -> None:
        """The session's next call waits: its pin stays in force until that goes.

        As Continuum's (2511.02230), which ends when its time is over and no request of
        the program waits. Under pressure it gives way by its worth as before: calls of earlier
        programs are not to wait for a session that came back.
        """
        state = self.of(call)
        if state is None or call.ready.session is None or not state.retained or state.next_call:
            return
        state.next_call = call.ready.call
        self._workers[state.worker].returned.add(call.ready.session)
        if state.until_s is not None:
            out.append(Retain(session=call.ready.session, worker=state.worker, until_s=None))

    def stay_away(self, call: CallState, now_s: float, out: list[Command]) -> None:
        """The next call was dropped: the pin ends when it would have ended without it."""
        state, name = self.of(call), call.ready.session
        if state is None or name is None or state.next_call != call.ready.call:
            return
        state.next_call = ""
        self._workers[state.worker].returned.discard(name)
        if state.until_s is None:
            return
        if state.until_s > now_s:
            out.append(Retain(session=name, worker=state.worker, until_s=state.until_s))
        else:
            self.release(name, out)

    def returned(self, workers: Iterable[WorkerState]) -> Iterator[tuple[str, WorkerState]]:
        """The calls that wait while a pin keeps what they go on with, and where that lies."""
        for worker in workers:
            for session in worker.returned:
                yield self.by_name[session].next_call, worker
