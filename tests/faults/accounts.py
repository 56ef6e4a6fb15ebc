"""The account of what a job does to the world: requests, records, effects, and what they may be."""

from collections import Counter
from collections.abc import Container
from hashlib import blake2b
from typing import Any

import msgspec

from tenter.runtime.calls import Request
from tenter.runtime.journal.base import RowRecord
from tenter.runtime.scheduler.events import CallEnded, Dispatch
from tenter.runtime.trace import Record

from .books import Book, Broken, Key
from .lives import Life
from .stories import REQUESTS, TOOLS, Fault, Story
from .workers import BREAKS, LIES

TOKENS_PER_MINUTE = 2_000  # where the story has such a limit
BUDGET_TOKENS = 600  # of one life, where the story has a budget
ATTEMPTS = 4  # of a call, `scheduler.retry`


class Account:
    """What has happened in a story. What must not be is a Broken; `checks`: whether one looks."""

    life: Life  # that runs now

    def __init__(self, story: Story, log: bool) -> None:
        self.story = story
        self.hash = blake2b(digest_size=8)
        self.log: list[str] = []
        self._logs = log
        self.book = Book()
        self.broken: Broken | None = None
        self.checks = True
        self.requests = 0
        self.uses = 0  # of tools
        self.stained: set[str] = set()  # texts of rows that may fail or differ
        self.stained_rows: set[int] = set()
        self._keys: dict[tuple[str, str], list[str]] = {}  # of a tool's effects, by row
        self._breaks: Counter[tuple[int, str]] = Counter()  # of a call in a life
        self._prompts: dict[Key, tuple[int, ...]] = {}
        self._answered: dict[tuple[int, ...], Key] = {}  # prompts whose answer may be shared

    def breach(self, broken: Broken) -> None:
        """What must hold does not; the job must not get to hear of it."""
        self.broken = self.broken or broken
        self.life.over = True
        self.life.loop.stop_now()

    def tell(self, text: str) -> None:
        """Something happens: it is part of the trace."""
        self.hash.update(text.encode())
        if self._logs:
            self.log.append(f"{self.life.loop.time():12,.3f} {text}")

    def record(self, at_s: float, record: Record) -> None:
        """The job's own trace says something."""
        life = self.life
        if isinstance(record, CallEnded):
            life.used_tokens += record.prompt_tokens + record.output_tokens
        beyond = self.story.limit == "budget" and life.used_tokens >= BUDGET_TOKENS
        if beyond and isinstance(record, Dispatch):
            self.breach(Broken("a call is made beyond the budget", record))
        self.hash.update(b"%r %b" % (at_s, msgspec.json.encode(record)))
        if self._logs:
            self.log.append(f"{at_s:12,.3f} {record}")

    def acknowledged(self, life: Life, entry: Any, sync: bool) -> None:
        if life.taken_over:
            raise Broken("a process that was taken over is acknowledged", entry)
        self.tell(f"acknowledged {entry}")
        self.book.acknowledge(entry, sync)
        if isinstance(entry, RowRecord):
            life.ended_s[entry.row] = life.loop.time()
        if getattr(entry, "signature", None) is not None:
            key = (entry.row, entry.path)
            self._answered[self._prompts.get(key, ())] = key

    def asked(self, life: Life, worker: int, request: Request, running: int) -> Fault | None:
        """A request comes in: nobody may ask for what is recorded, or for more than is allowed."""
        self.requests += 1
        self.tell(f"request {self.requests} {request.call} to {worker}")
        row = int(request.call.partition("/")[0][1:])
        path = request.call.partition("/")[2]
        if not life.taken_over:
            # One that is on its way at that moment comes with its abort behind it.
            if self.book.ended(row) and life.ended_s.get(row) != life.loop.time():
                raise Broken("a row that has ended is asked for", request.call)
            if (row, path) in self.book.acknowledged:
                raise Broken("a recorded answer is asked for again", request.call)
            if self._answered.get(request.token_ids) in self.book.acknowledged:
                raise Broken("what equal work has answered is asked for again", request.call)
        self._prompts[row, path] = request.token_ids
        if running > self.story.slots:
            raise Broken("a worker has more calls than it takes", running)
        self._check_budget(life, request)
        return self._excuse(life, row, request.call)

    def _excuse(self, life: Life, row: int, call: str) -> Fault | None:
        """What goes wrong with this request, and whose answer it may cost."""
        fault = self._fault(REQUESTS, self.requests)
        if fault is None:
            return None
        life.fired.append(fault)
        self.tell(str(fault))
        self._breaks[life.number, call] += fault.kind in BREAKS
        if (fault.kind in BREAKS or fault.kind == "bug") and life.spent:
            life.spent.pop()  # what it was to cost is given back
        if fault.kind in LIES or self._breaks[life.number, call] >= ATTEMPTS:
            self.stained.add(self.story.rows[row])
        return fault

    def _check_budget(self, life: Life, request: Request) -> None:
        if self.story.limit != "tokens":
            return
        now_s, tokens = life.loop.time(), len(request.token_ids)
        life.spent.append((now_s, tokens))
        total = 0
        for at_s, spent in reversed(life.spent):
            total += spent
            if total > TOKENS_PER_MINUTE * (1 + (now_s - at_s) / 60) + 1:
                raise Broken("more tokens a minute than allowed", (total, now_s - at_s))

    def _fault(self, kinds: Container[str], count: int) -> Fault | None:
        for fault in self.story.faults:
            if fault.at == count and fault.kind in kinds:
                return fault
        return None

    def used(self, life: Life, tool: str, who: str) -> Fault | None:
        self.uses += 1
        self.tell(f"use {self.uses} {tool} {who}")
        fault = self._fault(TOOLS, self.uses)
        if fault is not None:
            life.fired.append(fault)
            self.tell(str(fault))
            self.excuse(who)
        return fault

    def excuse(self, who: str) -> None:
        """A tool may fail for one row, or for all with one text."""
        if who.isdigit():
            self.stained_rows.add(int(who))
        else:
            self.stained.add(who)

    def effect(self, tool: str, who: str, key: str) -> None:
        """A tool has its effect: `pay` once a step, `note` under the same key each time."""
        self.tell(f"effect {tool} {who}")
        if not self.checks:
            return
        keys = self._keys.setdefault((tool, who), [])
        keys.append(key)
        if tool == "pay" and len(keys) > 1:
            raise Broken("a tool with an effect ran twice", who)
        if tool == "note" and len(set(keys)) > 1:
            raise Broken("a tool was called again under another key", who)
