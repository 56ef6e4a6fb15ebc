"""The programs of a run whose rows are in shards: what starts, steers and counts them."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from math import ceil
from typing import Any

from ..clock import now
from ..errors import BackendUnavailable, InvalidInput, StepFailed
from ..journal.base import StepRecord
from ..run.program import NOTHING, Ended
from ..scheduler.events import CallEnded, Change, ProgramEnded
from ..trace import Record, Trace
from . import messages
from .failures import ShardFailed
from .given import Given, steps_of
from .messages import Tell
from .sharding import Sharding
from .slot import Slot

WORTH_ROWS = 4  # that have not begun, from which on another shard may take the half of them


class RayWork:
    """Implements `jobs.engine.Work`, and is the trace that shards write to.

    `moves`: rows may run in another shard than that which they were planned for.
    """

    takes_all = True

    def __init__(self, sharding: Sharding, trace: Trace, shards: int, moves: bool) -> None:
        self.planned = sharding
        self.slots: list[Slot] = []
        self.paused = False
        self._trace = trace
        self._shards = shards
        self._budget_tokens: int | None = None
        self._used_tokens = 0
        self._moves = moves
        self._moving = False  # rows are on their way from one shard to another
        self._failed: BackendUnavailable | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def programs(self) -> "RayWork":
        return self

    @property
    def host(self) -> "RayWork":
        return self

    # ---- programs ----------------------------------------------------------------------------------

    def arrive(
        self,
        row: int,
        inputs: Mapping[str, Any],
        ended: Ended,
        recorded: Mapping[str, StepRecord] = NOTHING,
    ) -> None:
        """Hand a row to its shard."""
        if self._failed is not None:
            ended(None, self._failed)
            return
        try:
            packed = messages.pack_inputs(inputs)
        except (TypeError, ValueError) as error:
            ended(None, StepFailed(f"the inputs of the row cannot be sent to a shard: {error}"))
            return
        given = Given(packed, ended, steps_of(recorded.values()))
        self.slots[self.planned.shard_of(row)].hand(row, given)

    def level(self, idle: Slot) -> None:
        """Have a shard whose rows have all begun take a part of those that another one has left."""
        rich = max(self.slots, key=lambda slot: slot.waiting)
        still = self._moving or self.paused or self._failed is not None or idle.draining
        if still or not self._moves or rich.waiting < WORTH_ROWS:
            return

        def take(rows: Sequence[tuple[int, Given]]) -> None:
            self._moving = False
            for row, given in rows:
                idle.hand(row, given)

        self._moving = True
        rich.recall(self.planned.second_half, take)

    def refuse(self, row: int, problem: str) -> None:
        """Note a row that no program can be run for."""
        record = ProgramEnded(program=f"r{row}", row=row, ok=False, error=problem)
        self._trace.write(now(), record)

    def drain(self) -> None:
        """Let what runs end, and start nothing any more."""
        for slot in self.slots:
            slot.drain()

    def cancel(self, name: str) -> None:
        """Wait for a row no more; its shard is stopped with the run."""
        for slot in self.slots:
            ended = slot.drop(int(name.removeprefix("r")))
            if ended is not None:
                ended(None, StepFailed("the program was cancelled"))

    def give_up(self, error: Exception) -> None:
        """A shard cannot go on, so the run cannot."""
        failed = error if isinstance(error, ShardFailed) else BackendUnavailable(str(error))
        self._failed = self._failed or failed
        for slot in self.slots:
            for row in slot.left:
                ended = slot.drop(row)
                if ended is not None:
                    ended(None, self._failed)

    # ---- steering ----------------------------------------------------------------------------------

    @property
    def spent(self) -> bool:
        """Whether calls have used up the token budget."""
        return self._budget_tokens is not None and self._used_tokens >= self._budget_tokens

    def pause(self) -> None:
        """Let what runs end, and hold back what would start."""
        self._pause(True)

    def go_on(self) -> None:
        """Start what `pause` has held back."""
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        self.paused = paused
        for slot in self.slots:
            slot.steer(Tell(paused=paused))

    def change(self, change: Change) -> None:
        """Go on with other settings; the token budget is kept here.

        Raises InvalidInput for limits, which were shared out among the shards.
        """
        if change.limits is not None:
            raise InvalidInput("--limits: they cannot be changed while a run goes on on Ray")
        if change.token_budget is not None:
            self._budget_tokens = change.token_budget
        many = None if change.max_programs is None else ceil(change.max_programs / self._shards)
        tell = Tell(concurrency=many, order=change.order, retention=change.retention)
        if tell != Tell():
            for slot in self.slots:
                slot.steer(tell)

    def run_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine beside the run, which ends it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- the trace ---------------------------------------------------------------------------------

    def write(self, at_s: float, record: Record) -> None:
        """Take a record of a shard's trace."""
        if isinstance(record, CallEnded):
            left = not self.spent
            self._used_tokens += record.prompt_tokens + record.output_tokens
            if left and self.spent:
                self.pause()  # nothing starts until the run has heard of it, and drains
        self._trace.write(at_s, record)
