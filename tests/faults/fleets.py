"""Several processes of one fleet in virtual time: each a `World` of its own, with its own run, files
and account; the servers and the Redis are everybody's. `tell_fleet` is the way in.

Each process has an event loop of its own. The one whose next callback is due first goes on, so that
their clocks agree; of those that are due at the same time the story's seed picks one.
"""

import heapq
import types
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from redis.exceptions import RedisError

from tenter.runtime.backends import registry
from tenter.runtime.fleet import link
from tenter.runtime.journal import redis as journal_redis
from tenter.runtime.journal import redis_runs, redis_sender
from tenter.runtime.journal.base import RowRecord, StepRecord
from tenter.runtime.journal.redis_format import Keys
from tenter.runtime.journal.redis_upkeep import entries_of_redis
from tenter.runtime.predict import books_redis
from tenter.runtime.run import local

from . import disk
from .books import Broken
from .fleet_stories import MESSAGES, FleetStory, Happening
from .keeper import Command, Keeper
from .lives import Life
from .loops import life, life_here
from .members import BOOT_S, Member, Process
from .wires import SharedResults, Subscription, Telephone, Wire
from .worlds import Verdict, answers, quietly

EXCUSED_S = 45.0  # for which a server may be overcommitted, by docs/fleet.md, once a lease ended
PATIENCE_S = 100.0  # by which each thing that goes wrong may put off the end
ALONE = ("chatting",)  # whose equal calls are not waited for


def tell_fleet(story: FleetStory, folder: Path, log: bool = False) -> Verdict:
    """Live through a fleet's story in `folder`, which is emptied."""
    for member in story.members:
        answers(member.job, member.suffix)
    fleet = Fleet(story, folder, log)
    rule, detail = quietly(fleet.run)
    traces = "".join(member.hash.hexdigest() for member in fleet.members)
    ends = tuple(end for member in fleet.members for end in member.ends)
    fired = len(fleet.fired) + sum(member.fired for member in fleet.members)
    return Verdict(story, ends, traces, fired, rule, detail, tuple(fleet.log))


