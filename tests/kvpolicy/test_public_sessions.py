"""Calibration on public coding sessions, where the data is at hand; nothing is tuned on it."""

import csv
import gzip
from pathlib import Path

import pytest

from tenter.kvpolicy import Durations, Predictor, coverage

SESSIONS = Path(__file__).parents[3] / "shared" / "data" / "agents" / "coding_sessions.csv.gz"

pytestmark = pytest.mark.skipif(not SESSIONS.exists(), reason=f"{SESSIONS.name} is not here")


@pytest.fixture(scope="module")
def sessions() -> dict[str, list[float]]:
    """The seconds between the requests of each session, up to a minute: what tools take."""
    found: dict[str, list[float]] = {}
    with gzip.open(SESSIONS, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            seconds = float(row["think_time"] or 0.0)
            if 0.0 < seconds <= 60.0:
                found.setdefault(row["trace"], []).append(seconds)
    return found


def halves(sessions: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """Gaps of every other session to learn from, and of the others to judge by."""
    names = sorted(sessions)
    return (
        [gap for name in names[::2] for gap in sessions[name]],
        [gap for name in names[1::2] for gap in sessions[name]],
    )


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_gaps_are_covered_as_promised_as_they_come(
    sessions: dict[str, list[float]], share: float
) -> None:
    """Each gap is foretold before it is learned, as in a run; many are equal, whole seconds."""
    predictor = Predictor()
    below: list[bool] = []
    covered: list[bool] = []
    for gap in (gap for name in sorted(sessions) for gap in sessions[name]):
        left = predictor.left("gap", share)
        below.append(left is not None and gap < left)
        covered.append(left is not None and gap <= left)
        predictor.observe("gap", gap)

    assert sum(below) / len(below) <= share + 0.03
    assert sum(covered) / len(covered) >= share - 0.03


@pytest.mark.parametrize("so_far", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_gaps_of_other_sessions_are_covered_nearly_as_promised(
    sessions: dict[str, list[float]], share: float, so_far: float
) -> None:
    """Less is promised here: sessions differ, so that a gap of a new one is not like the last."""
    seen, held_back = halves(sessions)
    predictor = Predictor()
    for gap in seen:
        predictor.observe("gap", gap)

    found = coverage(predictor, [("gap", gap) for gap in held_back], share, so_far)

    assert found == pytest.approx(share, abs=0.1)


def test_quantiles_of_think_time_are_those_of_the_data(sessions: dict[str, list[float]]) -> None:
    gaps = [gap for found in sessions.values() for gap in found][-1_000:]
    durations = Durations()
    for gap in gaps:
        durations.observe("gap", gap)

    for share in (0.25, 0.5, 0.75, 0.9, 0.99):
        found = durations.quantile("gap", share)
        assert found is not None
        assert sum(gap <= found for gap in gaps) / len(gaps) >= share
        assert sum(gap < found for gap in gaps) / len(gaps) <= share
