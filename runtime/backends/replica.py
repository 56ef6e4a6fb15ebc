"""One simulated engine: the embedded engine's batching and radix tree, with a roofline for tensors.

A synchronous machine without a clock of its own: `start` plans a step and says when it ends, `end`
performs it. While nothing can change but that every row decodes, many steps are one: they end with
the first answer, or with the step in which something happens from outside.
"""

import heapq
import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable

from ...planner.hardware import Hardware, ModelShape, step_seconds, swap_seconds
from ..engine.batch import Batch, Work
from ..engine.cache import PAGE_TOKENS, Page, PageCache
from ..engine.state import Sequence

Draw = Callable[[Sequence, int], None]
StepCost = Callable[[int, int, int, float], float]
"""Seconds of a step by its rows, tokens, the tokens that these look back on, and pairs of both."""


class TieredCache(PageCache):
    """A cache whose evicted pages stay in the host's memory, `host_pages` of them, by LRU.

    A page that is asked for again is there at once; `take_loaded` says how many pages were copied,
    for which somebody has to wait. A page is known by a hash of all that leads to it.
    """

    def __init__(self, pages: int, page_tokens: int, host_pages: int) -> None:
        super().__init__(pages, page_tokens)
        self._host: OrderedDict[int, None] = OrderedDict()  # the one used last is last
        self._host_pages = host_pages
        self._paths: dict[Page, int] = {self.root: 0}
        self._loaded = 0

    def publish(self, page: Page, parent: Page, tokens: tuple[int, ...], owner: object) -> bool:
        if not super().publish(page, parent, tokens, owner):
            return False
        path = self._paths[page] = hash((self._paths[parent], tokens))
        if not page.ready and path in self._host:
            self._host.move_to_end(path)
            page.ready, page.owner = True, None
            self._loaded += 1
        return True

    def take_loaded(self) -> int:
        """Pages that came back from the host since the last time."""
        loaded, self._loaded = self._loaded, 0
        return loaded

    def _drop(self, page: Page) -> None:
        path = self._paths.pop(page, None)
        if path is not None and page.ready:
            self._host[path] = None
            self._host.move_to_end(path)
            if len(self._host) > self._host_pages:
                self._host.popitem(last=False)
        super()._drop(page)