class Fleet:
    """The processes and what they share."""

    def __init__(self, story: FleetStory, folder: Path, log: bool) -> None:
        self.story = story
        self.draw = Random(story.seed)
        self.log: list[str] = []
        self.keeper = Keeper()
        self.gone = False
        self.stuck_until_s = 0.0
        self.restarted = False
        self.disturbed = False  # whether anything has gone wrong
        self.fired: list[Happening] = []
        self.excused_until_s = 0.0
        self.asked: dict[Any, int] = {}  # what was asked of servers, and by whom
        self.stained: set[str] = set()
        self.processes: list[Process] = []
        self.subscriptions: list[Subscription] = []
        self._messages = 0
        self._order = count()
        self._faults = {each.at: each for each in story.happenings if each.kind in MESSAGES}
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._last_s = BOOT_S
        self.members = [
            Member(self, number, folder / str(number), log) for number in range(len(story.members))
        ]
        wrong = len(story.happenings) + sum(len(member.faults) for member in story.members)
        jumps_s = sum(each.amount for each in story.faults if each.kind == "jump")
        self._ends_s = BOOT_S + PATIENCE_S * (1 + wrong) + jumps_s
        for each in story.happenings:
            if each.kind not in MESSAGES:
                self._at(BOOT_S + each.at / 10, lambda each=each: self._happen(each))

    @property
    def now_s(self) -> float:
        """Seconds since the machines were started."""
        here = life_here()
        return self._last_s if here is None else here.now_s

    # ---- time --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Have all processes live until their jobs are done."""
        with self._installed():
            running = {member: member.lives() for member in self.members}
            while running:
                self._step(running)

    def _step(self, running: "dict[Member, Generator[None]]") -> None:
        times = {member: member.next_s for member in running}
        first_s = min(times.values())
        if self._events and self._events[0][0] <= first_s:
            self._last_s = max(self._last_s, self._events[0][0])
            heapq.heappop(self._events)[2]()
            return
        if first_s == inf:
            raise Broken("a life never ends", "every process waits")
        if first_s > self._ends_s:
            raise Broken("a life never ends", f"after {first_s - BOOT_S:,.0f} s")
        self._last_s = max(self._last_s, first_s)
        member = self.draw.choice([each for each, at_s in times.items() if at_s == first_s])
        try:
            next(running[member])
        except StopIteration:
            del running[member]

    def _at(self, at_s: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), action))

    def later(self, after_s: float, action: Callable[[], object]) -> None:
        """Do something after a while, whoever lives by then."""
        self._at(self.now_s + after_s, action)

    # ---- Redis -------------------------------------------------------------------------------------

    def message(self, sender: Life) -> str | None:
        """Count a message; what goes wrong with it."""
        if sender.over:
            return None
        self._messages += 1
        fault = self._faults.get(self._messages)
        if fault is None:
            return None
        self._fire(fault)
        return fault.kind

    def answers(self, commands: list[Command]) -> list[Any]:
        """What Redis answers; errors in the place of answers."""
        found: list[Any] = []
        for command in commands:
            try:
                found.append(self.keeper.do(self.now_s, command))
            except RedisError as error:
                found.append(error)
        while self.keeper.published:
            channel, data = self.keeper.published.pop(0)
            for each in self.subscriptions:
                if each.channel == channel and not each.cut:
                    each.deliver(data)
        return found

    def _cut(self) -> None:
        """No connection outlives this."""
        for each in self.subscriptions:
            each.cut = True

    def _happen(self, happening: Happening) -> None:
        self._fire(happening)
        match happening.kind:
            case "outage":
                self.gone = True
                self._cut()
                self.excuse(happening.amount)
                self._at(self._last_s + happening.amount, self._return)
            case "stuck":
                self.stuck_until_s = self._last_s + happening.amount
                self.excuse(happening.amount)
            case _:
                self.restarted = True
                self._cut()
                self.keeper.restart(self._last_s, empty=happening.kind == "emptied")
                for member in self.members:
                    member.book.power_failed = True
                self.excuse(0.0)

    def _return(self) -> None:
        self.gone = False

    def _fire(self, happening: Happening) -> None:
        self.fired.append(happening)
        self.disturbed = True
        for member in self.members:
            member.tell(str(happening))

    # ---- servers -----------------------------------------------------------------------------------

    def excuse(self, lasts_s: float) -> None:
        """Leases may end unheard of: a server may be overcommitted for a while."""
        self.excused_until_s = max(self.excused_until_s, self.now_s + lasts_s + EXCUSED_S)

    def check_server(self, index: int) -> None:
        """No server has more than it can, but for the one call that each process may always send."""
        if self.now_s < self.excused_until_s:
            return
        size, slots = len(self.members), self.story.members[0].slots
        running = sum(member.life.running(index) for member in self.members)
        if running + 1 > slots + size - 1:
            raise Broken("a server is overcommitted", (running + 1, slots, size))

    def check_once(self, member: "Member", work: Any) -> None:
        """Nobody does what another one has done, unless something has gone wrong."""
        other = self.asked.setdefault(work, member.number)
        if other != member.number and not self.disturbed and member.story.job not in ALONE:
            raise Broken("equal work is done by two processes", work)

    # ---- in the place of the real ones -------------------------------------------------------------

    @contextmanager
    def _installed(self) -> Generator[None]:
        clock = types.SimpleNamespace(monotonic=lambda: self.now_s)
        changed: list[tuple[Any, str, Any]] = [
            (registry, "BACKENDS", {**registry.BACKENDS, "faulty": lambda: life().open_workers()}),
            (link, "connect_async", lambda address: Wire(self)),
            (redis_sender, "connect_async", lambda address: Wire(self)),
            (redis_sender, "time", clock),
            (redis_runs, "connect", lambda address: Telephone(self)),
            (books_redis, "connect", lambda address: Telephone(self)),
            (redis_runs, "is_dead", lambda owner: self._member().died),
            (redis_runs, "RedisResultStore", lambda address, bounds: None),
            (redis_runs.RedisRuns, "_journal", lambda *given: self._opened(*given)),
            (local, "ThreadedResults", lambda store, delay_s: SharedResults(self)),
            (journal_redis.RedisJournal, "record", _record),
            (journal_redis.RedisJournal, "close", _close),
        ]
        with ExitStack() as stack:
            stack.enter_context(disk.installed(lambda: self.now_s))
            for place, name, value in changed:
                stack.enter_context(mock.patch.object(place, name, value))
            try:
                yield
            finally:
                for process in self.processes:
                    if not process.loop.is_closed():
                        process.bury()

    def _opened(self, runs: Any, manifest: Any, *rest: Any) -> Any:
        journal = _JOURNAL(runs, manifest, *rest)
        member = self._member()
        member.run = manifest.run
        life().opened(journal, self.stored(manifest.run))
        return journal

    def stored(self, run: str) -> "_Stored":
        """What Redis has of a run."""
        return _Stored(Telephone(self, sure=True), Keys("tenter", run))

    def _member(self) -> "Member":
        member = life().world
        assert isinstance(member, Member)
        return member


_JOURNAL = redis_runs.RedisRuns._journal
_RECORD, _CLOSE = journal_redis.RedisJournal.record, journal_redis.RedisJournal.close


def _record(
    journal: Any, entry: Any, then: Callable[[], None] | None = None, sync: bool = False
) -> None:
    _RECORD(journal, entry, life().heard(journal, entry, then, sync), sync)


async def _close(journal: Any) -> None:
    life().closed = True  # it has recorded how it ends, and lets go
    await _CLOSE(journal)


class _Stored:
    """What Redis has of a run, as a book compares it."""

    def __init__(self, client: Telephone, keys: Keys) -> None:
        self._entries = list(entries_of_redis(client, keys))

    def steps(self, first: int, last: int) -> dict[Any, Any]:
        return {(e.row, e.path): e for e in self._entries if isinstance(e, StepRecord)}

    def rows(self, first: int, last: int) -> dict[Any, Any]:
        return {e.row: e for e in self._entries if isinstance(e, RowRecord)}
