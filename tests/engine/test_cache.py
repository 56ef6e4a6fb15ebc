"""The radix tree of pages, driven at random: nothing leaks, and what is promised is kept."""

import math
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenter.runtime.engine.cache import Page, PageCache

SIZE = 2  # tokens of a page
PAGES = 12
TOKENS = st.lists(st.integers(0, 1), max_size=14)


def tree(cache: PageCache) -> list[Page]:
    found, stack = list[Page](), list(cache.root.children.values())
    while stack:
        page = stack.pop()
        found.append(page)
        stack += page.children.values()
    return found


class Machine(RuleBasedStateMachine):
    """Sequences take, fill and give back pages; sessions pin them; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PageCache(PAGES + 1, SIZE)
        self.now_s = 0.0
        self.held: list[list[Page]] = []  # the pages of each running sequence
        self.pins: dict[str, tuple[list[Page], float]] = {}

    @rule(tokens=TOKENS, filled=st.integers(0, 7), more=st.integers(0, 2))
    def begin(self, tokens: list[int], filled: int, more: int) -> None:
        """A sequence shares what it can, takes pages for the rest, and computes some of it."""
        whole = len(tokens) // SIZE
        shared = self.cache.match(tokens, whole)
        self.cache.acquire(shared)
        before = self.cache.available
        own = self.cache.allocate(whole - len(shared) + more)
        if own is None:
            assert whole - len(shared) + more > before
            self.cache.release(shared)
            return
        pages = shared + own
        for index in range(len(shared), whole):
            parent = pages[index - 1] if index else self.cache.root
            key = tuple(tokens[index * SIZE : (index + 1) * SIZE])
            assert self.cache.publish(pages[index], parent, key, self)
        for page in pages[: min(filled, whole)]:
            page.ready = True
        self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.cache.release(self.held.pop(index))

    @rule(name=st.sampled_from("ab"), tokens=TOKENS, keep_s=st.sampled_from([1.0, 3.0, math.inf]))
    def pin(self, name: str, tokens: list[int], keep_s: float) -> None:
        path = self.cache.match(tokens, len(tokens) // SIZE)
        path = [page for page in path if page.ready]
        self.cache.pin(name, path, self.now_s + keep_s)
        self.pins[name] = path, self.now_s + keep_s

    @rule(name=st.sampled_from("ab"))
    def unpin(self, name: str) -> None:
        self.cache.unpin(name)
        self.pins.pop(name, None)

    @rule(step_s=st.sampled_from([0.5, 1.0, 2.0]))
    def pass_time(self, step_s: float) -> None:
        self.now_s += step_s
        ended = set(self.cache.expire(self.now_s))
        assert ended == {name for name, (_, until_s) in self.pins.items() if until_s <= self.now_s}
        for name in ended:
            del self.pins[name]

    @rule()
    def break_pin(self) -> None:
        name = self.cache.break_pin()
        if self.pins:
            first = min(until_s for _, until_s in self.pins.values())
            assert name is not None and self.pins[name][1] == first
            del self.pins[name]
        else:
            assert name is None

    @rule(count=st.integers(1, PAGES))
    def press(self, count: int) -> None:
        """Ask for many pages and give them back: evicts whatever may be evicted."""
        if pages := self.cache.allocate(count):
            self.cache.release(pages)

    @invariant()
    def every_page_is_in_one_place(self) -> None:
        cached = tree(self.cache)
        private = {page for pages in self.held for page in pages if page.parent is None}
        ids = [page.id for page in cached] + [page.id for page in private]
        assert sorted(ids + self.cache._free) == list(range(1, PAGES + 1))

    @invariant()
    def counts_are_right(self) -> None:
        held = [page for pages in self.held for page in pages]
        pinned = [page for pages, _ in self.pins.values() for page in pages]
        for page in tree(self.cache):
            assert page.refs == held.count(page)
            assert page.pins == pinned.count(page)
            assert page.ready or page.refs
        idle = [page for page in tree(self.cache) if not page.refs and not page.pins]
        assert self.cache.available == self.cache.free_pages + len(idle)
        assert self.cache.pinned_pages == len(set(pinned))

    @invariant()
    def what_is_promised_is_there(self) -> None:
        cached = set(tree(self.cache))
        assert all(page in cached for pages, _ in self.pins.values() for page in pages)
        assert {page for pages in self.held for page in pages if page.parent} <= cached


TestCache = Machine.TestCase
TestCache.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_least_recently_used_goes_first() -> None:
    cache = PageCache(4, SIZE)
    for token in (1, 2, 3):
        page = cache.allocate(1)[0]
        cache.publish(page, cache.root, (token, token), None)
        page.ready = True
        cache.release([page])
    again = cache.match([1, 1], 1)
    cache.acquire(again)
    cache.release(again)

    cache.release(cache.allocate(2))

    assert cache.match([1, 1], 1)
    assert not cache.match([2, 2], 1)
    assert not cache.match([3, 3], 1)


def test_the_heap_of_idle_pages_stays_small() -> None:
    cache, draw = PageCache(9, SIZE), random.Random(1)
    for _ in range(2000):
        tokens = [draw.randrange(2) for _ in range(4)]
        path = cache.match(tokens, 2)
        cache.acquire(path)
        own = cache.allocate(2 - len(path))
        pages = path + own
        for index in range(len(path), 2):
            parent = pages[index - 1] if index else cache.root
            cache.publish(pages[index], parent, tuple(tokens[2 * index : 2 * index + 2]), None)
            pages[index].ready = True
        cache.release(pages)

    assert len(cache._coldest) <= 4 * cache.capacity + 1
