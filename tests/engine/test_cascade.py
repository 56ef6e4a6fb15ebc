"""Groups of rows that share pages: every row once, nothing shared that is not, few pages read."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.engine.cascade import GROUP_PAGES, Group, Row, groups_of


def row(*spans: tuple[int, int]) -> Row:
    """A row of (first page, number of pages) spans; its last page is not whole."""
    table = [page for start, count in spans for page in range(start, start + count)]
    return Row(table, len(table) - 1)


def test_one_common_prefix() -> None:
    rows = [row((0, 32), (100 + 10 * i, 5)) for i in range(8)]

    assert groups_of(rows) == [Group(32, tuple(range(8)))]


def test_two_trunks_and_a_loner() -> None:
    rows = [row((0, 40), (200 + i, 1)) for i in range(4)]
    rows += [row((100, 40), (300 + i, 1)) for i in range(4)]
    rows += [row((400, 9))]
    draw = random.Random(2)
    order = list(range(9))
    draw.shuffle(order)

    found = {
        frozenset(order[i] for i in g.rows): g.shared for g in groups_of([rows[i] for i in order])
    }

    assert found == {frozenset(range(4)): 40, frozenset(range(4, 8)): 40, frozenset([8]): 0}


def test_deeper_groups_win_where_they_read_less() -> None:
    rows = [row((0, 4), (100, 60), (200 + i, 1)) for i in range(6)]
    rows += [row((0, 4), (300, 60), (400 + i, 1)) for i in range(6)]

    assert sorted(group.shared for group in groups_of(rows)) == [64, 64]


def test_what_saves_little_is_not_a_group() -> None:
    rows = [row((0, 2), (10 + i, 3)) for i in range(5)]

    assert groups_of(rows) == [Group(0, (0, 1, 2, 3, 4))]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=6), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    )
)
def test_groups_are_sound(made: list[tuple[list[int], int]]) -> None:
    """Paths through a binary tree whose every edge is 15 pages long."""
    rows = list[Row]()
    for path, shorter in made:
        table = list[int]()
        for depth in range(len(path)):
            edge = int("1" + "".join(map(str, path[: depth + 1])), 2)
            table += range(edge * 100, edge * 100 + 15)
        rows.append(Row(table, len(table) - shorter))

    groups = groups_of(rows)

    assert sorted(i for group in groups for i in group.rows) == list(range(len(rows)))
    for group in groups:
        heads = {tuple(rows[i].table[: group.shared]) for i in group.rows}
        assert len(heads) == 1 or not group.shared
        assert all(group.shared <= rows[i].whole for i in group.rows)
        if group.shared:
            assert group.shared * (len(group.rows) - 1) > GROUP_PAGES
