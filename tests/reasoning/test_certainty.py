"""Each measure against values worked out by hand, each condition alone."""

import math

import pytest

from tenter.runtime.reasoning.answers import exact, math_value
from tenter.runtime.reasoning.certainty import (
    agreement,
    certaindex,
    confidence,
    entropy,
    leader,
    reward_certainty,
)


@pytest.mark.parametrize(
    ("keys", "value"),
    [("aaaa", 1.0), ("abcd", 0.0), ("aabb", 0.5), ("a", 0.0), ("", 0.0)],
    ids=["all agree", "all differ", "two and two", "one", "none"],
)
def test_certaindex(keys: str, value: float) -> None:
    assert certaindex(list(keys)) == pytest.approx(value)


def test_answers_that_are_none_agree_with_nothing() -> None:
    assert certaindex([None, None, None]) == pytest.approx(0.0)
    assert entropy(["a", "a", None, None]) == pytest.approx(
        -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    )
    assert agreement(["a", None], 2) == 0.0


def test_agreement_needs_a_full_window() -> None:
    assert agreement(["a", "a"], 4) == 0.5
    assert agreement(["b", "a", "a", "a"], 3) == 1.0


def test_confidence_is_the_geometric_mean() -> None:
    assert confidence([math.log(0.5), math.log(0.125)]) == pytest.approx(0.25)
    assert confidence([]) is None


def test_rewards_by_mean_or_highest() -> None:
    assert reward_certainty([0.2, 0.6]) == pytest.approx(0.4)
    assert reward_certainty([0.2, 0.6], "max") == 0.6
    assert reward_certainty([]) == 0.0
    with pytest.raises(ValueError, match="median"):
        reward_certainty([1.0], "median")


def test_the_leader_is_the_plurality_in_its_most_frequent_spelling() -> None:
    found = leader(["1/2", "0.5", "3", "1/2", "hmm"], math_value)

    assert found is not None
    assert (found.answer, found.weight, found.share) == ("1/2", 3.0, 0.6)
    assert leader(["", " "], exact) is None


def test_weights_can_overrule_numbers() -> None:
    found = leader(["1", "1", "2"], math_value, [0.2, 0.2, 0.9])

    assert found is not None
    assert found.answer == "2"
