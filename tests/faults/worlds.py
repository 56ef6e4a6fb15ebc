"""The world around a job: it lives through a story's faults, and checks what must hold in spite of
them. `tell` is the way in.
"""

import asyncio
import gc
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from tenter.runtime.backends import registry
from tenter.runtime.clock import StandsStill
from tenter.runtime.errors import BackendUnavailable, JournalError, TenterError
from tenter.runtime.jobs import MapSpec, map_table, resume
from tenter.runtime.journal.store import Store
from tenter.runtime.report.tally import Tally
from tenter.runtime.scheduler.events import RunStarted

from . import disk
from .accounts import BUDGET_TOKENS, TOKENS_PER_MINUTE, Account
from .books import Broken
from .files import lines, read
from .lives import Life
from .loops import Endless, Stopped
from .stories import LIVES, MOST_ROWS, WORDS, Fault, Story

CALL_S = 8.0  # that an attempt at a call may take
LIMITS: dict[str, dict[str, Any]] = {
    "": {},
    "budget": {},
    "running": {"models": {"*": {"max_running": 2}}},
    "tokens": {"models": {"*": {"tokens_per_minute": TOKENS_PER_MINUTE}}},
    "tenants": {"tenants": {"*": {"max_running": 1, "max_live": 1}}},
}
REFUSED = ("is running already", "another process uses it")  # while a frozen one has the run
MOST_LIVES = LIVES + 12  # by then no fault is left, and the job must have ended


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a story: how its lives ended, a hash of all that happened, and what broke."""

    story: Any  # a Story, or the FleetStory of several processes
    ends: tuple[str, ...]
    trace: str
    fired: int
    rule: str | None = None
    detail: str = ""
    log: tuple[str, ...] = ()


def tell(story: Story, folder: Path, log: bool = False) -> Verdict:
    """Live through a story in `folder`, which is emptied; `log` keeps what happened."""
    answers(story.job, story.suffix)
    world = World(story, folder, log)
    with world.installed():
        rule, detail = quietly(world.live)
    trace = world.hash.hexdigest()
    ends, log = tuple(world.ends), tuple(world.log)
    return Verdict(world.story, ends, trace, world.fired, rule, detail, log)


def quietly(live: Callable[[], None]) -> tuple[str | None, str]:
    """Live through a story; the rule that it broke, and how."""
    with unbegun_ignored():
        try:
            live()
        except Broken as broken:
            return broken.rule, str(broken)
        finally:
            if gc.isenabled():  # else whoever has disabled it collects
                gc.collect()
    return None, ""


@contextmanager
def unbegun_ignored() -> Generator[None]:
    """Dead processes leave coroutines behind that they had no time to begin: nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        yield


