"""What is left of answers and programs: covered as often as promised, also with heavy tails."""

import json
from itertools import pairwise
from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.kvpolicy import Predictor, coverage, key


def heavy(random: Random, rows: int) -> list[tuple[str, float]]:
    """Answers of workflows with ten steps each, of which most are rare: lognormal and Pareto."""
    found: list[tuple[str, float]] = []
    for _ in range(rows):
        step = min(9, int(random.expovariate(0.5)))
        tail = random.paretovariate(1.2) if random.random() < 0.3 else random.lognormvariate(0, 1)
        found.append((key("flow", f"step{step}"), round(20 * (step + 1) * tail)))
    return found


def taught(rows: list[tuple[str, float]]) -> Predictor:
    predictor = Predictor()
    for name, amount in rows:
        predictor.observe(name, amount)
    return predictor


@pytest.fixture(scope="module")
def trials() -> list[tuple[Predictor, list[tuple[str, float]]]]:
    """Predictors that have learned, each with rows of the same kind that it has not seen."""
    randoms = [Random(seed) for seed in range(8)]
    return [(taught(heavy(random, 2_500)), heavy(random, 1_000)) for random in randoms]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("so_far", "slack"), [(0.0, 0.025), (50.0, 0.025), (300.0, 0.05)])
def test_heavy_tails_are_covered_as_promised(
    trials: list[tuple[Predictor, list[tuple[str, float]]]],
    share: float,
    so_far: float,
    slack: float,
) -> None:
    found = [coverage(predictor, held_back, share, so_far) for predictor, held_back in trials]

    assert mean(one for one in found if one is not None) == pytest.approx(share, abs=slack)


def test_drift_is_followed() -> None:
    random = Random(3)
    rows = [("w", random.lognormvariate(4, 1)) for _ in range(4_000)]
    later = [("w", amount * 3) for _, amount in rows]
    predictor = taught([*rows, *later[:600]])

    # of the late thousand amounts 600 are of the new kind: raw quantiles would cover about half
    found = coverage(predictor, later[600:], 0.9)
    assert found is not None and found > 0.84


def test_constant_answers_of_one_step_leave_the_others_as_they_are() -> None:
    """Half of all calls answer with one token; the other step's median must stay its median."""
    random = Random(5)
    rows = [("flow/pick", 1.0), ("flow/write", 0.0)] * 1_500
    rows = [(name, amount or round(random.lognormvariate(5, 1))) for name, amount in rows]
    predictor, held_back = taught(rows[:2_000]), rows[2_000:]
    written = [(name, amount) for name, amount in held_back if name == "flow/write"]

    for share in (0.5, 0.9):
        assert coverage(predictor, written, share) == pytest.approx(share, abs=0.06)
    assert predictor.left("flow/pick", 0.9) == 1.0


def test_few_amounts_are_covered_with_care() -> None:
    """With six amounts no 90 % quantile can be vouched for: the largest seen is given."""
    assert taught([("w", float(size)) for size in (5, 3, 9, 1, 2, 4)]).left("w", 0.9) == 9.0


def test_progress_rules_out_what_was_shorter() -> None:
    rows = [("w", float(size)) for size in range(1, 101)] * 5
    Random(1).shuffle(rows)
    predictor = taught(rows)

    left = predictor.left("w", 0.5, so_far=80)
    assert left is not None and 8 <= left <= 13
    assert predictor.left("w", 0.5, so_far=100) is None
    assert predictor.mean_left("w", 80) == pytest.approx(10.5, abs=1.5)


def test_nothing_is_known_at_first() -> None:
    assert Predictor().left("w", 0.5) is None
    assert coverage(Predictor(), [], 0.5) is None
    assert coverage(Predictor(), [("w", 3.0)], 0.5) == 0.0


AMOUNTS = st.lists(
    st.tuples(st.sampled_from(["w", "w a", "w b"]), st.integers(0, 4_000)), max_size=60
)


@given(rows=AMOUNTS, so_far=st.integers(0, 4_000))
def test_a_larger_share_takes_no_less(rows: list[tuple[str, float]], so_far: float) -> None:
    predictor = taught(rows)
    found = [predictor.left("w a", share, so_far) for share in (0.1, 0.5, 0.8, 0.9, 1.0)]

    for less, more in pairwise(found):
        assert (less is None) == (more is None)
        assert less is None or more is None or 0 <= less <= more


@given(rows=AMOUNTS)
def test_a_snapshot_goes_through_json_and_back(rows: list[tuple[str, float]]) -> None:
    predictor = taught(rows)
    again = Predictor.restore(json.loads(json.dumps(predictor.snapshot())))

    assert again.snapshot() == predictor.snapshot()
    assert again.left("w b", 0.8, 10) == predictor.left("w b", 0.8, 10)


@pytest.mark.parametrize("data", [{}, {"scores": 3, "history": {}}, {"scores": [], "history": {}}])
def test_what_is_no_snapshot_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a snapshot"):
        Predictor.restore(data)
