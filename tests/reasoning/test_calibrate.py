"""What calibration vouches for holds, and it says so when it cannot vouch for anything."""

import random

import pytest

from tenter.runtime.reasoning.bounds import problems_needed, upper_bound
from tenter.runtime.reasoning.calibrate import Cost, calibrate, costs
from tenter.runtime.reasoning.recorded import Recorded, RecordedTrial
from tenter.runtime.reasoning.rules import LADDER, NEVER, StopRule
from tenter.runtime.reasoning.shadow import Shadow, is_shadow

COSTS = tuple(0.9 - 0.08 * at for at in range(len(LADDER)))


def losing(rates: dict[str, float], problems: int, seed: int = 0):
    """Costs under which each rule loses an answer at its rate."""

    def cost_of(rule: StopRule) -> list[Cost]:
        rng = random.Random(f"{seed} {rule.name}")
        tokens = COSTS[LADDER.index(rule)] * 1_000
        rate = rates.get(rule.name, 0.0)
        return [Cost(at, float(rng.random() < rate), tokens, 1_000) for at in range(problems)]

    return cost_of


def test_the_boldest_rule_that_keeps_the_budget_is_chosen() -> None:
    found = calibrate(losing({LADDER[4].name: 0.3}, 600))

    assert found.rule.name == LADDER[3].name
    assert found.rule.vouch is not None
    assert found.rule.vouch.bound <= 0.02
    assert len(found.tried) == 5  # the first that fails ends the search
    assert "saves 34.0%" in found.message


def test_too_few_problems_vouch_for_nothing_and_it_says_how_many_it_takes() -> None:
    found = calibrate(losing({}, 40))

    assert found.rule == NEVER
    assert not found.enough_data
    assert f"it takes {found.needed}" in found.message


def test_a_wider_budget_takes_fewer_problems_and_bolder_rules() -> None:
    rates = {LADDER[1].name: 0.05}

    assert calibrate(losing(rates, 400)).rule.name == LADDER[0].name
    assert calibrate(losing(rates, 400), budget=0.15).rule.name == LADDER[-1].name


def test_no_measurable_loss_means_not_above_zero_too() -> None:
    found = calibrate(losing({LADDER[0].name: 0.012}, 6_000))

    assert found.tried[0].bound <= 0.02
    assert found.rule == NEVER


def test_risk_control_in_expectation_takes_fewer_problems() -> None:
    found = calibrate(losing({}, 60), method="crc", budget=0.02)

    assert found.enough_data
    assert found.rule.name == LADDER[-1].name


def test_calibration_is_deterministic() -> None:
    cost_of = losing({LADDER[2].name: 0.01}, 300)

    assert calibrate(cost_of) == calibrate(cost_of)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"method": "guess"}, "guess"), ({"budget": 0.0}, "budget"), ({"budget": -1.0}, "budget")],
    ids=["method", "zero", "negative"],
)
def test_settings_out_of_range_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        calibrate(losing({}, 10), **settings)


def test_without_labels_full_length_is_the_judge() -> None:
    told = tuple(RecordedTrial(at, "7" if at > 2_000 else "5", 4) for at in range(64, 9_000, 64))
    agrees = Recorded("a", 9_000, "7.0", True, told)
    differs = Recorded("b", 9_000, "8", True, told)

    found = costs(LADDER[0], [agrees, differs], None, limit_tokens=16_384)

    assert [cost.loss for cost in found] == [0.0, 1.0]


def test_the_bound_covers_the_mean_as_often_as_it_says() -> None:
    rng = random.Random(3)
    misses = 0
    for _ in range(150):
        losses = [rng.choices([1.0, 0.0, -1.0], [0.04, 0.94, 0.02])[0] for _ in range(150)]
        misses += upper_bound(losses, 0.1) < 0.02
    assert misses <= 25  # 15 expected at most; 25 has probability below 1 %


def test_the_bound_tightens_with_data() -> None:
    bounds = [upper_bound([0.0] * n, 0.1) for n in (50, 200, 800)]

    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.01
    assert upper_bound([0.0] * problems_needed(0.02, 0.1), 0.1) <= 0.02
    with pytest.raises(ValueError, match="outside"):
        upper_bound([2.0], 0.1)


def test_drift_beyond_the_budget_widens_the_rule_and_is_reported() -> None:
    shadow = Shadow(LADDER[4], allowed=0.02)
    rng = random.Random(1)
    drifts = [drift for _ in range(400) if (drift := shadow.observe(float(rng.random() < 0.2)))]

    assert drifts[0].left == LADDER[4]
    assert drifts[0].rule == LADDER[3]
    assert "now stands-6-cap" in str(drifts[0])
    assert shadow.drifts == drifts
    for _ in range(3_000):
        shadow.observe(float(rng.random() < 0.5))
    assert shadow.rule == NEVER


def test_a_rule_that_keeps_its_word_is_left_alone() -> None:
    widened = 0
    for seed in range(60):
        rng, shadow = random.Random(seed), Shadow(LADDER[4], allowed=0.05)
        for _ in range(500):
            shadow.observe(float(rng.random() < 0.05))
        widened += bool(shadow.drifts)
    assert widened <= 9  # 3 expected at most


def test_who_is_a_shadow_is_fixed_and_a_share() -> None:
    chosen = [name for at in range(2_000) if is_shadow(name := f"row-{at}", 0.1)]

    assert 140 < len(chosen) < 260
    assert is_shadow(chosen[0], 0.1)
    assert not any(is_shadow(f"row-{at}", 0.0) for at in range(50))
    assert all(is_shadow(f"row-{at}", 1.0) for at in range(50))
