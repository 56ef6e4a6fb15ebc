"""A ranker is learned where prompts tell of lengths, and is used nowhere else."""

import json
import sys
from random import Random

import pytest

from tenter.runtime.predict import Asked, Known, Learned, Ranker, Row, due, fit, token_classes
from tenter.runtime.predict.ranker import FEATURES, SIZES, StepRank, features, restored

pytest.importorskip("torch")


def rows(
    count: int, telling: float, seed: int = 0, step: str = "flow/write", calls: int = 4
) -> list[Row]:
    """Calls whose length follows the share of one token in their prompts, or, at 0, nothing."""
    random, found = Random(seed), list[Row]()
    for at in range(count):
        share = random.random()
        tokens = [3 if random.random() < share else random.randrange(9, 900) for _ in range(60)]
        length = 20 + 400 * telling * share + random.lognormvariate(3, 0.8)
        asked = Asked(
            step=step,
            prompt_tokens=random.randrange(50, 90),
            own_tokens=60,
            max_tokens=1_000,
            calls=at % calls,
            program_tokens=at % calls * 100,
            last_tokens=100,
            usual_tokens=200.0 + random.random(),
            classes=token_classes(tokens),
        )
        found.append(Row(at // calls, round(length), asked))
    return found


def known(*parts: list[Row]) -> Known:
    found = Known()
    for part in parts:
        found.rows.extend(part)
        found.rows_since_fit += len(part)
    return found


@pytest.fixture(scope="module")
def ranked() -> Known:
    """One step whose prompts tell, and one whose prompts do not."""
    found = known(rows(800, telling=1.0), rows(800, telling=0.0, seed=1, step="flow/roll"))
    assert fit(found, seed=0) is not None
    return found


def test_a_step_is_ranked_only_where_its_prompts_tell(ranked: Known) -> None:
    assert isinstance(ranked.ranker, Ranker)
    assert set(ranked.ranker.steps) == {"flow/write"}
    assert ranked.ranker.steps["flow/write"].tau > 0.4


def test_the_report_says_how_both_did() -> None:
    report = fit(known(rows(800, telling=1.0)), seed=0)

    assert report is not None
    assert report.used == ("flow/write",)
    assert report.tau > 0.4 > abs(report.tau_history)
    assert report.steps["flow/write"][0] > 100


def test_longer_answers_are_expected_of_the_calls_that_get_them(ranked: Known) -> None:
    assert ranked.ranker is not None
    unseen = rows(400, telling=1.0, seed=9)
    judged = [(ranked.ranker.judge(row.asked), row.tokens) for row in unseen]
    low = [tokens for one, tokens in judged if one and one.expected_tokens < 180]
    high = [tokens for one, tokens in judged if one and one.expected_tokens > 320]

    assert len(low) > 40 and len(high) > 40
    assert sum(high) / len(high) > sum(low) / len(low) + 100
    assert len({one.word for one, _ in judged if one}) == 4, "groups of calls that are alike"


def test_calls_that_look_alike_by_program_only_do_not_pass() -> None:
    """Each program has a length and a prompt of its own: many calls, but few programs to tell."""
    for seed in range(2):
        random, found = Random(seed), list[Row]()
        for row in rows(1_000, telling=0.0, seed=seed, calls=40):
            length = 100 + Random(row.program).randrange(300)
            found.append(Row(row.program, length + random.randrange(10), row.asked))
        report = fit(known(found), seed=0)

        assert report is not None and report.used == ()


def test_the_same_seed_gives_the_same_ranker() -> None:
    found = [known(rows(600, telling=1.0)) for _ in range(3)]
    for one, seed in zip(found, (1, 1, 2), strict=True):
        fit(one, seed)
    first, same, other = (one.ranker.data() if one.ranker else None for one in found)

    assert first is not None and other is not None
    assert first == same
    assert first != other


def test_too_little_teaches_nothing() -> None:
    found = known(rows(100, telling=1.0))

    assert not due(found)
    assert fit(found, seed=0) is None
    assert found.ranker is None


def test_a_fit_is_due_again_when_enough_is_new(ranked: Known) -> None:
    assert due(known(rows(600, telling=0.0)))
    assert not due(ranked)


def test_without_pytorch_history_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    learned = Learned(known(rows(600, telling=1.0)))

    assert learned.fit(seed=0) is None
    assert learned.known.ranker is None


# ---- as data ------------------------------------------------------------------------------------


def test_a_ranker_goes_through_json_and_back(ranked: Known) -> None:
    assert isinstance(ranked.ranker, Ranker)
    again = restored(json.loads(json.dumps(ranked.ranker.data())))

    assert again is not None
    for row in rows(20, telling=1.0, seed=3):
        assert again.judge(row.asked) == ranked.ranker.judge(row.asked)


def test_without_numpy_a_kept_ranker_rests(ranked: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranked.ranker is not None
    data = ranked.ranker.data()
    monkeypatch.setitem(sys.modules, "numpy", None)

    assert restored(data) is None


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "AAAA"},
        {"weights": "no base64"},
        {"steps": {"a": {"cuts": [], "scores": [], "tokens": [], "tau": 0, "tau_history": 0}}},
        {"steps": {"a": {"cuts": [], "scores": [1, 1], "tokens": [1, 2], "tau": 0}}},
        {"steps": 3},
    ],
)
def test_what_is_no_ranker_is_refused(ranked: Known, change: dict[str, object]) -> None:
    assert ranked.ranker is not None
    with pytest.raises(ValueError, match="not a ranker"):
        restored({**ranked.ranker.data(), **change})


def test_a_line_gives_lengths_between_and_beyond_its_points() -> None:
    line = StepRank([], [0.0, 1.0, 3.0], [10.0, 20.0, 60.0], 0.5, 0.0)

    assert [line.tokens_at(score) for score in (-9, 0, 0.5, 2, 3, 9)] == [10, 10, 15, 40, 60, 60]


def test_features_are_as_many_as_the_network_takes() -> None:
    for row in rows(3, telling=1.0):
        assert len(features(row.asked)) == FEATURES == SIZES[0]
    bare = Asked("s", 1, 1, 1, 0, 0, 0, 0.0, classes=b"short")
    assert len(features(bare)) == FEATURES
