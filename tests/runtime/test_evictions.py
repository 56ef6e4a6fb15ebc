"""KV events of a server, read into what the scheduler's map of prefixes must forget."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.backends.sglang.evictions import (
    AllBlocksCleared,
    Batch,
    BlockRemoved,
    BlockStored,
    Pages,
    read_batch,
)
from tenter.runtime.blocks import block_end, blocks_of


def stored(pages: list[int], parent: int | None, tokens: list[int], size: int) -> BlockStored:
    return BlockStored(pages, parent, tokens, size, "GPU")


def batch(*events: BlockStored | BlockRemoved | AllBlocksCleared) -> Batch:
    return read_batch(msgspec.msgpack.encode(Batch(0.0, list(events))))


@given(
    page=st.sampled_from([16, 32, 64, 128]),
    cut=st.integers(0, 40),
    lost=st.integers(0, 39),
)
def test_a_block_is_gone_with_any_page_of_it(page: int, cut: int, lost: int) -> None:
    tokens = [place * 7 % 1000 for place in range(40 * page)]
    names = list(range(1000, 1040))
    pages = Pages()
    first = stored(names[:cut], None, tokens[: cut * page], page)
    parent = names[cut - 1] if cut else None
    second = stored(names[cut:], parent, tokens[cut * page :], page)
    assert pages.take(0, batch(first, second)) == []
    blocks = blocks_of(tokens)
    touched = tuple(
        block
        for index, block in enumerate(blocks)
        if (block_end(index - 1) if index else 0) < (lost + 1) * page
        and block_end(index) > lost * page
    )
    assert pages.take(1, batch(BlockRemoved([names[lost]], "GPU"))) == (
        [touched] if touched else []
    )


def test_a_gap_or_a_flush_forgets_everything_and_the_host_tier_is_not_counted() -> None:
    pages = Pages()
    tokens = list(range(64))
    pages.take(5, batch(stored([1, 2], None, tokens, 32)))
    assert pages.take(6, batch(BlockRemoved([1], "CPU_PINNED"))) == []
    assert pages.take(8, batch()) == [()]
    assert pages.take(9, batch(BlockRemoved([1], "GPU"))) == []
    assert pages.take(10, batch(AllBlocksCleared())) == [()]


def test_pages_stored_before_we_listened_are_passed_over() -> None:
    pages = Pages()
    assert pages.take(0, batch(stored([7], 6, list(range(64)), 64))) == []
    assert pages.take(1, batch(BlockRemoved([7, 6], "GPU"))) == []


def test_events_that_are_not_known_are_passed_over() -> None:
    tokens = list(range(64))
    events = [{"type": "Later", "x": 1}, stored([1], None, tokens, 64), stored([2], 1, [-1], 1)]
    batch = read_batch(msgspec.msgpack.encode((0.0, events, None)))
    pages = Pages()
    assert pages.take(0, batch) == []
    removed = read_batch(msgspec.msgpack.encode((0.0, [BlockRemoved([1, 2])], None)))
    assert pages.take(1, removed) == [blocks_of(tokens)]
