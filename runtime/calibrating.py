"""Calibrating a reasoning step: its thoughts to their end over a table, probed all along, and the
boldest stop rule that they vouch for (`reasoning.calibrate`)."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..planner.graph import LLM, Each, Graph, Reasoning, Repeat, Step
from .errors import InvalidInput
from .jobs import Job, MapSpec
from .reasoning.answers import Equivalence
from .reasoning.calibrate import LEVEL, Calibration, calibrate, costs
from .reasoning.families import families_for
from .reasoning.named import build
from .reasoning.nouns import Outcome
from .reasoning.recorded import Recorded, recorded
from .reasoning.rules import NEVER, StopRule
from .reasoning.strategy import Step as Strategy
from .reasoning.thought import ChainOfThought
from .run.local import open_backends, open_host
from .run.program import Programs

IN_FLIGHT = 64
PROBES = 48  # of each thought, about
MOST_PROBES = 4_096

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What calibration found. `settings` is what the step's settings become."""

    step: str
    found: Calibration
    settings: Mapping[str, Any]
    rows: int
    failed: int


async def calibrate_step(
    spec: MapSpec,
    step: str | None = None,
    label: str | None = None,
    budget: float | None = None,
    level: float = LEVEL,
    seed: int = 0,
    progress: Progress = lambda rows: None,
) -> Calibrated:
    """Choose the stop rule of a reasoning step over a table's rows.

    `label` is the column with the right answers; without one, agreement with the thought's own end
    takes their place. `budget` is the share of answers that may be lost; None: none that can be
    measured. Raises InvalidInput where the workflow has no such step.
    """
    if budget is not None and not 0 < budget < 1:
        raise InvalidInput(f"--budget {budget}: it is a share of the answers, between 0 and 1")
    job = Job(spec)
    graph = job.workflow.graph
    chosen = _step(graph, step)
    if label is not None and label not in job.table.columns:
        names = ", ".join(job.table.columns)
        raise InvalidInput(f"--label {label}: the table has no such column; it has {names}")
    assert graph is not None and chosen.reasoning is not None
    settings: dict[str, Any] = json.loads(chosen.reasoning.settings)
    limit_tokens = chosen.sampling.max_tokens
    every = max(8, limit_tokens // PROBES)
    dense = StopRule("record", every, every, 1.0, MOST_PROBES, cap=1.0, lazy=False)
    probed = {
        **settings,
        "rule": json.loads(dense.to_json()),
        "shadow": 1.0,
        "drift": 1.0,  # nothing that is recorded is a drift
        "budget_tokens": limit_tokens * 4 + PROBES * 256,
    }
    thinking = Reasoning("thought", json.dumps(probed))
    measured = replace(chosen, reasoning=thinking)
    workflow = replace(job.workflow, graph=_with(graph, measured))
    recording = _Recording()
    labels: dict[int, str] = {}
    failed = unlabelled = 0
    same = build("thought", settings, limit_tokens, 0, 0).equivalence
    async with open_backends(job.models) as backends, open_host(backends, share=False) as host:
        host.observe_thought = recording.observe
        programs = Programs(host, workflow)
        room = asyncio.Semaphore(IN_FLIGHT)
        ends = asyncio.Event()
        live = 0

        def ended(value: Any, error: Exception | None) -> None:
            nonlocal live, failed
            failed += error is not None
            live -= 1
            room.release()
            progress(len(recording.records))
            if live == 0:
                ends.set()

        for row in job.rows():
            if row.problem is not None:
                failed += 1
                continue
            if label is not None:
                told = row.cells.get(label)
                labels[row.row] = "" if told is None else str(told)
                if same(labels[row.row]) is None:
                    unlabelled += 1
                    continue
            recording.know(row.row, row.inputs)
            await room.acquire()
            live += 1
            ends.clear()
            programs.arrive(row.row, row.inputs, ended)
        if live:
            await ends.wait()
    found = _choose(recording, labels, same, limit_tokens, budget, level, seed)
    if unlabelled:
        left_out = (
            f"{unlabelled} rows are left out, whose {label!r} is no answer of the step's kind"
        )
        found = replace(found, message=f"{found.message}; {left_out}")
    failed += unlabelled
    rule = json.loads(found.rule.to_json())
    return Calibrated(chosen.id, found, {**settings, "rule": rule}, len(recording.records), failed)


@dataclass(slots=True)
class _Recording:
    """The thoughts that came to their end, and what their probes and pieces had to prefill.

    Rows with equal inputs are one problem, however often it is thought about.
    """

    problems: dict[int, int] = field(default_factory=dict[int, int])  # row -> first of its inputs
    records: list[Recorded] = field(default_factory=list[Recorded])
    probes: int = 0
    probe_tokens: int = 0
    pieces: int = 0
    piece_tokens: int = 0

    _first: dict[str, int] = field(default_factory=dict[str, int])

    def know(self, row: int, inputs: Mapping[str, Any]) -> None:
        """A row is about to be thought about."""
        said = json.dumps(inputs, sort_keys=True, default=repr)
        self.problems[row] = self._first.setdefault(said, row)

    def observe(self, row: int, strategy: Strategy, outcome: Outcome) -> None:
        """Note a thought."""
        if not isinstance(strategy, ChainOfThought) or outcome.answer is None:
            return
        trials = tuple(map(recorded, strategy.trials))
        ended = bool(outcome.finished)
        problem, tokens = self.problems[row], outcome.thought_tokens
        self.records.append(Recorded(problem, tokens, outcome.answer, ended, trials))
        self.probes += len(trials)
        self.probe_tokens += sum(trial.prefill_tokens for trial in strategy.trials)
        self.pieces += strategy.pieces
        self.piece_tokens += strategy.thought_again_tokens


def _choose(
    recording: _Recording,
    labels: Mapping[int, str],
    same: Equivalence,
    limit_tokens: int,
    budget: float | None,
    level: float,
    seed: int,
) -> Calibration:
    records = recording.records
    probe_tokens = round(recording.probe_tokens / max(1, recording.probes))
    piece_tokens = round(recording.piece_tokens / max(1, recording.pieces))

    def correct(record: Recorded, answer: str | None) -> float:
        key = None if answer is None else same(answer)
        assert isinstance(record.problem, int)
        return float(key is not None and key == same(labels[record.problem]))

    def cost_of(rule: StopRule) -> list[Any]:
        return costs(
            rule,
            records,
            correct if labels else None,
            limit_tokens=limit_tokens,
            equivalence=same,
            probe_tokens=probe_tokens,
            piece_tokens=piece_tokens,
        )

    families, left_out = families_for(records)
    found = calibrate(
        cost_of, budget=budget, level=level, families=families, labelled=bool(labels), seed=seed
    )
    if labels and not any(correct(record, record.answer) for record in records):
        wrong = "no thought ends with its row's label, so nothing can be said of what a rule loses"
        return replace(found, rule=NEVER, message=f"{wrong}; full length is kept")
    return replace(found, message="; ".join((found.message, *left_out)))


def _step(graph: Graph | None, name: str | None) -> LLM:
    """The reasoning step to calibrate; the only one if none is named."""
    if graph is None:
        raise InvalidInput(
            "an `async def` workflow has no steps ahead of a run: calibrate a static one"
        )
    thinking = {
        each.id: each
        for each in graph.steps
        if isinstance(each, LLM) and each.reasoning is not None
    }
    if not thinking:
        inside = any(isinstance(each, Each | Repeat) for each in graph.steps)
        more = " outside of loops" if inside else ""
        raise InvalidInput(f"{graph.name} has no reasoning step{more}")
    if name is None and len(thinking) > 1:
        raise InvalidInput(f"--step: say which of {', '.join(thinking)}")
    chosen = thinking.get(name) if name else next(iter(thinking.values()))
    if chosen is None:
        raise InvalidInput(
            f"--step {name}: there is no such reasoning step; there is {', '.join(thinking)}"
        )
    assert chosen.reasoning is not None
    if chosen.reasoning.strategy != "thought":
        kind = chosen.reasoning.strategy
        raise InvalidInput(
            f"step {chosen.id!r} has strategy {kind}, which has no stop rule; 'thought' has"
        )
    return chosen


def _with(graph: Graph, step: LLM) -> Graph:
    steps: tuple[Step, ...] = tuple(step if each.id == step.id else each for each in graph.steps)
    return replace(graph, steps=steps)
