"""The calls on their way to one server: sent alone or in batches, aborted, and lost together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from ...calls import CallId
from ...clock import now
from ...errors import BackendUnavailable, CallFailed, TenterError, TryAgain
from ..http import Client
from ..http_exchange import NotBegun
from .attempt import Attempt
from .exchange import Exchange
from .health import Patience, lives
from .wire import server_priority

log = logging.getLogger(__name__)
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Traffic:
    """Attempts by their call. `spawn` runs a task for as long as the backend is in use, `lost`
    is told why the server cannot be used any more, `rid` makes a new request id."""

    def __init__(
        self,
        client: Client,
        exchange: Exchange,
        patience: Patience,
        spawn: Spawn,
        lost: Callable[[str], None],
        rid: Callable[[], str],
    ) -> None:
        self.exchange = exchange
        self.attempts: dict[CallId, Attempt] = {}
        self._client = client
        self._patience = patience
        self._spawn = spawn
        self._lost = lost
        self._rid = rid
        self._groups: dict[tuple[str, int], list[Attempt]] = {}  # of this turn of the loop
        self._halts: set[asyncio.Task[None]] = set()  # aborts that are not confirmed yet
        self._watching = False

    def add(self, attempt: Attempt) -> None:
        """Send it, and watch the server while there is anything to wait for."""
        if not self.attempts:
            self.exchange.heard_s = now()
        self.attempts[attempt.request.call] = attempt
        self._send(attempt)
        if not self._watching:
            self._watching = True
            self._spawn(self._watch())

    def remove(self, attempt: Attempt) -> None:
        """Nobody waits for it any more: it is aborted, if it has not ended here and there."""
        del self.attempts[attempt.request.call]
        if self._halt(attempt) is None:
            attempt.batch = ()  # a cycle less for the garbage collector
            self._abandon([attempt])

    async def abort(self, attempt: Attempt) -> None:
        """Returns once it has ended; a caller who does not wait for that changes nothing."""
        halt = self._halt(attempt)
        if halt is not None:
            await asyncio.shield(halt)

    async def abort_all(self) -> None:
        """Returns once all have ended."""
        for attempt in self.attempts.values():
            self._halt(attempt)
        if self._halts:
            await asyncio.wait(tuple(self._halts))

    # -- sending

    def _send(self, attempt: Attempt) -> None:
        """At once, or together with the others of its group at the end of this turn of the loop."""
        request = attempt.request
        apart = request.session is not None and not self.exchange.retention.batches
        if request.group is None or request.choices is not None or apart:
            self._start([attempt])
            return
        key = (request.group, server_priority(request.priority, self.exchange.info))
        group = self._groups.setdefault(key, [])
        group.append(attempt)
        if len(group) == 1:
            asyncio.get_running_loop().call_soon(self._send_group, key)

    def _send_group(self, key: tuple[str, int]) -> None:
        waiting = [attempt for attempt in self._groups.pop(key) if not attempt.ended]
        if waiting:
            self._start(waiting)

    def _start(self, attempts: Sequence[Attempt]) -> None:
        task = self._spawn(self._drive(attempts))
        for attempt in attempts:
            attempt.task, attempt.batch, attempt.running = task, attempts, True

    async def _drive(self, attempts: Sequence[Attempt]) -> None:
        """Read the answers of `attempts` to their ends, however they end."""
        try:
            await self._ask(attempts)
        except TenterError as error:
            self._broke(attempts, error)
        except Exception as error:
            log.exception("%s: reading an answer failed", self._client.url)
            for attempt in attempts:
                attempt.fail(CallFailed(f"{self._client.url}: {type(error).__name__}: {error}"))

    def _ask(self, attempts: Sequence[Attempt]) -> Awaitable[None]:
        if len(attempts) > 1:
            return self.exchange.run_group(attempts)
        if attempts[0].request.choices is not None:
            return self.exchange.score(attempts[0])
        return self.exchange.run(attempts[0])

    def _broke(self, attempts: Sequence[Attempt], error: TenterError) -> None:
        """Calls of a batch that was refused as a whole are asked for one by one."""
        refused = isinstance(error, CallFailed) and not isinstance(error, TryAgain)
        if refused and len(attempts) > 1:
            self._split(attempts, error)
            return
        gone = isinstance(error, BackendUnavailable)
        if gone:
            self._lost(str(error))
        for attempt in attempts:
            if gone or refused or isinstance(error, NotBegun):
                attempt.running = False
            attempt.fail(error)

    def _split(self, attempts: Sequence[Attempt], error: TenterError) -> None:
        """Those that have begun to come cannot begin anew under the eyes of their callers."""
        self._abandon(attempts)
        for attempt in attempts:
            if attempt.ended:
                continue
            if attempt.aborting or attempt.answer.come:
                attempt.fail(TryAgain(f"{error}; it had begun to answer this call"))
            else:
                attempt.rids = (self._rid(),)
                self._start([attempt])

    # -- aborts

    def _halt(self, attempt: Attempt) -> asyncio.Task[None] | None:
        """The task that sees to the end of `attempt`; None if it has ended."""
        attempt.aborting = True
        if attempt.task is None:  # not sent yet
            attempt.give_up()
        if attempt.halt is None and not attempt.ended:
            attempt.halt = self._spawn(self._stop(attempt))
            self._see_to(attempt.halt)
        return attempt.halt

    async def _stop(self, attempt: Attempt) -> None:
        """Abort until the server confirms it: an abort that overtakes its request has no effect."""
        for pause_s in self._patience.abort_s:
            await self.exchange.abort(attempt.rids)
            if await attempt.ends_within(pause_s):
                return
        attempt.give_up()
        if attempt.task is not None and all(each.ended for each in attempt.batch):
            attempt.task.cancel()

    def _abandon(self, attempts: Sequence[Attempt]) -> None:
        """Whatever the server may still do for them is for nothing."""
        rids = [rid for attempt in attempts if attempt.running for rid in attempt.rids]
        for attempt in attempts:
            attempt.running = False
        if rids:
            self._see_to(self._spawn(self.exchange.abort(rids)))

    def _see_to(self, task: asyncio.Task[None]) -> None:
        self._halts.add(task)
        task.add_done_callback(self._halts.discard)

    # -- a server that says nothing

    async def _watch(self) -> None:
        """While calls run: a server that has fallen silent must answer something else."""
        try:
            while self.attempts:
                silent_s = now() - self.exchange.heard_s
                if silent_s < self._patience.quiet_s:
                    await asyncio.sleep(self._patience.quiet_s - silent_s)
                elif await lives(self._client, self._patience):
                    await asyncio.sleep(self._patience.quiet_s)
                else:
                    self._lose()
        finally:
            self._watching = False

    def _lose(self) -> None:
        patience = self._patience
        failure = (
            f"{self._client.url}: the server hangs: no answer to a call, and none to {patience.misses} "
            f"questions of {patience.answer_s:g} s each; restart it"
        )
        self._lost(failure)
        for attempt in tuple(self.attempts.values()):
            attempt.running = False  # it is left by closing its connection
            attempt.fail(BackendUnavailable(failure))
            if attempt.task is not None:
                attempt.task.cancel()
