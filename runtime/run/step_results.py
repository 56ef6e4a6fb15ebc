"""What steps have given: recorded, handed to equal work, and found again."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf
from typing import Any

from msgspec.structs import replace

from ..calls import Usage
from ..clock import now
from ..errors import JournalError, StepFailed
from ..fleet.flights import Flights
from ..journal.base import Journal, StepRecord
from ..journal.results import Kept, Results
from ..scheduler.events import CallShared, ToolStarted
from ..scheduler.loop import NO_USAGE, Scheduler
from ..trace import Record, Trace
from .codec import decode, encode, is_json
from .draft import is_draft
from .owner import Owner
from .sharing import Settled, Sharing


class StepResults:
    """The results of a run's steps, in its journal, in memory, and in the cache of all runs.

    Every result is recorded before it is handed on.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        trace: Trace,
        tasks: asyncio.TaskGroup,
        sharing: Sharing | None,
        resumed: bool,
        results: Results | None,
        flights: Flights | None,
    ) -> None:
        self.scheduler = scheduler
        self.journal = journal
        self.sharing = sharing
        self.resumed = resumed
        self.results = results
        self._flights = flights
        self._trace = trace
        self._tasks = tasks
        self.draining = False
        self.closing = False  # the whole run ends: nobody can take over

    def answered_before(
        self, owner: Owner, path: str, step: str, done: Settled, tool: str = ""
    ) -> bool:
        """Whether the journal has a step's value; then it is handed on."""
        record = owner.recorded.get(path)
        if record is None or is_draft(record):
            return False
        self.note(CallShared(program=owner.name, step=step, how="journal", tool=tool))
        done(decode(record.value), None)
        return True

    def share(
        self,
        owner: Owner,
        path: str,
        step: str,
        signature: bytes | None,
        start: Callable[[], None],
        done: Settled,
        started: ToolStarted | None = None,
        local: bool = False,
    ) -> None:
        """Answer from equal work if there is any; otherwise `start`.

        `started` is what the scheduler hears where it is a tool's: the KV of a session that waits
        for the call of another is kept too. `local`: its result answers this run alone.
        """
        sharing, tool = self.sharing, started.tool if started is not None else ""
        if sharing is None or signature is None:
            start()
        elif sharing.known(signature):
            self.note(CallShared(program=owner.name, step=step, how="cached", tool=tool))
            done(sharing.result(signature), None)
        elif sharing.in_flight(signature):

            def settled(value: Any, error: Exception | None) -> None:
                owner.note(error)
                done(value, error)

            def retry() -> None:
                if not owner.ended:
                    self.share(owner, path, step, signature, start, done, started, local)

            sharing.join(signature, settled, retry)
            self.note(CallShared(program=owner.name, step=step, how="joined", tool=tool))
            if started is not None and started.session is not None:
                self.scheduler.send(replace(started, joined=True))
        elif self.resumed or (self.results is not None and not local):
            sharing.begin(signature)
            looking = self._look_up(owner, path, step, signature, start, done, tool, local)
            self._tasks.create_task(looking)
        else:
            sharing.begin(signature)
            start()

    async def _look_up(
        self,
        owner: Owner,
        path: str,
        step: str,
        signature: bytes,
        start: Callable[[], None],
        done: Settled,
        tool: str,
        local: bool,
    ) -> None:
        """Equal work of this run before it was stopped, or of another one, has perhaps an answer."""
        found: Mapping[bytes, bytes] = {}
        if self.resumed:
            with suppress(JournalError):  # a broken one tells the run; what is damaged is made anew
                found = await self.journal.results([signature])
        if signature in found and self.sharing is not None:
            value = decode(found[signature])
            self.note(CallShared(program=owner.name, step=step, how="journal", tool=tool))
            self.sharing.finish(signature, value)
            done(value, None)
            return
        kept = None
        if not owner.ended and not local:
            kept = await self.find_result(owner, step, signature, tool, wait=True)
        if kept is None:
            start()
        else:
            value = decode(kept.value)
            self.record(owner, path, value, signature, done, keep_s=kept.left_s, known=True)

    async def find_result(
        self, owner: Owner, step: str, key: bytes, tool: str = "", wait: bool = False
    ) -> Kept | None:
        """What the result cache has under `key`; a find is noted.

        With `wait`, equal work that another process does is waited for. What is not found is then
        this process's to do, until `record`, `failed` or `abandon`.
        """
        kept = None if self.results is None else await self.results.find(key)
        if kept is None and wait and self._flights is not None:
            kept = await self._flights.enter(key, lambda: owner.ended or self.draining)
        if kept is None or not is_json(kept.value):
            return None
        self.note(
            CallShared(
                program=owner.name,
                step=step,
                how="result-cache",
                tool=tool,
                prompt_tokens=kept.prompt_tokens,
                output_tokens=kept.output_tokens,
            )
        )
        return kept

    @property
    def looks_elsewhere(self) -> bool:
        """Whether others than the programs of this process may have done, or do, equal work."""
        return self.resumed or self.results is not None

    async def enter_first(self, signature: bytes) -> bool:
        """Whether equal work has no result yet, and no other process does it.

        It is then this process's to do, until `record`, `failed` or `abandon`.
        """
        if self.resumed:
            with suppress(JournalError):
                if signature in await self.journal.results([signature]):
                    return False
        if self._flights is not None and not await self._flights.try_enter(signature):
            return False
        kept = None if self.results is None else await self.results.find(signature)
        if kept is not None:  # it may have come just before the claim, too
            self._leave(signature, kept=True)
        return kept is None

    def record(
        self,
        owner: Owner,
        path: str,
        value: Any,
        signature: bytes | None,
        done: Settled,
        sync: bool = False,
        keep_s: float | None = None,
        usage: Usage = NO_USAGE,
        known: bool = False,
    ) -> None:
        """Write down a step's value, then hand it on, to those too who wait for equal work.

        `sync`: not even a power cut may undo it. `keep_s`: it answers equal work only so long.
        `usage` is what it took; `known`: the result cache has it already, or is not to have it.
        """

        def durable() -> None:
            if signature is not None and self.sharing is not None:
                self.sharing.finish(signature, value, keep_s)
            done(value, None)

        try:
            lasting = signature if keep_s is None else None  # by then, a resumed run asks anew
            record = StepRecord(owner.row, path, encode(value), lasting)
            self.journal.record(record, durable, sync)
            if signature is not None and known:
                self._leave(signature, kept=False)
            elif signature is not None:
                self._keep_result(signature, record.value, usage, keep_s)
        except JournalError as error:
            self.failed(signature, error, done)
        except (TypeError, ValueError) as error:  # such as half a surrogate pair
            self.failed(signature, StepFailed(f"the result is not JSON: {error}", path), done)

    def _keep_result(self, key: bytes, value: bytes, usage: Usage, keep_s: float | None) -> None:
        """Let later runs find a result; one that was given no end by what was read is not theirs."""
        lasting = keep_s is None or 0 < keep_s < inf
        if self.results is not None and lasting:
            self.results.keep(key, Kept(value, usage.prompt_tokens, usage.output_tokens, keep_s))
        self._leave(key, lasting)

    def _leave(self, key: bytes, kept: bool) -> None:
        """Work that other processes may wait for is over; `kept`: they will find its result."""
        if self._flights is not None:
            self._flights.leave(key, kept)

    def failed(self, signature: bytes | None, error: Exception, done: Settled) -> None:
        """A step has failed, and so has equal work of this process."""
        if signature is not None and self.sharing is not None:
            self.sharing.fail(signature, error)
            self._leave(signature, kept=False)
        done(None, error)

    def abandon(self, signature: bytes | None) -> None:
        """A step's program has ended before it: somebody else who waits must do the work."""
        if signature is not None and self.sharing is not None and not self.closing:
            self._leave(signature, kept=False)
            self.sharing.give_up(signature)

    def changed(self, written: frozenset[str]) -> None:
        """A tool writes, or has written, to these: what was read of them answers nobody any more."""
        if written and self.sharing is not None:
            self.sharing.changed(written)

    def note(self, record: Record) -> None:
        """Write down what is no event of the scheduler: work saved, rows refused."""
        self._trace.write(now(), record)
