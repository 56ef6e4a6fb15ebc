"""Statistics of a table: exact while they fit, close beyond, in bounded memory."""

import pytest

from tenter.planner.stats import EXACT, collect


def test_small_tables_are_counted_exactly() -> None:
    rows = [{"a": index % 3, "b": "x" * index, "c": None} for index in range(10)]
    stats = collect(rows, ["a", "b", "c", "d"])

    assert (stats.rows, stats.sampled) == (10, False)
    assert [stats.columns[name].distinct for name in "abcd"] == [3, 10, 1, 1]
    assert stats.columns["b"].mean_chars == 4.5
    assert stats.columns["c"].mean_chars == 4  # "None"


@pytest.mark.parametrize("distinct", [EXACT - 1, EXACT, EXACT + 1, 20_000])
def test_many_values_are_estimated(distinct: int) -> None:
    rows = ({"a": (index * 11) % distinct} for index in range(2 * distinct))

    assert collect(rows, ["a"]).columns["a"].distinct == pytest.approx(distinct, rel=0.05)


def test_a_sample_says_so() -> None:
    rows = [{"a": index} for index in range(10)]

    assert (collect(rows, ["a"], limit=4).rows, collect(rows, ["a"], limit=4).sampled) == (4, True)
    assert not collect(rows, ["a"], limit=10).sampled


def test_no_rows() -> None:
    stats = collect([], ["a"])

    assert (stats.rows, stats.columns["a"].distinct, stats.columns["a"].mean_chars) == (0, 0, 0.0)
