"""Pages of KV cache: a radix tree with reference counts, pins and LRU eviction. No tensors here.

Pages are those of PagedAttention (2309.06180, section 4); the tree over them, its LRU and its
reference counts are RadixAttention (SGLang, 2312.07104, section 3), with one full page of tokens
on each edge. Pins are ours: a promise to keep a path until a time.
"""

import heapq
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

PAGE_TOKENS = 16


Key = tuple[int, ...]


class Paged(ABC):
    """Tokens that know the keys of their pages, so that nobody has to cut them out."""

    __slots__ = ()

    @abstractmethod
    def page_keys(self, pages: int) -> Sequence[Key]:
        """The keys of the first `pages` whole pages, or of all if there are no more."""


@dataclass(eq=False, slots=True)
class Page:
    """One page of the pool. Private to a sequence until it is published in the tree.

    Who holds a page holds its whole path, so along any path downward `refs` and `pins` never grow.
    """

    id: int  # its place in the pool
    parent: "Page | None" = None  # None: private (or the root)
    tokens: Key = ()  # the key under `parent`
    children: "dict[Key, Page]" = field(default_factory=dict[Key, "Page"])
    refs: int = 0  # running sequences that read or write it
    pins: int = 0  # pins whose path it is on
    ready: bool = False  # its KV is computed, or is being computed in this very step
    owner: object = None  # the sequence that computes it, while it is not ready
    used: int = 0  # when it was last given back, by the cache's own count


@dataclass(frozen=True, slots=True)
class Pin:
    """A path kept until `until_s`; `serial` tells a pin from an earlier one of the same name."""

    pages: tuple[Page, ...]
    until_s: float
    serial: int


@dataclass(slots=True)
class CacheCounters:
    """What happened to the pages since the start."""

    evictions: int = 0
    pins_set: int = 0
    pins_expired: int = 0
    pins_released: int = 0
    pins_broken: int = 0  # given up because nothing else could run


