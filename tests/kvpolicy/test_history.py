"""Amounts per key: two levels of shrinkage, survival, hazard, tails, and snapshots."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.kvpolicy.history import KEPT, KEYS, POOL_KEPT, PRIOR, History, key

AMOUNTS = st.lists(st.floats(0, 1e4), min_size=1, max_size=40)


def taught(**keys: list[float]) -> History:
    history = History()
    for name, seen in keys.items():
        for amount in seen:
            history.observe(name.replace("__", " "), amount)
    return history


def test_a_key_is_the_tool_and_the_first_word_of_its_argument() -> None:
    assert key("shell", "  pytest -q tests") == "shell pytest"
    assert key("shell", "") == key("shell", "  ") == "shell"
    assert key("my tool", "x") == "my_tool x"
    assert len(key("shell", "x" * 10_000)) < 60


def test_what_a_word_shows_is_seen_under_its_tool_too() -> None:
    history = taught(shell__ls=[1.0], shell__make=[9.0, 9.0], read=[1.0])

    assert [history.count(name) for name in ("shell", "shell ls", "shell make", None)] == [
        3,
        1,
        2,
        4,
    ]


def test_a_word_shrinks_toward_its_tool_and_the_tool_toward_the_pool() -> None:
    history = taught(shell__make=[9.0] * 4, shell__ls=[1.0] * 4, read=[1.0] * 8)
    of_all = 12 / 16
    of_shell = (4 + PRIOR * of_all) / (8 + PRIOR)

    assert history.within("unseen", 1.0) == pytest.approx(of_all)
    assert history.within("shell", 1.0) == pytest.approx(of_shell)
    assert history.within("shell unseen", 1.0) == pytest.approx(of_shell)
    assert history.within("shell make", 1.0) == pytest.approx(PRIOR * of_shell / (4 + PRIOR))


@given(own=st.integers(1, 400), elapsed=st.floats(0, 0.9))
@settings(deadline=None, max_examples=30)
def test_with_more_of_its_own_a_key_becomes_itself(own: int, elapsed: float) -> None:
    history = taught(other=[9.0] * 50, own=[1.0] * own)
    pooled = own / (50 + own)

    found = history.within("own", 1.0, elapsed)

    assert found == pytest.approx((own + PRIOR * pooled) / (own + PRIOR))
    assert pooled <= found <= 1.0


@given(own=AMOUNTS, other=AMOUNTS, so_far=st.floats(0, 1e4), mores=st.lists(st.floats(0, 1e4)))
def test_survival_falls_with_time(
    own: list[float], other: list[float], so_far: float, mores: list[float]
) -> None:
    history = taught(a__b=own, c=other)
    survivals = [history.survival("a b", more, so_far) for more in sorted(mores)]

    assert all(0.0 <= later <= earlier <= 1.0 for earlier, later in pairwise([1.0, *survivals]))


def test_the_mean_of_what_is_left() -> None:
    history = taught(a=[1.0, 3.0, 8.0] * 40)

    assert history.mean_left("a") == pytest.approx(4.0)
    assert history.mean_left("a", 1.0) == pytest.approx(4.5)
    assert history.mean_left("a", 2.0) == pytest.approx(3.5)
    assert history.mean_left("a", 8.0) is None
    assert History().mean_left("a") is None


def test_the_hazard_over_a_horizon_is_ends_per_time_at_risk() -> None:
    history = taught(a=[1.0] * 500 + [3.0] * 500)

    # half end after 1 s at risk, the other half are at risk for the 2 s asked about
    assert history.hazard("a", 2.0) == pytest.approx(0.5 / 1.5, rel=0.01)
    assert history.hazard("a", 0.5) == 0.0
    assert history.hazard("a", 2.0, 1.0) == pytest.approx(1 / 2, rel=0.01)
    assert history.hazard("a", 1.0, 3.0) is None, "nothing seen has lasted as long"
    assert History().hazard("a", 1.0) is None


def test_a_curve_follows_what_is_learned() -> None:
    history = taught(a=[1.0] * 100)
    assert history.mean_left("a") == pytest.approx(1.0)
    for _ in range(900):
        history.observe("a", 5.0)

    assert history.mean_left("a") == pytest.approx(4.6, rel=0.03)


def test_the_mean_of_all_shrinks_as_shares_do() -> None:
    history = taught(shell__make=[9.0] * 4, shell__ls=[1.0] * 4, read=[1.0] * 8)
    of_shell = (40.0 + PRIOR * 3.0) / (8 + PRIOR)

    assert history.mean_left("unseen") == pytest.approx(3.0)
    assert history.mean_left("shell") == pytest.approx(of_shell)
    assert history.mean_left("shell make") == pytest.approx((36.0 + PRIOR * of_shell) / (4 + PRIOR))
    assert taught(a=[0.0, 0.0]).mean_left("a") == 0.0


@given(own=AMOUNTS, other=AMOUNTS, amount=st.floats(0, 1e4))
def test_a_place_is_the_shares_below_and_up_to_an_amount(
    own: list[float], other: list[float], amount: float
) -> None:
    history = taught(a__b=own, c=other)
    for name in ("a b", "a", "a new", "c", "new"):
        below, most = history.place(name, amount)

        assert most == pytest.approx(history.share(name, amount))
        assert 0.0 <= below <= most <= 1.0
        seen = amount in own or amount in other
        assert (below < most) == seen


# ---- snapshots ----------------------------------------------------------------------------------


@given(
    observed=st.lists(
        st.tuples(st.sampled_from(["a", "a b", "a c", "d"]), st.floats(0, 1e6)), max_size=60
    )
)
def test_a_snapshot_goes_through_json_and_back(observed: list[tuple[str, float]]) -> None:
    history = History()
    for name, amount in observed:
        history.observe(name, amount)
    data = json.loads(json.dumps(history.snapshot()))
    again = History.restore(data)

    assert again.snapshot() == history.snapshot()
    for name in ("a", "a b", "d", "e"):
        assert again.quantile(name, 0.7, 1.0) == history.quantile(name, 0.7, 1.0)
        assert again.mean_left(name) == pytest.approx(history.mean_left(name))


def test_a_snapshot_can_be_cut_to_the_last_amounts() -> None:
    data = taught(a=[1.0, 2.0, 3.0], b=[4.0]).snapshot(last=2)

    assert data == {"pool": [3.0, 4.0], "heads": {"a": [2.0, 3.0], "b": [4.0]}, "keys": {}}


def test_merged_histories_know_what_either_knew() -> None:
    mine = taught(a=[1.0] * 10, mine=[5.0])
    mine.merge(taught(a=[9.0] * 10, theirs__x=[7.0]).snapshot())

    assert mine.count("a") == 20
    assert mine.within("a", 1.0) == pytest.approx((10 + PRIOR * 10 / 22) / (20 + PRIOR))
    assert (mine.count("mine"), mine.count("theirs x"), mine.count()) == (1, 1, 22)


def test_of_full_histories_each_gives_half() -> None:
    mine = taught(a=[1.0] * KEPT)
    mine.merge(taught(a=[9.0] * KEPT).snapshot())

    assert mine.samples("a") == (1.0,) * (KEPT // 2) + (9.0,) * (KEPT // 2)
    assert mine.count() == 2 * KEPT <= POOL_KEPT


def test_merging_keeps_the_keys_seen_last_here() -> None:
    theirs, mine = History(), History()
    for at in range(KEYS):
        theirs.observe(f"theirs{at}", 1.0)
        mine.observe(f"mine{at}", 1.0)
    mine.merge(theirs.snapshot())

    assert mine.count("mine0") == 1
    assert mine.count("theirs0") == 0


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"pool": [1], "heads": []},
        {"pool": ["x"], "heads": {}, "keys": {}},
        {"pool": [-1.0], "heads": {}, "keys": {}},
        {"pool": [1.0], "heads": {"a": [float("nan")]}, "keys": {}},
        {"pool": 3, "heads": {}, "keys": {}},
    ],
)
def test_what_is_no_snapshot_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a snapshot"):
        History.restore(data)


def test_amounts_that_differ_by_rounding_alone_are_one() -> None:
    history = History()
    for amount in (1000.0, 1.8385915442771648, 999.9999999999999, 1e-300, 0.0):
        history.observe("a", amount)
    peak = history.outlook("a").peak(0.0)
    assert peak is not None
    assert peak[0] > 0
