"""Trains the network in data-parallel processes of one thread each (gloo), with Muon and AdamW."""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from .batches import Batches, corpus
from .checkpoint import Shape, save_configs, save_weights
from .network import LanguageModel
from .tokenizer import load_tokenizer, train_tokenizer

WARM_UP_STEPS = 40
DECAY_SHARE = 0.6  # the learning rate falls linearly over this last part
LONGEST_ROW_TOKENS = 4096
FIRST_SAVE_SHARE, SAVE_SHARE = 0.3, 0.1  # intermediate checkpoints: from when on, and how often
SAMPLES_FOR_TOKENIZER = 12_000


@dataclass(frozen=True, slots=True)
class Plan:
    """One training run; equal plans give equal data and equal steps."""

    out: Path
    steps: int
    processes: int = 2
    batch_tokens: int = 4096  # per process and step
    seed: int = 7
    learning_rate: float = 0.02
    phases: tuple[tuple[float, int], ...] = (
        (0.0, 256),
        (0.5, 512),
        (0.78, 1024),
        (0.92, LONGEST_ROW_TOKENS),
    )
    report_steps: int = 50

    def row_tokens(self, step: int) -> int:
        """The row length at `step`: short rows first, long contexts last."""
        share = step / self.steps
        return max(tokens for start, tokens in self.phases if share >= start)

    def rate_factor(self, step: int) -> float:
        """The learning rate's schedule: warm-up, level, linear decay."""
        left = 1 - step / self.steps
        return min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, left / DECAY_SHARE + 0.005)


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
    """One process of the run."""

    def __init__(self, plan: Plan, shape: Shape, rank: int) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.rank = plan, rank
        self.network = LanguageModel(shape)
        self.parameters = list(self.network.parameters())
        self.optimizers = optimizers(self.network, plan.learning_rate)
        self.base_rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        tokenizer = load_tokenizer(plan.out)
        seed = plan.seed * 1000 + rank + 1
        self.batches = Batches(tokenizer, seed, plan.batch_tokens, LONGEST_ROW_TOKENS)
        self.losses: list[float] = []
        self.started_s = time.monotonic()
        self.saved_share = FIRST_SAVE_SHARE - SAVE_SHARE

    def run(self) -> None:
        """All steps, with reports and intermediate checkpoints from the first process."""
        for step in range(self.plan.steps):
            self._set_rates(self.plan.rate_factor(step))
            self.losses.append(self._step(self.plan.row_tokens(step)))
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
        if step % self.plan.report_steps == 0 or step == self.plan.steps:
            tokens = step * self.plan.batch_tokens * self.plan.processes
            wall_s, cpu_s = time.monotonic() - self.started_s, time.process_time()
            print(
                f"step {step}/{self.plan.steps}  {tokens / 1e6:.2f}M tokens  "
                f"loss {sum(recent) / len(recent):.4f}  {wall_s:.0f} s wall, {cpu_s:.0f} s CPU",
                flush=True,
            )
        if step / self.plan.steps >= self.saved_share + SAVE_SHARE:
            self.saved_share = step / self.plan.steps
            save_weights(self.plan.out, self.network.state_dict())


def _process(rank: int, plan: Plan, shape: Shape, meeting_file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=plan.processes
    )
    worker = Worker(plan, shape, rank)
    worker.run()
    if rank == 0:
        save_weights(plan.out, worker.network.state_dict())
    dist.destroy_process_group()


def train(plan: Plan) -> int:
    """Train a model into `plan.out` and return the size of its weights in bytes."""
    # Threads that wait actively starve each other on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    shape = prepare(plan)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (plan, shape, str(Path(folder) / "meeting"))
        multiprocessing.spawn(_process, args=arguments, nprocs=plan.processes)
    sys.stdout.flush()
    return (plan.out / "model.safetensors").stat().st_size
