"""Placement: every row of every stage once, never worse than one worker after the other."""

import random
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.planner.graph import LLM, Graph, Ref, Sampling, ToolCall
from tenter.planner.hardware import HARDWARE, MODELS
from tenter.planner.lower import lower
from tenter.planner.placement import (
    Placement,
    Stage,
    Turns,
    Worker,
    fleet_bound,
    load_bound,
    place,
)
from tenter.planner.prompt import Prompt
from tenter.planner.rules.place import place_plan

LOADS = {"small": 5.0, "large": 20.0}
DIAMOND = (
    Stage("a", "small", (), 2.0, 0.1),
    Stage("tool", None, ("a",), 3.0),
    Stage("b", "large", ("tool",), 4.0, 0.1),
    Stage("c", "small", ("a",), 2.0, 0.1),
    Stage("d", "small", ("b", "c"), 2.0, 0.1),
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short search: these tests are about what any placement must be."""
    from tenter.planner.placement import search

    monkeypatch.setattr(search, "BUILD_STEPS", 4_000)
    monkeypatch.setattr(search, "MOVE_STEPS", 20_000)
    monkeypatch.setattr(search, "MOST_MOVES", 3_000)


def workers(count: int) -> list[Worker]:
    return [Worker(f"w{index}") for index in range(count)]


def check(found: Placement, stages: tuple[Stage, ...]) -> None:
    """Every row of every stage that needs a worker is answered once, and visits do not overlap."""
    for stage in stages:
        rows = [
            row
            for visits in found.visits.values()
            for visit in visits
            if visit.stage == stage.id
            for low, high in visit.rows
            for row in range(low, high)
        ]
        assert sorted(rows) == (list(range(found.rows)) if stage.model else [])
    for visits in found.visits.values():
        for before, after in pairwise(visits):
            assert before.start_s <= before.end_s <= after.start_s


@given(st.integers(1, 5), st.integers(1, 60), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_every_row_is_answered_once(count, rows, seed):
    draw = random.Random(seed)
    stages = tuple(
        Stage(
            f"s{index}",
            draw.choice(["small", "large"]),
            tuple(f"s{above}" for above in range(index) if draw.random() < 0.4),
            draw.random(),
            draw.random(),
        )
        for index in range(draw.randint(1, 5))
    )

    found = place(stages, workers(count), rows, LOADS)

    check(found, stages)
    assert found.makespan_s >= load_bound(stages, count, rows)


def test_more_workers_take_less_time_and_beat_one_step_at_a_time():
    one = place(DIAMOND, workers(1), 400, LOADS)
    three = place(DIAMOND, workers(3), 400, LOADS)

    # One step after the other, on all three: a, c, tool, b, d with two switches of models.
    stepwise_s = 3 * (2 + 0.1 * 400 / 3) + 3 + 4 + 0.1 * 400 / 3 + 2.5 + 20 + 5
    check(three, DIAMOND)
    assert three.makespan_s < stepwise_s
    assert three.makespan_s < one.makespan_s / 1.8


def test_for_one_worker_it_is_the_best_order():
    stages = (
        Stage("a", "small", (), 10.0),
        Stage("b", "large", ("a",), 10.0),
        Stage("c", "small", ("a",), 10.0),
        Stage("d", "large", ("b",), 10.0),
    )

    found = place(stages, workers(1), 1, LOADS)

    assert [visit.stage for visit in found.visits["w0"]] == ["a", "c", "b", "d"]
    assert found.makespan_s == pytest.approx(2.5 + 10 + 9 + 20 + 10 + 9)


def test_small_cases_are_solved_to_the_optimum():
    warm = {"x": 0.5, "y": 0.5}
    stages = (
        Stage("x", "small", (), 4.0, warm=warm),
        Stage("y", "small", (), 4.0, warm=warm),
        Stage("z", "small", (), 3.0, warm={}),
        Stage("t", "small", ("z",), 3.0, warm={}),
    )

    found = place(stages, workers(2), 1, {})

    best = min(
        max(chain(order[:cut]), chain(order[cut:]))
        for order in permutations(stages)
        for cut in range(5)
        if [s.id for s in order].index("z") < [s.id for s in order].index("t")
    )
    assert found.makespan_s == pytest.approx(best)


def chain(stages: tuple[Stage, ...]) -> float:
    """Seconds of stages one behind the other on one worker."""
    total, last = 0.0, ""
    for stage in stages:
        total += (stage.warm or {}).get(last, 1.0) * stage.fixed_s
        last = stage.id
    return total


def test_workers_only_do_what_they_may():
    fleet = [Worker("s", frozenset({"small"}), "small"), Worker("l", frozenset({"large"}), "large")]

    found = place(DIAMOND, fleet, 100, LOADS)

    check(found, DIAMOND)
    assert {visit.stage for visit in found.visits["l"]} == {"b"}
    assert found.visits["s"][0].start_s == 0.0


def test_a_machine_for_tools_is_a_worker():
    stages = (Stage("sql", "cpu", (), 0.0, 1.0), Stage("a", "small", ("sql",), 1.0, 0.5))
    fleet = [Worker("gpu", frozenset({"small"})), Worker("db", frozenset({"cpu"}), "cpu")]

    found = place(stages, fleet, 30, LOADS)

    # The model answers while the database goes on: not 30 + 16 seconds.
    assert 31 < found.makespan_s < 36


def test_where_tells_the_worker_and_its_turn():
    found = place(DIAMOND, workers(2), 50, LOADS)

    for row in (0, 17, 49):
        worker, turn = found.where("b", row)
        visit = found.visits[worker][turn]
        assert visit.stage == "b"
        assert any(low <= row < high for low, high in visit.rows)
    with pytest.raises(KeyError, match="tool"):
        found.where("tool", 0)
    with pytest.raises(KeyError, match="row 50 is not one of 50"):
        found.where("b", 50)


def test_the_same_seed_gives_the_same_placement():
    assert place(DIAMOND, workers(3), 90, LOADS) == place(DIAMOND, workers(3), 90, LOADS)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no worker serves 'large', which step 'b' needs"):
        place(DIAMOND, [Worker("w", frozenset({"small"}))], 5, LOADS)
    with pytest.raises(ValueError, match="wait for each other: x, y"):
        place([Stage("x", "m", ("y",)), Stage("y", "m", ("x",))], workers(1), 5, {})
    with pytest.raises(ValueError, match="0 workers"):
        place(DIAMOND, [], 5, LOADS)


def test_a_plan_is_placed_by_its_estimates():
    first = LLM(
        id="first",
        prompt=Prompt("Say something of {{ text }}"),
        args=(("text", Ref("text")),),
        model="a",
        sampling=Sampling(max_tokens=100),
    )
    look = ToolCall(id="look", tool="search", args=(("about", Ref("first")),))
    second = LLM(
        id="second",
        prompt=Prompt("And now of {{ look }}"),
        args=(("look", Ref("look")),),
        model="b",
        sampling=Sampling(max_tokens=10),
    )
    plan = lower(Graph("g", ("text",), (first, look, second), Ref("second")))
    h100 = HARDWARE["h100"]
    models = {"a": (h100, MODELS["qwen3-8b"]), "b": (h100, MODELS["qwen3-32b"])}

    found = place_plan(plan, 1000, workers(2), models, {"search": 2.0})

    check(found, (Stage("first", "a"), Stage("look", None), Stage("second", "b")))
    assert found.where("first", 0)[0] != found.where("second", 999)[0]
    with pytest.raises(ValueError, match="step 'second' needs model 'b'; known are a"):
        place_plan(plan, 1000, workers(2), {"a": models["a"]})


def pools() -> list[Worker]:
    """One worker for small models, two for large ones; a long wait for the first inputs of these."""
    models = ("small", "large", "large")
    return [Worker(f"{m}/{i}", frozenset({m}), m) for i, m in enumerate(models)]


def test_workers_that_wait_long_for_others_are_placed_too() -> None:
    chain = (
        Stage("a", "small", (), 500.0, 5.0),
        Stage("b", "large", ("a",), 1.0, 0.1),
        Stage("c", "small", ("b",), 1.0, 0.1),
    )
    found = place(chain, pools(), 100, {})
    check(found, chain)
    assert found.makespan_s >= fleet_bound(chain, pools(), 100) == pytest.approx(510.0)


def test_turns_are_the_same_in_windows_of_any_size() -> None:
    found = place(DIAMOND, pools(), 200, LOADS)
    turns = Turns(found)
    for stage in ("a", "b", "c", "d"):
        for row in range(200):
            turn = turns.of(stage, row / 200 + 1e-9)
            assert turn is not None and turn.worker == found.where(stage, row)[0]
            assert 0 <= turn.at <= 1
    assert turns.of("tool", 0.5) is None
    early, late = turns.of("a", 0.0), turns.of("d", 0.999)
    assert early is not None and late is not None and early.at < late.at
