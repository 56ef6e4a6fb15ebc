"""One process of a fleet: its lives take turns with those of the others (see `fleets`)."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenter.runtime.calls import Request
from tenter.runtime.errors import JournalError, TenterError
from tenter.runtime.journal.base import StepRecord
from tenter.runtime.trace import Record

from .fleet_stories import MESSAGES
from .lives import MEETINGS, Life
from .stories import Fault
from .workers import Worker
from .worlds import MOST_LIVES, World

if TYPE_CHECKING:
    from .fleets import Fleet

BOOT_S = 1000.0
KV_TOKENS = 2_000  # of a server
LEASE_S = 31.0  # after which a run of a dead process can be claimed
AGAIN_S = 10.0  # after which a run that ended with an error is resumed


class Member(World):
    """One process of a fleet, with its lives, its run and the account of them."""

    def __init__(self, fleet: "Fleet", number: int, folder: Path, log: bool) -> None:
        self.fleet, self.number = fleet, number
        self.run: str | None = None  # type: ignore[assignment]
        self.lost = False  # its run, by a Redis that came back empty
        self._frozen = False
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(fleet.story.members[number], folder, log)
        self.log = fleet.log
        self.stained = fleet.stained
        self.boot_s = BOOT_S + fleet.story.starts[number] / 10
        self.life = self.new_life(0)
        home = f"redis://fleet:1/0?folder={self.folder}"
        self.spec = replace(self.spec, home=home, cache=True)
        self.home = home  # type: ignore[assignment]

    @property
    def next_s(self) -> float:
        """When it goes on."""
        here = self.life
        return here.began_s + (here.loop.next_s if hasattr(here, "task") else 0.0)

    @property
    def died(self) -> bool:
        """Whether it is known that its last life is over."""
        return self.fleet.story.one_machine and not self._frozen

    def new_life(self, number: int) -> Life:
        if 0 < number < MOST_LIVES:
            self.boot_s += 0.0 if self.fleet.story.one_machine else LEASE_S
            self.boot_s += AGAIN_S if self.ends[-1].endswith("Error") else 0.0
        process = Process(self, number)
        self.fleet.processes.append(process)
        return process

    def tell(self, text: str) -> None:
        self.hash.update(text.encode())
        if self._logs:
            at_s = self.fleet.now_s - BOOT_S
            self.log.append(f"{at_s:12,.3f} {self.number}.{self.life.number}: {text}")

    def record(self, at_s: float, record: Record) -> None:
        super().record(at_s, record)
        if self._logs:
            self.log.pop()
            self.tell(f"{record}")

    def _begun(self) -> str | None:
        return self.run if self.book.began else None

    def _thaw(self, frozen: Life, meets_at: int) -> Generator[None, None, str]:
        self._frozen = True
        try:
            return (yield from super()._thaw(frozen, meets_at))
        finally:
            self._frozen = False

    def _outcome(self, life: Life, end: str | BaseException) -> str:
        text = str(end)
        if self.fleet.restarted and isinstance(end, TenterError) and "restarted empty" in text:
            self.lost = True
            return "lost"
        server = [each for each in self.fleet.fired if each.kind not in MESSAGES]
        if isinstance(end, JournalError) and server:
            return "JournalError"
        if isinstance(end, JournalError) and "is running already" in text and self.fleet.fired:
            return "JournalError"  # it could not let go of its lease
        return super()._outcome(life, end)

    def acknowledged(self, life: Life, entry: Any, sync: bool) -> None:
        if life.taken_over and self.run is not None:  # then it was there before that
            stored = self.fleet.stored(self.run)
            if isinstance(entry, StepRecord):
                found = stored.steps(0, 0).get((entry.row, entry.path))
            else:
                found = stored.rows(0, 0).get(entry.row)
            if found is not None and found.value == entry.value:
                return
        super().acknowledged(life, entry, sync)

    def asked(self, life: Life, worker: int, request: Request, running: int) -> Fault | None:
        fault = super().asked(life, worker, request, running)
        self.fleet.disturbed |= fault is not None
        self.fleet.check_server(worker)
        self.fleet.check_once(self, (request.token_ids, request.choices))
        return fault

    def used(self, life: Life, tool: str, who: str) -> Fault | None:
        fault = super().used(life, tool, who)
        self.fleet.disturbed |= fault is not None
        if tool in ("look", "parts"):
            self.fleet.check_once(self, (tool, who))
        return fault

    def _check_journal(self) -> None:
        return


class Process(Life):
    """A life that takes turns with those of other processes."""

    @property
    def fleet(self) -> "Fleet":
        assert isinstance(self.world, Member)
        return self.world.fleet

    def go_on(self) -> Generator[None, None, Any]:
        while not self.task.done():
            yield
            self.loop.step()
        return self.task.result()

    def _happen(self, fault: Fault, action: Callable[[Life, float], None]) -> None:
        self.fleet.disturbed = True
        super()._happen(fault, action)

    def running(self, index: int) -> int:
        """The calls that a server has of it."""
        return len(self._workers[index]._waits) if index < len(self._workers) else 0

    def freeze(self, seconds: float) -> None:
        if not self.meets_at and self.journal is not None:
            self.fleet.excuse(seconds)
            self.meets_at = 1 + int(seconds) % MEETINGS
            self.skip(seconds)
            self.loop.stop_now()

    def skip(self, seconds: float) -> None:
        self.fleet.excuse(seconds)
        super().skip(seconds)

    @asynccontextmanager
    async def open_workers(self) -> AsyncGenerator[list[Worker]]:
        async with super().open_workers() as workers:
            for index, worker in enumerate(workers):
                worker.capabilities = replace(
                    worker.capabilities, place=f"server {index}", kv_tokens=KV_TOKENS
                )
            yield workers
