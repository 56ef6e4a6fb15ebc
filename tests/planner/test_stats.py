"""Statistics of a table: exact while they fit, close beyond, in bounded memory."""

from collections.abc import Iterator, Sequence

import pytest

from tenter.planner.errors import PlannerError
from tenter.planner.stats import EXACT, SAMPLE_ROWS, TableStats, collect


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


def test_rows_that_differ_are_counted_whole() -> None:
    rows = [{"a": n % 6, "b": n % 6 // 2} for n in range(60)]
    assert collect(rows, ["a", "b"]).distinct_rows == 6  # not 6 times 3


def test_a_sample_says_so() -> None:
    rows = [{"a": index} for index in range(10)]

    assert (collect(rows, ["a"], limit=4).rows, collect(rows, ["a"], limit=4).sampled) == (4, True)
    assert not collect(rows, ["a"], limit=10).sampled


def test_no_rows() -> None:
    stats = collect([], ["a"])

    assert (stats.rows, stats.columns["a"].distinct, stats.columns["a"].mean_chars) == (0, 0, 0.0)


def test_tokens_of_a_sample_are_counted_once_each() -> None:
    asked: list[str] = []

    def count(texts: Sequence[str]) -> list[int]:
        asked.extend(texts)
        return [len(text) // 2 for text in texts]

    rows = [{"a": "x" * (2 + index % 3 * 2), "b": "y"} for index in range(30)]
    stats = collect(rows, ["a", "b"], count_tokens=count)

    assert stats.columns["a"].mean_tokens == 2
    assert sorted(asked) == ["xx", "xxxx", "xxxxxx", "y"]
    assert collect(rows, ["a"]).columns["a"].mean_tokens is None


def test_what_values_share_and_repeat() -> None:
    rows = [{"a": f"row {index // 5}"} for index in range(100)]
    column = collect(rows, ["a"]).columns["a"]

    assert (column.lead_chars, column.same_as_last) == (4, 0.8)


def test_dependencies_are_found_in_a_bounded_sample() -> None:
    def rows(count: int) -> Iterator[dict[str, str]]:
        for index in range(count):
            product = index * 7919 % 300
            yield {"product": f"p{product}", "maker": f"m{product % 9}", "n": str(index)}

    stats = collect(rows(3 * SAMPLE_ROWS), ["product", "maker", "n"])

    assert [(each.left, each.right) for each in stats.dependencies] == [("product", "maker")]


def test_statistics_are_kept_as_text_under_a_hash_of_the_content() -> None:
    rows = [{"a": index % 3, "b": index % 6} for index in range(60)]
    stats = collect(rows, ["a", "b"], count_tokens=lambda texts: [1] * len(texts))

    assert TableStats.from_json(stats.to_json()) == stats
    assert stats.content == collect(rows, ["a", "b"]).content
    assert stats.content != collect(rows[1:], ["a", "b"]).content


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 0}', '{"version": 1}', "nul"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(PlannerError, match="no statistics"):
        TableStats.from_json(text)


def test_lists_are_counted_by_their_items() -> None:
    stats = collect([{"a": ["x"] * (n % 3), "b": "text"} for n in range(30)], ["a", "b"])
    assert (stats.columns["a"].mean_items, stats.columns["b"].mean_items) == (1.0, 0.0)
