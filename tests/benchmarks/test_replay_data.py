"""Recorded thoughts that others bring are replayed as they are, or refused with the line at fault."""

import csv
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certaindex_replay
import pytest
from _records import rows
from _rollouts import limit_of, read

from tenter.runtime.reasoning.recorded import Recorded, RecordedTrial, replay
from tenter.runtime.reasoning.rules import StopRule

Tables = dict[str, list[dict[str, Any]]]
METRICS = {"accuracy", "tokens", "sequential_tokens"}
PROBLEMS, LENGTH, SETTLES = 4, 4_000, 2_000


def recorded() -> Tables:
    """Thoughts of one model that settle half way, and four rollouts of each problem."""
    tables: Tables = {name: [] for name in ("trajectories", "probes", "grades")}
    tables |= {"rollouts8": [], "rollouts8_probes": []}
    for problem in range(PROBLEMS):
        about = {"dataset": "sums", "problem_id": problem}
        tables["grades"].append({**about, "probe_answer": "4", "correct": 1})
        one = {"model": "m", **about, "seed": 1}
        end = {"final_answer": "4", "final_correct": 1, "tokens_used": LENGTH}
        tables["trajectories"].append({**one, **end, "finish_reason": "stop"})
        for at in range(64, LENGTH, 64):
            trial = {"token_position": at, "probe_answer": "4" if at > SETTLES else "7"}
            tables["probes"].append({**one, **trial, "probe_out_tokens": 3})
            for rollout in range(4):
                tables["rollouts8_probes"].append({**about, "rollout_id": rollout, **trial})
        for rollout in range(4):
            whole = {**about, "rollout_id": rollout, **end, "finished_naturally": True}
            tables["rollouts8"].append(whole)
    return tables


def written(folder: Path, tables: Tables) -> Path:
    for name, lines in tables.items():
        with gzip.open(folder / f"{name}.csv.gz", "wt", newline="") as file:
            table = csv.DictWriter(file, list(lines[0]) if lines else ["dataset"])
            table.writeheader()
            table.writerows(lines)
    return folder


Replay = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(name="replayed")
def replayed_fixture(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Replay:
    def run(folder: Path) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["replay", "--quick", "--data", str(folder)])
        certaindex_replay.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_every_method_has_its_figures_with_intervals(tmp_path: Path, replayed: Replay) -> None:
    figures = replayed(written(tmp_path, recorded()))
    methods: dict[tuple[str, str], set[str]] = {}
    for figure in figures:
        setup = figure["setup"]
        low, high = setup["interval"]
        assert low <= figure["value"] <= high
        methods.setdefault((setup["data"], setup["method"]), set()).add(figure["metric"])
    for (data, method), metrics in methods.items():
        over = "tokens_over_vote8" if data == "sums x8" else "tokens_over_forced"
        assert metrics >= METRICS | {over}, method
    assert {("sums", "ours"), ("sums", "ours-calibrated"), ("sums x8", "ours")} <= set(methods)


def test_lines_that_are_there_twice_in_any_order_change_nothing(
    tmp_path: Path, replayed: Replay
) -> None:
    tables = recorded()
    once = replayed(written(tmp_path, tables))
    twice = replayed(written(tmp_path, {name: lines[::-1] * 2 for name, lines in tables.items()}))
    assert {json.dumps(one) for one in twice} == {json.dumps(one) for one in once}


def test_a_thought_without_trials_is_judged_at_its_own_end(
    tmp_path: Path, replayed: Replay
) -> None:
    tables = recorded()
    tables["probes"] = [line for line in tables["probes"] if line["problem_id"]]
    figures = replayed(written(tmp_path, tables))
    counts = {one["setup"]["thoughts"] for one in figures if "thoughts" in one["setup"]}
    assert counts == {PROBLEMS}


def test_one_problem_is_enough_to_replay_and_vouches_for_nothing(
    tmp_path: Path, replayed: Replay
) -> None:
    tables = {
        name: [line for line in lines if line["problem_id"] == 0]
        for name, lines in recorded().items()
    }
    figures = replayed(written(tmp_path, tables))
    (tokens,) = (
        one["value"]
        for one in figures
        if (one["metric"], one["setup"]["method"]) == ("tokens", "ours-calibrated")
    )
    assert tokens == LENGTH


def _many(tables: Tables) -> None:
    tables["trajectories"][2]["tokens_used"] = "many"


def _no_answer(tables: Tables) -> None:
    for line in tables["trajectories"]:
        del line["final_answer"]


def _no_thoughts(tables: Tables) -> None:
    tables["trajectories"].clear()


def _no_probes(tables: Tables) -> None:
    del tables["probes"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_many, r"trajectories.csv.gz, line 4: tokens_used is 'many'; it must be a whole number"),
        (_no_answer, "line 2: there is no 'final_answer'"),
        (_no_thoughts, "there are no thoughts in"),
        (_no_probes, "there is no probes.csv.gz in"),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(
    tmp_path: Path, replayed: Replay, spoil: Callable[[Tables], None], said: str
) -> None:
    tables = recorded()
    spoil(tables)
    with pytest.raises(SystemExit, match=said):
        replayed(written(tmp_path, tables))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, recorded()) / "probes.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SystemExit, match=r"probes.csv.gz cannot be read"):
        list(rows(tmp_path, "probes"))


def test_a_rule_learns_nothing_from_trials_that_come_later() -> None:
    late = Recorded("p", 900, "4", True, (RecordedTrial(800, "4", 3),))
    bold = StopRule("bold", 64, 64, 1.0, 1, cap=1.0)
    assert replay(bold, late, limit_tokens=1_000).tokens > 800
    untold = Recorded("p", 900, "4", True, ())
    assert replay(bold, untold, limit_tokens=1_000).stopped == "ended"


def test_where_no_rollout_was_cut_no_cap_is_to_be_felt(tmp_path: Path) -> None:
    (first, *_) = read(written(tmp_path, recorded()))
    assert limit_of(first.rollouts) * 0.75 > LENGTH
    cut = Recorded("p", 9_000, "4", False, ())
    assert limit_of([*first.rollouts, cut]) == 9_000
