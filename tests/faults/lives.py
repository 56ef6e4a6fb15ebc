"""One life of a job: a process, from its start to its end, and what it does to the world."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenter.runtime.calls import Request
from tenter.runtime.run.control import Control

from .books import Broken
from .disk import copy
from .loops import FaultLoop
from .stories import DISK, Fault
from .workers import Worker

if TYPE_CHECKING:
    from .worlds import World

MEETINGS = 30  # turns of another process in which a frozen one may go on
TOOL_S = 0.2  # that a tool takes
CLEARINGS, PATIENCE_S = 3, 10.0  # how often, and for how long, dead tasks are waited for


class Life:
    """A process that runs the job. `over`: it is dead, and nothing that it does has an effect."""

    def __init__(self, world: "World", number: int) -> None:
        self.world, self.number = world, number
        self.story = world.story
        self.loop = FaultLoop(self)
        self.control = Control()
        self.over = False
        self.taken_over = False  # by another process, while it was frozen
        self.journal: Any = None
        self.closed = False  # the journal, by itself
        self.status = "running"  # of the run, as this life has recorded it
        self.operations = 0
        self.fired: list[Fault] = []
        self.spent: list[tuple[float, int]] = []  # when, and tokens of a prompt
        self.ended_s: dict[int, float] = {}  # when rows were acknowledged as ended
        self.used_tokens = 0  # by calls that have ended
        self._in_use: Counter[str] = Counter()  # rows or texts for which tools run
        self._disk: dict[int, Fault] = {}
        self._workers: list[Worker] = []
        self.meets_at = 0  # the turn of the other process at which it goes on, once frozen
        self.began_s = world.boot_s
        self._set_out()

    @property
    def holds(self) -> bool:
        """Whether it has the journal open."""
        return self.journal is not None and not self.closed

    @property
    def now_s(self) -> float:
        """Seconds since the machine was started."""
        return self.began_s + self.loop.time()

    def _set_out(self) -> None:
        for fault in self.world.faults_of(self.number):
            action = HAPPENINGS.get(fault.kind)
            if action is not None:
                place = int(fault.amount) if fault.kind in ("kill", "power") else 0
                happen = lambda fault=fault, action=action: self._happen(fault, action)
                self.loop.at.setdefault(fault.at, []).append((place, happen))
            elif fault.kind in DISK:
                self._disk.setdefault(fault.at, fault)

    def _happen(self, fault: Fault, action: "Callable[[Life, float], None]") -> None:
        if not self.over:
            self.fired.append(fault)
            self.world.tell(f"{fault}")
            action(self, fault.amount)

    def _guard(self, check: Callable[..., Any], *given: Any) -> Any:
        """Have the world check something; the job does not see what broke."""
        try:
            return check(*given)
        except Broken as broken:
            self.world.breach(broken)
            return None

    def run(self, work: Coroutine[Any, Any, Any]) -> Generator[None, None, Any]:
        """The result of `work`; raises Stopped where the process stops before."""
        self.task = self.loop.create_task(work)
        return (yield from self.go_on())

    def go_on(self) -> Generator[None, None, Any]:
        """The same; it yields where other processes may go on meanwhile (see `fleets`)."""
        yield from ()
        return self.loop.run_until_complete(self.task)

    # ---- what stops it ------------------------------------------------------------------------------

    def die(self, power: bool) -> None:
        """What is durable now is all that is left of this life."""
        if self.over:
            return
        self.over = True
        self.world.tell("dies")
        if not self.taken_over:  # else the other process goes on, and so does the disk
            copy(self.world.folder, self.world.left)
            if power:
                self.world.lose_power()
        self.loop.stop_now()

    def freeze(self, seconds: float) -> None:
        """Nothing goes on for a while; the last sign of life was just given. That happens once."""
        if not self.meets_at and self.journal is not None:
            self.journal._on_beat()
            self.meets_at = 1 + int(seconds) % MEETINGS
            self.skip(seconds)
            self.loop.stop_now()

    def skip(self, seconds: float) -> None:
        """The clock goes on, and nothing else does: tools that run have no time left."""
        for who in self._in_use:
            self.world.excuse(who)
        self.loop.skip(seconds)

    def bury(self) -> None:
        """Clear up what the dead process has left in this one."""
        self.over = True
        self.loop.set_exception_handler(lambda loop, context: None)
        self.loop.at.clear()
        self.close()

    def close(self) -> None:
        """Let go of the loop, once every task has ended."""
        self.loop.clear_up()
        for _ in range(CLEARINGS):
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            self.task.cancel() if self.task in tasks else [task.cancel() for task in tasks]
            with suppress(BaseException):
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=PATIENCE_S))
        with suppress(BaseException):
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    # ---- the disk -----------------------------------------------------------------------------------

    def operation(self, name: str) -> str | None:
        """Count an operation of the disk; what is to go wrong with it."""
        if self.over:
            return None
        self.operations += 1
        self.world.tell(name)
        fault = self._disk.get(self.operations)
        if fault is None or fault.kind == "hang":
            return None
        self.fired.append(fault)
        self.world.tell(f"{fault}")
        return fault.kind

    def disk_s(self) -> float:
        """How long the next job of the journal's thread takes."""
        fault = self._disk.get(self.operations + 1)
        hangs = fault is not None and fault.kind == "hang"
        return fault.amount if hangs else self.story.disk_s

    def synced(self, log: Path) -> None:
        """The log of a journal has been made durable."""
        if self.over:
            return
        if self.journal is not None:  # else it is not known yet what there is
            self.world.book.made_durable()
        if self.world.durable is not None:
            self.world.durable.log(log)

    def fsynced(self, path: Path, size: int) -> None:
        if self.world.durable is not None and not self.over:
            self.world.durable.file(path, size)

    def opened(self, journal: Any, file: Any) -> None:
        """The journal is open: compare it with what was acknowledged."""
        self.journal = journal
        if not self.over:
            self._guard(self.world.book.audit, file)

    def noted(self, set_status: Callable[..., None]) -> Callable[..., None]:
        """The same; what status the run has is known here once it is recorded."""

        def noting(status: str, *summary: Any) -> None:
            set_status(status, *summary)
            self.status = status

        return noting

    def heard(
        self, journal: Any, entry: Any, then: Callable[[], None] | None, sync: bool
    ) -> Callable[[], None] | None:
        """Something is to be recorded; returns what is to be called once it is."""
        if self.over:
            return then
        self.world.book.write(entry)
        if then is None:
            return None

        def acknowledged() -> None:
            if not self.over:
                self._guard(self.world.acknowledged, self, entry, sync)
            then()

        return acknowledged

    # ---- servers and tools ----------------------------------------------------------------------------

    @asynccontextmanager
    async def open_workers(self) -> AsyncGenerator[list[Worker]]:
        self._workers = [Worker(self, index) for index in range(self.story.workers)]
        for fault in self.world.faults_of(self.number):
            if fault.kind in ("death", "end") and fault.at < len(self._workers):
                self.loop.call_later(fault.amount, self._worker_dies, fault)
        yield self._workers

    def _worker_dies(self, fault: Fault) -> None:
        if not self.over:
            self.fired.append(fault)
            self.world.tell(f"{fault}")
            self._workers[fault.at].die(returns=fault.kind == "death")

    def asked(self, worker: int, request: Request, running: int) -> Fault | None:
        """A request has come to a worker; what goes wrong with it."""
        if self.over:
            return None
        return self._guard(self.world.asked, self, worker, request, running)

    async def use(self, tool: str, who: str, key: str = "") -> None:
        """A tool does its work, half of the time before its effect and half after it."""
        fault = None if self.over else self.world.used(self, tool, who)
        self._in_use[who] += 1
        try:
            await self._work(fault, tool, who, key)
        finally:
            self._in_use -= Counter([who])

    async def _work(self, fault: Fault | None, tool: str, who: str, key: str) -> None:
        await asyncio.sleep(TOOL_S / 2)
        if fault is not None:
            if fault.kind == "tool hangs":
                await asyncio.sleep(100_000.0)
            raise ValueError("the tool fails")
        if not self.over:
            self._guard(self.world.effect, tool, who, key)
        await asyncio.sleep(TOOL_S / 2)


HAPPENINGS: dict[str, Callable[[Life, float], None]] = {
    "kill": lambda life, amount: life.die(power=False),
    "power": lambda life, amount: life.die(power=True),
    "freeze": lambda life, amount: life.freeze(amount),
    "jump": lambda life, amount: life.skip(amount),
    "drain": lambda life, amount: life.control.drain(),
    "abort": lambda life, amount: life.control.abort(),
}