class PageCache:
    """Hands out the pages of a pool and remembers what each one holds.

    Page 0 is never handed out: it is the root of the tree, and the place where padding may point.
    Names of pins are any strings. Times are seconds on one clock of the caller's choice.
    """

    def __init__(self, pages: int, page_tokens: int = PAGE_TOKENS) -> None:
        if pages < 2:
            raise ValueError(f"a cache needs at least 2 pages, got {pages}")
        self.page_tokens = page_tokens
        self.capacity = pages - 1
        self.root = Page(0, ready=True)
        self.counters = CacheCounters()
        self.pins: dict[str, Pin] = {}
        self.pinned_pages = 0
        self._free = list(range(pages - 1, 0, -1))
        self._made: dict[int, Page] = {}  # all that were ever handed out, to be used again
        self._idle = 0  # pages in the tree that nobody reads and no pin keeps
        self._count = itertools.count(1)
        self._coldest: list[
            tuple[int, int, Page]
        ] = []  # heap of idle leaves; some entries are stale
        self._deadlines: list[
            tuple[float, int, str]
        ] = []  # heap over `pins`; some entries are stale

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Pages that `allocate` can hand out now, evicting where it must."""
        return len(self._free) + self._idle

    def match(self, tokens: Sequence[int], limit: int) -> list[Page]:
        """The longest published path along `tokens`, `limit` pages at most. Changes nothing."""
        node, path = self.root, list[Page]()
        for key in self._keys(tokens, limit):
            child = node.children.get(key)
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def _keys(self, tokens: Sequence[int] | Paged, limit: int) -> Iterable[Key]:
        if isinstance(tokens, Paged):
            return tokens.page_keys(limit)
        size = self.page_tokens
        starts = range(0, min(limit * size, len(tokens) - size + 1), size)
        return (tuple(tokens[start : start + size]) for start in starts)

    def acquire(self, pages: Iterable[Page]) -> None:
        """Hold `pages` (a path from its top) until `release`."""
        for page in pages:
            if page.refs == 0 and page.pins == 0:
                self._idle -= 1
            page.refs += 1

    def allocate(self, count: int) -> list[Page] | None:
        """`count` private pages, held once each; None, and nothing changed, if there are too few."""
        if count > self.available:
            return None
        if count > len(self._free):
            self._evict(count - len(self._free))
        places = self._free[len(self._free) - count :][::-1]
        del self._free[len(self._free) - count :]
        made = self._made
        pages = [made[place] if place in made else self._make(place) for place in places]
        for page in pages:
            page.refs = 1
        return pages

    def _make(self, place: int) -> Page:
        page = self._made[place] = Page(place)
        return page

    def publish(self, page: Page, parent: Page, tokens: Key, owner: object) -> bool:
        """Put the private `page` under `parent`; False if an equal page is there already."""
        if tokens in parent.children:
            return False
        page.parent, page.tokens, page.owner = parent, tokens, owner
        parent.children[tokens] = page
        return True

    def release(self, pages: Sequence[Page]) -> None:
        """Give `pages` (in order of the path) back. What is published and ready stays cached."""
        for page in reversed(pages):
            page.refs -= 1
            if page.refs:
                continue
            if page.parent is None or not page.ready:
                self._drop(page)
            elif page.pins == 0:
                self._rest(page)

    def pin(self, name: str, pages: Sequence[Page], until_s: float) -> None:
        """Keep `pages` (a ready path from its top) until `until_s`, instead of what `name` kept."""
        for page in pages:
            if page.pins == 0:
                self.pinned_pages += 1
                if page.refs == 0:
                    self._idle -= 1
            page.pins += 1
        if name in self.pins:
            self._unpin(name)
        pin = Pin(tuple(pages), until_s, next(self._count))
        self.pins[name] = pin
        self.counters.pins_set += 1
        if until_s != math.inf:
            heapq.heappush(self._deadlines, (until_s, pin.serial, name))

    def unpin(self, name: str) -> None:
        """End the pin `name`, if there is one."""
        if name in self.pins:
            self._unpin(name)
            self.counters.pins_released += 1

    def expire(self, now_s: float) -> list[str]:
        """End the pins whose time has come, and name them."""
        ended: list[str] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, serial, name = heapq.heappop(self._deadlines)
            if (pin := self.pins.get(name)) and pin.serial == serial:
                self._unpin(name)
                ended.append(name)
        self.counters.pins_expired += len(ended)
        return ended

    def break_pin(self) -> str | None:
        """End the pin that would end first, so that something can run; None if there is no pin."""
        if not self.pins:
            return None
        name = min(self.pins, key=lambda name: (self.pins[name].until_s, self.pins[name].serial))
        self._unpin(name)
        self.counters.pins_broken += 1
        return name

    def _unpin(self, name: str) -> None:
        for page in reversed(self.pins.pop(name).pages):
            page.pins -= 1
            if page.pins == 0:
                self.pinned_pages -= 1
                if page.refs == 0:
                    self._rest(page)

    def _rest(self, page: Page) -> None:
        """`page` has become idle: the next in line for eviction once those used before it went."""
        self._idle += 1
        page.used = next(self._count)
        if not page.children:
            self._offer(page)

    def _offer(self, leaf: Page) -> None:
        if len(self._coldest) > 4 * self.capacity:  # mostly stale: start afresh
            self._coldest = [entry for entry in self._coldest if self._evictable(entry)]
            heapq.heapify(self._coldest)
        heapq.heappush(self._coldest, (leaf.used, leaf.id, leaf))

    @staticmethod
    def _evictable(entry: tuple[int, int, Page]) -> bool:
        used, _, page = entry
        idle = page.parent is not None and page.refs == 0 and page.pins == 0
        return idle and not page.children and page.used == used

    def _evict(self, count: int) -> None:
        """Free the `count` idle leaves that were used least recently, one after another.

        A parent that becomes a leaf is often the next: it is put into the heap and taken out at once.
        """
        heap = self._coldest
        entry = heapq.heappop(heap)
        for left in range(count - 1, -1, -1):
            used, _, page = entry
            parent = page.parent
            while page.used != used or page.refs or page.pins or page.children or parent is None:
                used, _, page = heapq.heappop(heap)
                parent = page.parent
            self._drop(page)
            if parent.children or parent.refs or parent.pins or parent is self.root:
                entry = heapq.heappop(heap) if left else entry
            elif left:
                entry = heapq.heappushpop(heap, (parent.used, parent.id, parent))
            else:
                self._offer(parent)
        self._idle -= count
        self.counters.evictions += count

    def _drop(self, page: Page) -> None:
        """Forget what `page` holds; it will be handed out again."""
        if page.parent is not None:
            del page.parent.children[page.tokens]
        page.parent, page.owner, page.tokens, page.ready = None, None, (), False
        self._free.append(page.id)
