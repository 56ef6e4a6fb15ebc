"""What one step computes: admission, chunked prefill beside decoding, preemption. No torch here.

Continuous batching with chunked prefill follows Sarathi (2403.02310, section 4): every running
sequence decodes in every step, and prefills fill the rest of the step's token budget. Prefixes
are shared while they are computed: a later sequence waits for the pages that an earlier one has
published, and takes them over if that one ends early.
"""

from bisect import insort
from operator import attrgetter
from typing import NamedTuple

from .cache import Page, PageCache
from .state import Sequence

_ORDER = attrgetter("order")


class Work(NamedTuple):
    """Compute the next `length` tokens of `sequence` (from its `done`) in this step.

    A length of 0 tells that nothing is left to compute: others have done it.
    """

    sequence: Sequence
    length: int


class Batch:
    """The waiting and the running sequences of one engine, over one cache.

    `chunk_tokens` bounds the tokens of a step (decoding rows always go, one token each).
    """

    def __init__(self, cache: PageCache, max_running: int, chunk_tokens: int) -> None:
        self.cache = cache
        self.max_running = max_running
        self.chunk_tokens = max(chunk_tokens, 1)
        self.waiting: list[Sequence] = []  # sorted by `order`
        self.running: list[Sequence] = []  # in order of admission
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Let `sequence` wait for its turn."""
        insort(self.waiting, sequence, key=_ORDER)

    def remove(self, sequence: Sequence) -> None:
        """End `sequence`, in whatever state it is, and give its pages back."""
        if sequence.state == "running":
            self.running.remove(sequence)
            self._give_back(sequence)
        elif sequence.state == "waiting":
            self.waiting.remove(sequence)
        sequence.state = "finished"

    def plan(self) -> list[Work]:
        """The work of the next step, decoding rows first; pages for it are at hand."""
        self._admit()
        size = self.cache.page_tokens
        work: list[Work] = []
        prefills: list[Sequence] = []
        for sequence in list(self.running):
            if sequence.state != "running":
                continue  # it gave way to a row before it
            if not sequence.decoding:
                prefills.append(sequence)
            elif sequence.done < len(sequence.table) * size or self._grow(sequence, work):
                work.append(Work(sequence, 1))
        budget = max(self.chunk_tokens - len(work), size)
        for sequence in prefills:
            if budget <= 0:
                break
            if sequence.state == "running":
                count = self._runway(sequence, budget)
                if count or sequence.done == len(sequence.tokens):
                    work.append(self._begin(sequence, count))
                    budget -= count
        return work

    def advance(self, work: list[Work]) -> None:
        """Note that `work` has been computed, and publish the pages that it filled."""
        size = self.cache.page_tokens
        for sequence, count in work:
            sequence.done += count
            if sequence.done // size > sequence.published:
                self._publish_filled(sequence)

    # -- admission

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            while not self._start(self.waiting[0]):
                if self.running or self.cache.break_pin() is None:
                    return
            self.waiting.pop(0)

    def _start(self, sequence: Sequence) -> bool:
        """Give `sequence` the pages of its prompt, shared as far as possible; False if too few.

        The last token is always computed, since its logits are wanted. One page for each running
        sequence stays in reserve, so that an admission is not paid for with a preemption.
        """
        cache, size, total = self.cache, self.cache.page_tokens, len(sequence.tokens)
        wanted = sequence.sharable - (1 if sequence.draws or sequence.forks else 0)
        shared = cache.match(sequence.tokens, wanted // size)
        cache.acquire(shared)
        missing = -(-(total + (1 if sequence.draws else 0)) // size) - len(shared)
        reserve = len(self.running)
        own = cache.allocate(missing) if missing + reserve <= cache.available else None
        if own is None:
            cache.release(shared)
            return False
        sequence.pages = shared + own
        sequence.table = [page.id for page in sequence.pages]
        sequence.done = sequence.computed = 0
        sequence.published = len(shared)
        self._publish_ahead(sequence)
        sequence.state = "running"
        self.running.append(sequence)
        return True

    def _publish_ahead(self, sequence: Sequence) -> None:
        """Publish the prompt's pages before they are computed, for others to wait for."""
        size, pages, tokens = self.cache.page_tokens, sequence.pages, sequence.tokens
        for index in range(sequence.published, sequence.sharable // size):
            parent = pages[index - 1] if index else self.cache.root
            key = tuple(tokens[index * size : (index + 1) * size])
            if not self.cache.publish(pages[index], parent, key, sequence):
                break
            sequence.published += 1

    def _publish_filled(self, sequence: Sequence) -> None:
        """Publish the pages filled by decoding; where an equal page is ready, share it instead."""
        size, pages = self.cache.page_tokens, sequence.pages
        for index in range(sequence.published, min(sequence.done, sequence.sharable) // size):
            parent = pages[index - 1] if index else self.cache.root
            page, key = pages[index], tuple(sequence.tokens[index * size : (index + 1) * size])
            page.ready = True
            if not self.cache.publish(page, parent, key, None):
                twin = parent.children[key]
                if not twin.ready:
                    return
                self.cache.acquire([twin])
                self.cache.release([page])
                pages[index], sequence.table[index] = twin, twin.id
            sequence.published += 1

    # -- prefill

    def _runway(self, sequence: Sequence, budget: int) -> int:
        """How many tokens `sequence` can compute now; 0 while another computes its next page."""
        size, pages = self.cache.page_tokens, sequence.pages
        index, published = sequence.done // size, sequence.published
        while index < published and pages[index].ready:  # computed by others meanwhile
            index += 1
            sequence.done = index * size
        stop = min(len(sequence.tokens), sequence.done + budget)
        while index < published and index * size < stop:
            if pages[index].ready or not self._claim(pages[index], sequence):
                return max(index * size - sequence.done, 0)
            index += 1
        return stop - sequence.done

    @staticmethod
    def _claim(page: Page, sequence: Sequence) -> bool:
        """Whether `sequence` is the one to compute `page`: its own, or left behind by another."""
        owner = page.owner
        if owner is sequence:
            return True
        if isinstance(owner, Sequence) and owner.state == "running" and page in owner.pages:
            return False
        page.owner = sequence
        return True

    def _begin(self, sequence: Sequence, count: int) -> Work:
        """Mark the pages that this chunk fills as ready: each layer writes before it reads."""
        size, done = self.cache.page_tokens, sequence.done
        for page in sequence.pages[done // size : min((done + count) // size, sequence.published)]:
            page.ready, page.owner = True, None
        sequence.computed += max(0, min(done + count, sequence.prompt) - done)
        return Work(sequence, count)

    # -- pages run out

    def _grow(self, sequence: Sequence, work: list[Work]) -> bool:
        """One more page for `sequence`; others give way, last in order first. False: it did."""
        while (own := self.cache.allocate(1)) is None:
            planned = {id(item.sequence) for item in work}
            victim = max((s for s in self.running if id(s) not in planned), key=_ORDER)
            if victim is sequence and len(self.running) == 1 and self.cache.break_pin() is not None:
                continue
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages += own
        sequence.table.append(own[0].id)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take its pages from `sequence`. What it has drawn stays; its KV is computed again."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.state = "waiting"
        self.add(sequence)
        self.preemptions += 1

    def _give_back(self, sequence: Sequence) -> None:
        self.cache.release(sequence.pages)
        sequence.pages, sequence.table, sequence.published = [], [], 0