class Replica:
    """An engine of `hardware` that serves `model` with `kv_tokens` of KV.

    `draw(sequence, count)` makes the next tokens of an answer. `host_tokens` of KV stay in the
    host's memory after their eviction; a step that brings some back lasts at least as long as the
    copy, as with copies layer by layer (SGLang's hierarchical cache). `step_cost` prices steps in
    place of the roofline. `now_s` never decreases.
    """

    def __init__(
        self,
        hardware: Hardware,
        model: ModelShape,
        kv_tokens: int,
        draw: Draw,
        *,
        max_running: int = 256,
        chunk_tokens: int = 2048,
        page_tokens: int = PAGE_TOKENS,
        host_tokens: int = 0,
        step_cost: StepCost | None = None,
    ) -> None:
        self._hardware, self._model, self._draw = hardware, model, draw
        self._step_cost = step_cost
        pages, host_pages = kv_tokens // page_tokens + 1, host_tokens // page_tokens
        self._tiers = TieredCache(pages, page_tokens, host_pages) if host_pages else None
        self.cache = self._tiers or PageCache(pages, page_tokens)
        self.batch = Batch(self.cache, max_running, chunk_tokens)
        self.work: list[Work] = []  # of the steps under way
        self.end_s: float | None = None  # when they end; None: nothing is under way
        self.steps = 0
        self.busy_s = 0.0
        self.prefilled_tokens = 0  # computed for prompts, and again for what was preempted
        self.loaded_tokens = 0  # brought back from the host
        self._begun_s = 0.0
        self._count = 0  # how many steps are under way,
        self._first_s = 0.0  # what the first of them takes,
        self._more_s = 0.0  # and each further one more than the one before it
        self._deadlines: list[float] = []  # heap: when pins end

    @property
    def kv_tokens(self) -> int:
        """What its cache holds."""
        return self.cache.capacity * self.cache.page_tokens

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of `tokens` tokens can ever run."""
        return -(-tokens // self.cache.page_tokens) <= self.cache.capacity

    # ---- what happens from outside --------------------------------------------------------------

    def add(self, sequence: Sequence, now_s: float) -> None:
        """Let `sequence` wait for its turn."""
        self._cut(now_s)
        self.batch.add(sequence)

    def remove(self, sequence: Sequence, now_s: float) -> None:
        """End `sequence`, in whatever state it is."""
        self._cut(now_s)
        self.batch.remove(sequence)

    def retain(self, session: str, tokens: list[int], until_s: float | None, now_s: float) -> None:
        """Keep what the cache holds of `tokens` until a time; None: until it is released."""
        self._cut(now_s)
        path = self.cache.match(tokens, len(tokens) // self.cache.page_tokens)
        end_s = math.inf if until_s is None else until_s
        self.cache.pin(session, [page for page in path if page.ready], end_s)
        if until_s is not None:
            heapq.heappush(self._deadlines, until_s)

    def release(self, session: str, now_s: float) -> None:
        """Let go of a session's pages; they may be evicted from now on."""
        self._cut(now_s)
        self.cache.unpin(session)

    def _cut(self, now_s: float) -> None:
        """Perform the steps that are over by now; the one under way will be the last."""
        if self.end_s is not None and self._count > 1:
            self._count = self._steps_by(now_s)
            self._pass(self._count - 1)
            self.end_s = self._begun_s + self._first_s

    # ---- steps --------------------------------------------------------------------------------

    def start(self, now_s: float, most: int | None = None) -> float | None:
        """Begin a step, or as many equal ones as nothing can change in (`most` at the most).

        Returns when they end; None where there is nothing to do.
        """
        self.cache.expire(now_s)
        preemptions = self.batch.preemptions
        self.work = self.batch.plan()
        self.end_s = None
        if not self.work:
            return None
        tokens, context, pairs, decoding = self._weigh(now_s)
        self._begun_s, self._count = now_s, 1
        self._first_s = max(self._step_s(tokens, context, pairs), copied_s := self._copied_s())
        # After a preemption there is room, perhaps for one who waits.
        alike = decoding and not copied_s and preemptions == self.batch.preemptions
        if alike and most != 1 and len(self.work) == len(self.batch.running):
            self._more_s = self._step_s(tokens, context + tokens, pairs + tokens) - self._first_s
            self._count = self._alike(now_s)
        self.end_s = now_s + self._elapsed_s(self._count)
        return self.end_s

    def _weigh(self, now_s: float) -> tuple[int, int, float, bool]:
        """The work of a step: tokens, their context and pairs, and whether all rows decode."""
        tokens, context, pairs, decoding = 0, 0, 0.0, True
        for sequence, count in self.work:
            done = sequence.done
            tokens += count
            context += done
            pairs += count * (done + count / 2)
            if sequence.started_s is None:
                sequence.started_s = now_s
            if not sequence.decoding:
                self.prefilled_tokens += count
                decoding = False
        return tokens, context, pairs, decoding

    def _copied_s(self) -> float:
        """Seconds to bring back from the host what the step has found there."""
        if self._tiers is None:
            return 0.0
        tokens = self._tiers.take_loaded() * self.cache.page_tokens
        self.loaded_tokens += tokens
        return swap_seconds(self._hardware, self._model, tokens)

    def end(self) -> list[Sequence]:
        """Perform the steps under way; returns the sequences that are answered in full."""
        now_s = self.end_s
        assert now_s is not None
        self._pass(self._count - 1)
        self.end_s = None
        self.steps += 1
        self.busy_s += now_s - self._begun_s
        alive = [item for item in self.work if item.sequence.state == "running"]
        self.batch.advance(alive)
        answered: list[Sequence] = []
        for sequence, _ in alive:
            if sequence.done < len(sequence.tokens):
                continue
            if sequence.first_s is None:
                sequence.first_s = now_s
                sequence.cached = max(sequence.prompt - sequence.computed, 0)
            if not sequence.draws:
                answered.append(sequence)
                continue
            self._draw(sequence, 1)
            if sequence.outputs >= sequence.max_output:
                answered.append(sequence)
        self.work = alive
        return answered

    def _step_s(self, tokens: int, context: int, pairs: float) -> float:
        if self._step_cost is not None:
            return self._step_cost(len(self.work), tokens, context, pairs)
        return step_seconds(self._hardware, self._model, tokens, context, pairs)

    def _elapsed_s(self, steps: int) -> float:
        """How long so many steps take: each row looks back on one token more in each step."""
        return steps * self._first_s + steps * (steps - 1) / 2 * self._more_s

    def _steps_by(self, at_s: float) -> int:
        """The steps that are over or under way at `at_s`, at least one."""
        counts = range(1, self._count + 1)
        found = bisect_left(counts, at_s - self._begun_s, key=self._elapsed_s)
        return min(found + 1, self._count)

    def _alike(self, now_s: float) -> int:
        """How many steps go by until a row ends, memory runs out, or a pin ends.

        Until then nobody who waits can enter: what is free only shrinks.
        """
        self._count = min(row.max_output - row.outputs for row, _ in self.work)
        if self._pages_for(self._count) > self.cache.available:
            counts = range(1, self._count + 1)
            free = self.cache.available
            self._count = max(1, bisect_left(counts, free + 1, key=self._pages_for))
        while self._deadlines and self._deadlines[0] <= now_s:
            heapq.heappop(self._deadlines)
        return self._steps_by(self._deadlines[0]) if self._deadlines else self._count

    def _pages_for(self, steps: int) -> int:
        """Pages that the rows under way lack for so many steps."""
        return sum(max(0, self._missing(row, steps)) for row, _ in self.work)

    def _missing(self, row: Sequence, steps: int) -> int:
        return -(-(row.done + steps) // self.cache.page_tokens) - len(row.table)

    def _pass(self, steps: int) -> None:
        """Perform so many of the steps under way; at least one is left, and has its pages."""
        if steps == 0:
            return
        for row, _ in self.work:
            missing = self._missing(row, steps + 1)
            if missing > 0:
                own = self.cache.allocate(missing)
                assert own is not None
                row.pages += own
                row.table += [page.id for page in own]
            self._draw(row, steps)
        self.batch.advance([Work(row, steps) for row, _ in self.work])
        passed_s = self._elapsed_s(steps)
        self.steps += steps
        self.busy_s += passed_s
        self._begun_s += passed_s
        self._first_s += steps * self._more_s
        self._count -= steps
