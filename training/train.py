"""Train the tiny model: `python training/train.py --out runtime/models/tiny`.

Two single-thread processes, about twenty minutes of CPU time each; `--quick` is a smoke test.
"""

import argparse
from pathlib import Path

from tinymodel.trainer import STAGES, Plan, train

STEPS = sum(stage.steps for stage in STAGES)
QUICK_STEPS = 20


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="optimizer steps, all stages together"
    )
    parser.add_argument(
        "--from-stage", type=int, default=1, help="go on from --out at this stage; the first is 1"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_STEPS} steps")
    return parser.parse_args()


def main() -> None:
    """Train, then say what was made and how to measure it."""
    chosen = arguments()
    steps = QUICK_STEPS if chosen.quick else chosen.steps
    report_steps = 5 if chosen.quick else 50
    stages = tuple(stage.scaled(steps / STEPS) for stage in STAGES)
    plan = Plan(
        chosen.out,
        stages,
        first_stage=chosen.from_stage - 1,
        processes=chosen.processes,
        seed=chosen.seed,
        report_steps=report_steps,
    )
    size_bytes = train(plan)
    print(f"{chosen.out}: {size_bytes:,} bytes of weights")
    print(f"next: python training/evaluate.py --model {chosen.out}")


if __name__ == "__main__":
    main()
