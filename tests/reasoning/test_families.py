"""Families of stop rules: they share the error that calibration may make, and step back in turn."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from tenter.runtime.reasoning.calibrate import Cost, calibrate, costs
from tenter.runtime.reasoning.families import CUTS, FAMILIES, SURE, Family, families_for, safer
from tenter.runtime.reasoning.nouns import Finish, Probe, Probed, Think, Thought
from tenter.runtime.reasoning.recorded import Recorded, RecordedTrial, replay
from tenter.runtime.reasoning.rules import LADDER, NEVER, StopRule
from tenter.runtime.reasoning.shadow import Shadow
from tenter.runtime.reasoning.thought import ChainOfThought

EVERY = 64


def thought(problem: int, settles: int, tokens: int, sure: bool = True) -> Recorded:
    """One that says something else until it settles, and knows when it does."""
    told = tuple(
        RecordedTrial(
            at, "7" if at >= settles else str(at), 4, (-0.001 if at >= settles else -2.0,)
        )
        for at in range(EVERY, tokens, EVERY)
    )
    if not sure:
        told = tuple(replace(trial, logprobs=()) for trial in told)
    return Recorded(problem, tokens, "7", True, told)


def chosen(records: list[Recorded], **given):
    families, left_out = families_for(records)
    found = calibrate(
        lambda rule: costs(rule, records, None, limit_tokens=8_192),
        families=families,
        labelled=False,
        **given,
    )
    return found, left_out


@pytest.mark.slow
def test_where_thoughts_know_when_they_have_settled_confidence_is_asked_for() -> None:
    rng = random.Random(1)
    records = [thought(at, rng.randrange(64, 2_500, 64), 3_000) for at in range(300)]

    found, left_out = chosen(records)

    assert found.rule.confidence is not None
    assert found.rule.vouch is not None
    assert found.rule.vouch.saved > 0.3
    assert not left_out


def test_without_confidence_its_rules_are_not_tried_and_it_says_so() -> None:
    found, left_out = chosen([thought(at, 640, 3_000, sure=False) for at in range(300)])

    assert all(tried.rule.confidence is None for tried in found.tried)
    assert "no confidence was recorded" in left_out[0]


def test_where_all_settle_at_one_length_a_cut_is_the_rule() -> None:
    records = [thought(at, 1_280, 3_000, sure=False) for at in range(300)]

    found, _ = chosen(records)

    assert found.rule.cut_tokens is not None
    assert 1_280 <= found.rule.cut_tokens <= 1_600
    done = replay(found.rule, records[0], limit_tokens=8_192)
    assert (done.answer, done.stopped) == ("7", "limit")
    assert done.tokens == found.rule.cut_tokens + 4 + 20


def test_a_cut_is_not_tried_before_the_first_recorded_trial() -> None:
    (*_, cuts), _ = families_for([thought(0, 64, 150)])

    assert min(rule.cut_tokens or 0 for rule in cuts.rules) >= EVERY


@pytest.mark.slow
def test_the_promise_holds_over_all_families_together() -> None:
    """Each family has a rule that loses just more than the budget: one may be chosen in a tenth of
    the calibrations at most."""
    families = [
        Family(f"f{at}", (StopRule(f"bad-{at}", agree=at + 1),), weight)
        for at, weight in enumerate((3, 2, 1))
    ]
    wrong = 0
    for seed in range(120):
        rng = random.Random(seed)
        lost = {
            family.rules[0].name: [float(rng.random() < 0.06) for _ in range(150)]
            for family in families
        }

        def cost_of(rule: StopRule, lost: dict = lost) -> list[Cost]:
            return [Cost(at, loss, 10, 100) for at, loss in enumerate(lost[rule.name])]

        found = calibrate(cost_of, budget=0.055, families=families, labelled=False, seed=seed)
        wrong += found.rule != NEVER
    assert wrong <= 20  # 12 expected at most; 20 has probability below 1 %


def test_a_rule_that_gains_sets_the_measure() -> None:
    gains = {"careful": -0.3, "bold": 0.0}
    family = Family("f", tuple(StopRule(name) for name in gains))

    def cost_of(rule: StopRule) -> list[Cost]:
        tokens = 50 if rule.name == "careful" else 30
        kept = 1 + gains[rule.name]
        return [Cost(at, float(at / 400 >= kept) * -1, tokens, 100) for at in range(400)]

    found = calibrate(cost_of, families=(family,))

    assert [tried.passed for tried in found.tried] == [True, True]
    assert found.rule.name == "careful"


def test_risk_control_is_for_one_family() -> None:
    with pytest.raises(ValueError, match="one family"):
        calibrate(lambda rule: [], families=FAMILIES, method="crc")


@pytest.mark.parametrize("rules", [LADDER, SURE, CUTS], ids=["standing", "sure", "cut"])
def test_a_drift_steps_back_within_the_family_at_its_scale(rules: tuple[StopRule, ...]) -> None:
    assert safer(rules[0].scaled(0.1)) == NEVER
    for careful, bold in pairwise(rules):
        back, wanted = safer(bold.scaled(0.1)), careful.scaled(0.1)
        assert back.start_tokens == pytest.approx(wanted.start_tokens, abs=1)
        assert back.cut_tokens == pytest.approx(wanted.cut_tokens, abs=1)
        assert (
            replace(back, start_tokens=wanted.start_tokens, cut_tokens=wanted.cut_tokens) == wanted
        )
    shadow = Shadow(rules[-1], allowed=0.02)
    while shadow.rule != NEVER:
        shadow.observe(1.0)
    assert [drift.left.name for drift in shadow.drifts] == [rule.name for rule in rules][::-1]


def test_rules_of_all_families_survive_json() -> None:
    for family in FAMILIES:
        for rule in family.rules:
            assert StopRule.from_json(rule.to_json()) == rule


def test_a_shadow_run_of_a_cut_asks_where_it_would_have_been_cut() -> None:
    rule = replace(NEVER, name="cut", cut_tokens=100)
    step = ChainOfThought(1 << 30, 400, extract=str, rule=rule, stop=False)
    (ask,) = step.begin()
    assert isinstance(ask, Think)
    assert ask.max_tokens == 100
    (probe,) = step.observe(Thought(ask.request, "", 100))
    assert isinstance(probe, Probe)
    (ask,) = step.observe(Probed(probe.request, "5}", 2, 20))
    assert isinstance(ask, Think)
    (end,) = step.observe(Thought(ask.request, "7", 50, ended=True))
    assert isinstance(end, Finish)
    assert (end.outcome.answer, end.outcome.stopped) == ("7", "ended")
    assert step.would_stop is not None
    assert (step.would_stop.answer, step.would_stop.at_tokens) == ("5", 100)
