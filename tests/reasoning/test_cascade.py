"""Thresholds of cascades: what a sample vouches for."""

from random import Random

import pytest

from tenter.runtime.reasoning.cascade import Paired, certainty, learn, outlook, rows_needed


def pairs(count: int, wrong_below: float, random: Random) -> list[Paired]:
    """Small models that are wrong half of the time where they are less sure than that."""
    found = []
    for _ in range(count):
        sure = random.random()
        found.append(Paired(sure, sure >= wrong_below or random.random() < 0.5))
    return found


def test_too_small_a_sample_says_how_large_it_must_be() -> None:
    found = learn(pairs(40, 0.0, Random(0)), 0.95, 0.9)

    assert found.at is None
    assert found.needed == rows_needed(0.95, 0.9) == 60
    assert "40 rows cannot vouch for an agreement of 95.0%: it takes 60" in found.message


def test_the_small_model_answers_where_it_can_be_trusted() -> None:
    found = learn(pairs(1000, 0.5, Random(0)), 0.95, 0.9)

    assert found.at is not None and 0.3 <= found.at <= 0.6
    assert 0.4 < found.routed < 0.7
    assert found.bound <= 0.05
    assert "with confidence 90%" in found.message


def test_one_that_is_sure_and_wrong_is_not_used() -> None:
    found = learn([Paired(0.99999, n % 3 != 0) for n in range(400)], 0.95, 0.9)
    assert found.at is None
    assert "no threshold keeps an agreement of 95.0% on 400 sampled rows" in found.message


def test_one_that_is_never_sure_and_always_right_answers_everything() -> None:
    found = learn([Paired(0.3, True)] * 100, 0.95, 0.9)
    assert (found.at, found.routed) == (0.0, 1.0)


@pytest.mark.slow
def test_the_promise_is_kept_as_often_as_it_says() -> None:
    """The true loss of the chosen threshold is above its budget in at most one run of ten."""
    random, broken, used = Random(7), 0, 0
    for seed in range(200):
        found = learn(pairs(200, 0.4, random), 0.95, 0.9, seed)
        if found.at is not None:
            used += 1
            broken += max(0.0, 0.4 - found.at) / 2 > 0.05
    assert used > 150
    assert broken <= 20


@pytest.mark.parametrize(
    ("logprobs", "sure"), [((0.0, 0.0), 0.5), ((-1000.0, -2000.0), 1.0), ((-3.0,), 1.0)]
)
def test_certainty_is_the_likeliest_choices_share(logprobs: tuple[float, ...], sure: float) -> None:
    assert certainty(logprobs) == pytest.approx(sure)


@pytest.mark.parametrize(
    ("target", "sample", "rows", "told"),
    [
        pytest.param(0.95, 200, 1000, "can vouch for 95.0%; it takes 60", id="enough"),
        pytest.param(0.95, 50, 1000, "raise `sample` to 60 or more", id="sample"),
        pytest.param(0.95, 200, 100, "lower `target` to 0.925", id="table"),
        pytest.param(0.95, 200, 4, "too small for a cascade", id="tiny"),
        pytest.param(0.95, 90, 100_000, "of each 8,192 cannot vouch", id="windows"),
    ],
)
def test_it_is_known_ahead_whether_a_sample_can_be_large_enough(
    target: float, sample: int, rows: int, told: str
) -> None:
    found = outlook(target, 0.9, sample, rows, 8192)
    assert told in found.message and found.enough == ("can vouch" in found.message)
