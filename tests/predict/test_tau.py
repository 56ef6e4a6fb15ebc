"""Kendall's tau-b against its definition."""

from itertools import combinations
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.predict.tau import kendall_tau, tau_error

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


def sign(number: float) -> int:
    return (number > 0) - (number < 0)


@given(pairs=PAIRS)
def test_it_counts_pairs_that_agree(pairs: list[tuple[int, int]]) -> None:
    both = [(sign(a - c), sign(b - d)) for (a, b), (c, d) in combinations(pairs, 2)]
    scale = sqrt(sum(x != 0 for x, _ in both) * sum(y != 0 for _, y in both))
    tau = sum(x * y for x, y in both) / scale if scale else 0.0

    assert kendall_tau([x for x, _ in pairs], [y for _, y in pairs]) == pytest.approx(tau)


def test_ends_of_the_scale() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1.0
    assert kendall_tau([1, 2, 3], [30, 20, 10]) == -1.0
    assert kendall_tau([1, 1, 1], [30, 20, 10]) == 0.0
    assert kendall_tau([], []) == 0.0


def test_two_rankings_are_of_the_same_things() -> None:
    with pytest.raises(ValueError, match="same things: 2 and 1"):
        kendall_tau([1, 2], [1])


def test_the_error_falls_with_the_square_root() -> None:
    assert tau_error(1) == 1.0
    assert tau_error(400) == pytest.approx(tau_error(100) / 2, rel=0.02)