class World(Account):
    """Everything outside of the process: files, servers, money; and the account of it."""

    def __init__(
        self,
        story: Story,
        folder: Path,
        log: bool = False,
        table: Iterable[tuple[str, int]] = (),
    ) -> None:
        super().__init__(story, log)
        self.folder, self.left = folder / "world", folder / "left"
        for each in (self.folder, self.left):
            shutil.rmtree(each, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.ends: list[str] = []
        self.fired = 0
        self.boot_s = 1000.0
        self.draw = Random(story.seed)
        fails = any(fault.kind.startswith("power") for fault in story.faults)
        self.durable = disk.Durable(self.folder) if fails else None
        self.life = self.new_life(0)
        rows = table or [(x, row) for row, x in enumerate(story.rows)]
        body = "".join(f"{x},{row}\n" for x, row in rows)
        (folder / "in.csv").write_text(f"x,id\n{body}")
        self.out = self.folder / f"out{story.suffix}"
        self.home = self.folder / "home"
        self.spec = MapSpec(
            f"faults.work:{story.job}",
            str(folder / "in.csv"),
            str(self.out),
            models={"default": "faulty"},
            home=str(self.home),
            concurrency=story.concurrency,
            order=story.order,
            limits=LIMITS[story.limit],
            tenant="x" if story.limit == "tenants" or story.order == "fair" else None,
            call_timeout_s=CALL_S,
            token_budget=BUDGET_TOKENS if story.limit == "budget" else None,
        )

    @contextmanager
    def installed(self) -> Generator[None]:
        """This world in the place of the real one."""
        registry.BACKENDS["faulty"] = lambda: self.life.open_workers()
        try:
            with disk.installed(lambda: self.life.now_s):
                yield
        finally:
            del registry.BACKENDS["faulty"]
            if not self.life.loop.is_closed():
                self.life.bury()

    # ---- lives ------------------------------------------------------------------------------------

    def new_life(self, number: int) -> Life:
        return Life(self, number)

    def live(self) -> None:
        """Live until the job is done, then compare what is there with what should be."""
        for _ in self.lives():
            pass

    def lives(self) -> Generator[None]:
        """The same; it yields where other processes may go on meanwhile."""
        for number in range(MOST_LIVES):
            if number:
                self.life = self.new_life(number)
            try:
                end = yield from self._live(self.life)
            except (StandsStill, Endless) as problem:
                raise Broken("a life never ends", problem) from None
            self.ends.append(end)
            self.tell(f"life {number}: {end}")
            if end == "lost" or (end == "done" and not self.checks):
                return
            if end == "done":
                self._check_output()
                if self.story.seed % 4 == 0:
                    yield from self._check_resume()
                if self.story.seed % 4 == 1:
                    self._check_journal()
                return
        raise Broken("the job never ends", self.ends)

    def _live(self, life: Life) -> Generator[None, None, str]:
        """How a life ended."""
        try:
            end = yield from life.run(self._work(life))
        except Stopped:
            self._check()
            if not life.over:
                return (yield from self._thaw(life, life.meets_at))
            self._bury(life)
            return "killed"
        self._check()
        self._leave(life)
        return self._outcome(life, end)

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _leave(self, life: Life) -> None:
        self.boot_s = max(self.boot_s, life.now_s)
        self.fired += len(life.fired)
        left = asyncio.all_tasks(life.loop)
        life.close()
        if left and self.story.job != "racing":  # whose gather leaves tasks of its own behind
            raise Broken("tasks are left when the job has ended", left)

    def _bury(self, life: Life) -> None:
        self.boot_s = max(self.boot_s, life.now_s)
        self.fired += len(life.fired)
        life.bury()
        if self.left.exists():
            shutil.rmtree(self.folder)
            self.left.rename(self.folder)

    def _outcome(self, life: Life, end: str | BaseException) -> str:
        if isinstance(end, str):
            return end
        name = type(end).__name__
        kinds = {fault.kind for fault in life.fired}
        excused = (
            (isinstance(end, JournalError) and kinds & {*disk.ERRORS})
            or (isinstance(end, BackendUnavailable) and kinds & {"death", "end", "gone"})
            or (type(end) is TenterError and kinds & {*disk.ERRORS})
        )
        if not excused:
            raise Broken(f"the job ends with {name}", f"{end!r}; {sorted(kinds)}")
        return name

    async def _work(self, life: Life) -> str | BaseException:
        """Begin the job, or go on with it; how it ended, or why not."""
        life.loop.set_exception_handler(self._heard_exception)
        try:
            run = self._begun()
            if run is not None:
                outcome = await resume(run, str(self.home), life.control, Heard(self, life))
            else:
                outcome = await map_table(self.spec, life.control, Heard(self, life))
        except (StandsStill, Endless):
            raise
        except Exception as error:  # noqa: BLE001  it is judged by `_outcome`
            return error
        return outcome.status

    def _begun(self) -> str | None:
        """The run to go on with; what was cut off before it had begun is begun anew."""
        names = tuple(Store(self.home).runs.names())
        if names and self.book.began:
            return names[-1]
        shutil.rmtree(self.home, ignore_errors=True)
        return None

    def _heard_exception(self, loop: Any, context: dict[str, Any]) -> None:
        problem = context.get("exception")
        self.breach(Broken("an error that nobody took", f"{context['message']}: {problem!r}"))

    def _thaw(self, frozen: Life, meets_at: int) -> Generator[None, None, str]:
        """Another process takes over from a frozen one, which goes on in the midst of that."""
        self.boot_s = frozen.now_s
        other = self.life = self.new_life(MOST_LIVES)
        other.loop.at[meets_at] = [(0, other.loop.stop_now)]
        try:
            end: str | BaseException | None = yield from other.run(self._work(other))
        except Stopped:
            end = None
        self._check()
        if isinstance(end, JournalError) and any(said in str(end) for said in REFUSED):
            self._leave(other)
            return (yield from self._go_on(frozen, other))
        has_run = frozen.holds and frozen.status == "running"
        frozen.taken_over = has_run and other.journal is not None
        yield from self._go_on(frozen, other)
        if end is None:
            return (yield from self._go_on(other, frozen))
        self._leave(other)
        return self._outcome(other, end)

    def _go_on(self, life: Life, after: Life) -> Generator[None, None, str]:
        """How a life ends that goes on when another has stopped or ended."""
        self.life = life
        life.skip(max(0.0, after.now_s - life.now_s))
        try:
            end = yield from life.go_on()
        except Stopped:
            self._check()
            self._bury(life)
            return "killed"
        self._check()
        self._leave(life)
        if life.taken_over and isinstance(end, TenterError):
            return "taken over"
        if life.taken_over:
            raise Broken("a process that was taken over goes on as if nothing were", end)
        return self._outcome(life, end)

    def faults_of(self, life: int) -> Iterable[Fault]:
        return [fault for fault in self.story.faults if fault.life == life]

    def lose_power(self) -> None:
        """The power fails: what is left is durable, for it has been read from the disk."""
        assert self.durable is not None
        disk.lose_power(self.left, self.durable, self.draw)
        self.durable.begin(self.left)
        self.book.power_failed = True

    # ---- what must be there in the end ---------------------------------------------------------------

    def _check_output(self) -> None:
        self.stained_rows |= self.book.interrupted()
        rows = read(self.out)
        ids = [int(row["id"]) for row in rows]
        if ids != list(range(len(self.story.rows))):
            raise Broken("the output has not each row once", ids)
        for number, row in enumerate(rows):
            x = self.story.rows[number]
            self.tell(json.dumps(row, sort_keys=True))
            right = answers(self.story.job, self.story.suffix)[x, number]
            if row == right or x in self.stained or number in self.stained_rows:
                continue
            raise Broken("a row is not what it should be", f"{row} instead of {right}")
        letters = self.out.with_name(self.out.name + ".errors.jsonl")
        failed = [json.loads(line)["row"] for line in lines(letters)]
        if failed != [number for number, row in enumerate(rows) if row["error"]]:
            raise Broken("the dead letters are not those of the output", failed)
        if self.out.with_name(self.out.name + ".partial").exists():
            raise Broken("a partial file is left")

    def _check_resume(self) -> Generator[None]:
        """A finished run that is resumed is left as it is."""
        before = (self.out.read_bytes(), self.requests, self.uses)
        self.life = self.new_life(MOST_LIVES)
        end = yield from self.life.run(self._work(self.life))
        self._leave(self.life)
        if end != "done" or (self.out.read_bytes(), self.requests, self.uses) != before:
            raise Broken("a finished run is not left alone", end)

    def _check_journal(self) -> None:
        store = Store(self.home)
        (run,) = store.runs.names()
        checked = store.check(run)
        if checked.damaged or checked.problems:
            raise Broken("the journal is damaged", checked)


class Heard(Tally):
    """A tally whose records are part of the story's trace."""

    def __init__(self, world: World, life: Life) -> None:
        super().__init__()
        self._world, self._life = world, life

    def write(self, at_s: float, record: Any) -> None:
        super().write(at_s, record)
        if not self._life.over:
            if isinstance(record, RunStarted):
                record = msgspec.structs.replace(record, run="run")
            self._world.record(at_s, record)


@cache
def answers(job: str, suffix: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The output rows of an undisturbed run, by the text and the number of a row."""
    table = [(word, number) for word in WORDS for number in range(MOST_ROWS)]
    with tempfile.TemporaryDirectory(prefix="tenter-faults-", dir=disk.scratch()) as folder:
        world = World(Story(job=job, suffix=suffix), Path(folder), table=table)
        world.checks = False
        with world.installed():
            world.live()
        return dict(zip(table, read(world.out), strict=True))
