"""Trains the network in data-parallel processes of one thread each (gloo), with Muon and AdamW."""

import os
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, multiprocessing

from .batches import Batches, corpus
from .checkpoint import Shape, save_configs, save_weights
from .network import LanguageModel
from .tokenizer import load_tokenizer, train_tokenizer

WARM_UP_STEPS = 40
LONGEST_ROW_TOKENS = 4096
SAVE_SHARE = 0.1  # of a stage: how often an intermediate checkpoint is written
SAMPLES_FOR_TOKENIZER = 12_000


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run with optimizers of its own, which starts from the stage before it."""

    steps: int
    rows: tuple[tuple[float, int], ...]  # (from this share of the stage, tokens per row)
    rates: tuple[tuple[float, float], ...]  # (share of the stage, factor), joined by lines

    def row_tokens(self, step: int) -> int:
        """The row length at `step`."""
        return max(tokens for start, tokens in self.rows if step >= start * self.steps)

    def rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied with at `step`."""
        share = step / self.steps
        for (start, low), (end, high) in pairwise(self.rates):
            if share <= end:
                line = low + (high - low) * (share - start) / (end - start)
                return min(1.0, (step + 1) / WARM_UP_STEPS) * line
        return self.rates[-1][1]

    def scaled(self, factor: float) -> "Stage":
        """The same stage with more or fewer steps."""
        return replace(self, steps=max(1, round(self.steps * factor)))


# Short rows teach the skills at the least cost; long ones then teach tools, loops and documents.
STAGES = (
    Stage(1900, rows=((0.0, 256),), rates=((0.0, 1.0), (0.6, 1.0), (1.0, 0.55))),
    Stage(
        700,
        rows=((0.0, 512), (0.45, 1024), (0.85, LONGEST_ROW_TOKENS)),
        rates=((0.0, 0.55), (1.0, 0.005)),
    ),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One training run; equal plans give equal data and equal steps."""

    out: Path
    stages: tuple[Stage, ...] = STAGES
    first_stage: int = 0  # later ones go on from the checkpoint that lies in `out`
    processes: int = 2
    batch_tokens: int = 4096  # per process and step
    seed: int = 7
    learning_rate: float = 0.02
    report_steps: int = 50


def prepare(plan: Plan) -> Shape:
    """Train the tokenizer and write it with the configurations."""
    tokenizer = train_tokenizer(corpus(plan.seed, SAMPLES_FOR_TOKENIZER, 512))
    shape = Shape(tokenizer.get_vocab_size())
    save_configs(plan.out, shape)
    tokenizer.save(str(plan.out / "tokenizer.json"))
    return shape


def optimizers(network: LanguageModel, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the embedding and the norms."""
    named = list(network.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            matrices, lr=rate, momentum=0.95, weight_decay=0.02, adjust_lr_fn="original"
        ),
        torch.optim.AdamW(others, lr=rate * 0.2, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Worker:
    """One process of a stage."""

    def __init__(self, plan: Plan, number: int, shape: Shape, rank: int) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.stage, self.number, self.rank = plan, plan.stages[number], number, rank
        self.network = LanguageModel(shape)
        if number > 0:
            self.network.load_state_dict(load_file(plan.out / "model.safetensors"))
        self.parameters = list(self.network.parameters())
        self.optimizers = optimizers(self.network, plan.learning_rate)
        self.base_rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        tokenizer = load_tokenizer(plan.out)
        seed = plan.seed * 1000 + number * 100 + rank + 1
        self.batches = Batches(tokenizer, seed, plan.batch_tokens, LONGEST_ROW_TOKENS)
        self.losses: list[float] = []
        self.started_s = time.monotonic()
        self.save_steps = max(1, round(self.stage.steps * SAVE_SHARE))

    def run(self) -> None:
        """All steps, with reports and intermediate checkpoints from the first process."""
        for step in range(self.stage.steps):
            self._set_rates(self.stage.rate_factor(step))
            self.losses.append(self._step(self.stage.row_tokens(step)))
            if self.rank == 0:
                self._report(step + 1)

    def _set_rates(self, factor: float) -> None:
        groups = (group for o in self.optimizers for group in o.param_groups)
        for group, rate in zip(groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def _step(self, row_tokens: int) -> float:
        batch = self.batches.draw(row_tokens)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.network(batch.ids, batch.positions, batch.targets, batch.weights)
        loss.backward()
        mean_loss = self._average_gradients(loss.detach())
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return mean_loss

    def _average_gradients(self, loss: Tensor) -> float:
        """One all-reduce over the gradients of all parameters and the loss."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([*(g.view(-1) for g in gradients), loss.view(1)])
        dist.all_reduce(flat)
        flat /= self.plan.processes
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return float(flat[-1])

    def _report(self, step: int) -> None:
        recent = self.losses[-self.plan.report_steps :]
        if step % self.plan.report_steps == 0 or step == self.stage.steps:
            tokens = step * self.plan.batch_tokens * self.plan.processes
            wall_s, cpu_s = time.monotonic() - self.started_s, time.process_time()
            print(
                f"stage {self.number + 1}  step {step}/{self.stage.steps}  "
                f"{tokens / 1e6:.2f}M tokens  loss {sum(recent) / len(recent):.4f}  "
                f"{wall_s:.0f} s wall, {cpu_s:.0f} s CPU",
                flush=True,
            )
        if step % self.save_steps == 0 or step == self.stage.steps:
            save_weights(self.plan.out, self.network.state_dict())


def _process(rank: int, plan: Plan, number: int, shape: Shape, meeting_file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=plan.processes
    )
    Worker(plan, number, shape, rank).run()
    dist.destroy_process_group()


def run_stage(plan: Plan, number: int, shape: Shape) -> None:
    """Run one stage in all its processes; every stage but the first starts from `plan.out`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (plan, number, shape, str(Path(folder) / "meeting"))
        multiprocessing.spawn(_process, args=arguments, nprocs=plan.processes)


def train(plan: Plan) -> int:
    """Train a model into `plan.out` and return the size of its weights in bytes."""
    # Threads that wait actively starve each other on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    started = plan.first_stage > 0
    shape = Shape(load_tokenizer(plan.out).get_vocab_size()) if started else prepare(plan)
    for number in range(plan.first_stage, len(plan.stages)):
        run_stage(plan, number, shape)
    return (plan.out / "model.safetensors").stat().st_size
