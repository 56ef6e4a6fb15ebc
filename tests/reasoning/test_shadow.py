"""The evidence of shadow runs, in processes that share what they learn."""

from pathlib import Path

from tenter.runtime.predict.learned import Learned
from tenter.runtime.reasoning.rules import LADDER, NEVER, StopRule
from tenter.runtime.reasoning.shadow import FRESH, Loss, Shadows, restored

RULE, ALLOWED = LADDER[4], 0.1


def see(shadows: Shadows, rule: StopRule, loss: float, times: int) -> None:
    """`times` shadow runs of a step while `rule` is in force."""
    shadows.monitor("think", RULE, ALLOWED)
    for _ in range(times):
        shadows.observe(Loss("think", RULE.to_json(), ALLOWED, rule.name, loss))


def kept(home: Path) -> StopRule:
    """The rule that the next run begins with."""
    return Learned.load(home, "w", "f").known.shadows.monitor("think", RULE, ALLOWED).rule


def test_a_rule_that_one_run_has_left_is_not_taken_up_again_for_what_another_saw(
    tmp_path: Path,
) -> None:
    one, other = (Learned.load(tmp_path, "w", "f") for _ in range(2))
    see(other.known.shadows, RULE, 0.0, 300)
    see(one.known.shadows, RULE, 1.0, 10)
    (drift,) = one.known.shadows.monitor("think", RULE, ALLOWED).drifts
    assert other.save()
    assert one.save()
    assert kept(tmp_path) == drift.rule != RULE


def test_a_drift_is_kept_however_many_runs_follow_before_it_is_saved(tmp_path: Path) -> None:
    learned = Learned.load(tmp_path, "w", "f")
    see(learned.known.shadows, RULE, 1.0, 10)
    see(learned.known.shadows, LADDER[3], 0.0, FRESH + 1)
    assert learned.save()
    assert kept(tmp_path) == LADDER[3]


def test_the_most_careful_of_two_runs_has_its_way(tmp_path: Path) -> None:
    one, other = (Learned.load(tmp_path, "w", "f") for _ in range(2))
    for rule in (RULE, LADDER[3], LADDER[2], LADDER[1], LADDER[0]):
        see(one.known.shadows, rule, 1.0, 10)
    see(other.known.shadows, RULE, 1.0, 10)
    assert one.save()
    assert other.save()
    assert kept(tmp_path) == NEVER


def test_evidence_of_two_runs_adds_up_to_a_drift(tmp_path: Path) -> None:
    one, other = (Learned.load(tmp_path, "w", "f") for _ in range(2))
    for learned in (one, other):
        see(learned.known.shadows, RULE, 1.0, 5)
        assert not learned.known.shadows.monitor("think", RULE, ALLOWED).drifts
        assert learned.save()
    assert kept(tmp_path) == LADDER[3]


def test_what_is_restored_goes_on_from_its_evidence() -> None:
    shadows = Shadows()
    see(shadows, RULE, 1.0, 4)
    (monitor,) = shadows.monitors.values()
    again = restored(monitor.state())
    assert (again.rule, again.runs, again.wealth) == (RULE, 4, monitor.wealth)
