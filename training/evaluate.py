"""Measure a checkpoint on held-out questions: `python training/evaluate.py --model FOLDER`.

Prints the tables of docs/tiny-model.md as Markdown; `--json FILE` also writes the figures.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinymodel.mix import CLOSED_JOBS, JOBS
from tinymodel.scoring import (
    Decoding,
    Model,
    accuracy,
    budget_accuracy,
    held_out_samples,
    lengthened,
    vote,
)

REASONING_JOBS = ("reason", "arithmetic", "multiply", "word", "verify")
VOTE_SIZES = (1, 3, 5, 9)
BUDGETS_TOKENS = (0, 16, 32, 48, 64, 96, 128, 192, 256)
CONTEXT_JOBS = tuple(job for job in JOBS if job not in CLOSED_JOBS | {"agent_session"})
CONTEXTS_TOKENS = (256, 1024, 2048, 3800)  # at the last one the answer ends within 4,096
SECTIONS = ("jobs", "votes", "budgets", "contexts")


def measure_jobs(model: Model, questions: int) -> dict[str, float]:
    """Greedy accuracy per job."""
    figures = {}
    for job in JOBS:
        figures[job] = accuracy(model, held_out_samples(job, questions), Decoding())
        print(f"| {job} | {questions} | {figures[job]:.3f} |", flush=True)
    return figures


def measure_votes(model: Model, questions: int, temperature: float) -> dict[str, Any]:
    """Accuracy of one sample and of majorities, per reasoning job."""
    figures = {}
    for job in REASONING_JOBS:
        how = Decoding(temperature=temperature)
        counted = vote(model, held_out_samples(job, questions), how, VOTE_SIZES)
        figures[job] = {"single": counted.single, **counted.majority}
        majorities = " | ".join(f"{counted.majority[n]:.3f}" for n in VOTE_SIZES[1:])
        print(f"| {job} | {questions} | {counted.single:.3f} | {majorities} |", flush=True)
    return figures


def measure_budgets(model: Model, questions: int, temperature: float) -> dict[str, Any]:
    """Accuracy by thinking budget, per reasoning job."""
    figures = {}
    for job in REASONING_JOBS:
        samples = held_out_samples(job, questions)
        how = Decoding(temperature=temperature)
        figures[job] = budget_accuracy(model, samples, how, BUDGETS_TOKENS)
        row = " | ".join(f"{figures[job][budget]:.3f}" for budget in BUDGETS_TOKENS)
        print(f"| {job} | {questions} | {row} |", flush=True)
    return figures


def measure_contexts(model: Model, questions: int) -> dict[str, Any]:
    """Greedy accuracy per job and length of the prompt."""
    figures = {}
    for job in CONTEXT_JOBS:
        count = max(1, questions // 2) if job.startswith("agent") else questions
        samples, figures[job] = held_out_samples(job, count, seed=13), {}
        for tokens in CONTEXTS_TOKENS:
            longer = lengthened(model, samples, tokens)
            figures[job][tokens] = accuracy(model, longer, Decoding())
        row = " | ".join(f"{share:.2f}" for share in figures[job].values())
        print(f"| {job} | {count} | {row} |", flush=True)
    return figures


def head(*columns: object) -> None:
    """Print the head of a Markdown table."""
    print("\n| " + " | ".join(map(str, columns)) + " |\n|" + "---|" * len(columns), flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--questions", type=int, default=200, help="per job; contexts use a quarter"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="for votes and budgets")
    parser.add_argument("--only", choices=SECTIONS, nargs="*", default=SECTIONS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def measure(model: Model, chosen: argparse.Namespace) -> Mapping[str, Any]:
    """All sections that were asked for."""
    n, warmth = chosen.questions, chosen.temperature
    figures: dict[str, Any] = {}
    if "jobs" in chosen.only:
        head("job", "n", "greedy")
        figures["jobs"] = measure_jobs(model, n)
    if "votes" in chosen.only:
        head("job", "n", f"one sample, T={warmth}", *(f"majority of {v}" for v in VOTE_SIZES[1:]))
        figures["votes"] = measure_votes(model, max(1, n // 2), warmth)
    if "budgets" in chosen.only:
        head("job", "n", *(f"{budget} tokens" for budget in BUDGETS_TOKENS))
        figures["budgets"] = measure_budgets(model, n, warmth)
    if "contexts" in chosen.only:
        head("job", "n", *(f"{tokens} tokens" for tokens in CONTEXTS_TOKENS))
        figures["contexts"] = measure_contexts(model, max(1, n // 4))
    return figures


def main() -> None:
    """Measure and print."""
    chosen = arguments()
    started_s = time.monotonic()
    figures = measure(Model(chosen.model), chosen)
    print(f"\n{time.monotonic() - started_s:.0f} s wall", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
