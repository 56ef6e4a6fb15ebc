"""Prompts as spans of streams: equal prefixes are equal, whatever they are cut into."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.engine.cache import PageCache
from tenter.runtime.replay import (
    Pause,
    Program,
    Span,
    Turn,
    Workload,
    cut,
    joined,
    new_tokens,
    page_ids,
    shared_tokens,
    token_ids,
)

spans = st.builds(
    lambda stream, start, length: Span(stream, start, start + length),
    st.integers(0, 2),
    st.integers(0, 40),
    st.integers(1, 40),
)
prompts = st.lists(spans, min_size=1, max_size=5).map(tuple)


def common(one: list[int], other: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


@given(prompts, prompts, st.integers(0, 60))
def test_spans_and_token_ids_agree_on_what_is_shared(
    one: tuple[Span, ...], other: tuple[Span, ...], tokens: int
) -> None:
    ids, others = token_ids(one), token_ids(other)
    # Two prompts may go on alike by chance behind a joint that only one of them has; `joined`
    # makes such joints equal, so the count is exact.
    assert shared_tokens(one, other) == common(ids, others)
    assert token_ids(joined(one)) == ids
    assert token_ids(cut(one, tokens)) == ids[:tokens]


@given(prompts, prompts, st.sampled_from([1, 3, 16]))
def test_page_ids_are_equal_exactly_where_pages_are(
    one: tuple[Span, ...], other: tuple[Span, ...], size: int
) -> None:
    def pages(ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[i : i + size]) for i in range(0, len(ids) - size + 1, size)]

    mine, theirs = pages(token_ids(one)), pages(token_ids(other))
    names, others = page_ids(one, size), page_ids(other, size)
    assert (len(names), len(others)) == (len(mine), len(theirs))
    for page, name in zip(mine, names, strict=True):
        for twin, twin_name in zip(theirs, others, strict=True):
            assert (page == twin) == (name == twin_name)


def test_the_engines_tree_finds_the_prefix_of_an_earlier_turn() -> None:
    system = Span(0, 0, 100)
    first = Turn((system, Span(1, 0, 60)), 20)
    second = Turn((system, Span(1, 0, 100)), 20)
    stranger = Turn((system, Span(2, 0, 100)), 20)
    cache = PageCache(64)
    ids = token_ids((*first.prompt, first.answer))
    pages = cache.allocate(len(ids) // 16)
    assert pages is not None
    parent = cache.root
    for index, page in enumerate(pages):
        cache.publish(page, parent, tuple(ids[16 * index : 16 * index + 16]), None)
        page.ready, parent = True, page
    assert len(cache.match(token_ids(second.prompt), 100)) == 180 // 16
    assert len(cache.match(token_ids(stranger.prompt), 100)) == 100 // 16
    assert new_tokens(first, None) == 160
    assert new_tokens(second, first) == 200 - 180
    assert new_tokens(stranger, first) == 100


def test_a_workload_is_made_anew_by_each_pass() -> None:
    made: list[int] = []

    def make() -> Iterator[Program]:
        made.append(1)
        yield Program(0.0, "a", ((Turn((Span(0, 0, 1),), 1, Pause(1.0)),),))

    workload = Workload("w", make)
    assert [program.name for program in workload] == [program.name for program in workload] == ["a"]
    assert workload.programs == workload.programs == 1 and len(made) == 3
