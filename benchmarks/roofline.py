"""How far the roofline of planner/hardware.py is from measured times.

Kernels: the four matrix products of a layer, as Vidur measured them on an A100 (Llama-3-8B) and an
H100 (Llama-2-7B). End to end: five runs of vLLM from inference-sim's golden values; each is
simulated with the engine's own batching and cache over the roofline, with requests drawn from the
run's length distributions. No constant is fitted to these files. `preset`: the constants of
`planner.hardware`; `card`: those of inference-sim's hardware configuration, where the MFU of decoding
is read as a share of the bandwidth.
Run 4 is labelled as one GPU, on which its model's weights alone take longer to read than its steps
took; errors are given with and without it.

    python benchmarks/roofline.py [--quick] [--data DIR]

An error is (predicted - measured) / measured. `--quick` simulates fewer requests. DIR (default
../shared/data) has engine/*_mlp.csv.gz and engine/blis_golden.json.
"""

import argparse
import csv
import gzip
import heapq
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures

from tenter.planner.graph import Sampling
from tenter.planner.hardware import (
    MODELS,
    Hardware,
    ModelShape,
    preset,
    step_seconds,
    tensor_parallel,
)
from tenter.runtime.calls import CallId, Request
from tenter.runtime.engine.batch import Batch
from tenter.runtime.engine.cache import PageCache
from tenter.runtime.engine.state import Sequence

KERNELS = {  # file, and the layer: hidden, width of keys and values, width of the MLP
    "a100": ("a100_meta-llama_Meta-Llama-3-8B_mlp.csv.gz", 4096, 1024, 14336),
    "h100": ("h100_meta-llama_Llama-2-7b-hf_mlp.csv.gz", 4096, 4096, 11008),
}
PRODUCTS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
CARDS = {"a100": (0.38, 0.18), "h100": (0.45, 0.30)}  # MFU of prefill, of decoding
FEW, MANY = 128, 1024  # tokens: up to FEW a product reads, from MANY on it computes
SHAPES = {
    "meta-llama/llama-3.1-8b-instruct": "llama-3.1-8b",
    "qwen/qwen2.5-7b-instruct": "qwen2.5-7b",
    "ibm-granite/granite-3.1-8b-instruct": "granite-3.1-8b",
    "codellama/codellama-34b-instruct-hf": "codellama-34b",
}
MEASURED = ("ttft_mean_ms", "itl_mean_ms", "e2e_mean_ms", "e2e_p90_ms", "tokens_per_sec")


# ---- kernels -----------------------------------------------------------------------------------


def measured_kernels(path: Path) -> dict[tuple[int, int], float]:
    """Seconds of a layer's matrix products by (GPUs, tokens): the median of its rows."""
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            seconds = sum(float(row[f"time_stats.{name}.median"]) for name in PRODUCTS) / 1e3
            found[int(row["num_tensor_parallel_workers"]), int(row["num_tokens"])].append(seconds)
    return {key: statistics.median(times) for key, times in found.items()}


def card(gpu: str) -> Hardware:
    prefill, decode = CARDS[gpu]
    return replace(preset(gpu), prefill_share=prefill, decode_share=decode)


def report_kernels(figures: Figures, folder: Path, gpu: str) -> None:
    name, hidden, kv, mlp = KERNELS[gpu]
    parameters = hidden * (hidden + 2 * kv) + hidden * hidden + 3 * hidden * mlp
    measured = measured_kernels(folder / name)
    layer = ModelShape("layer", parameters, 2 * parameters, 1, hidden, 1, 1)
    for label, hardware in (("card", card(gpu)), ("preset", preset(gpu))):
        # The layer alone: no all-reduce, and nothing around the kernels.
        bare = replace(hardware, overhead_s=0.0, link_latency_s=0.0, link_bytes_per_s=float("inf"))
        errors: dict[tuple[str, str], list[float]] = defaultdict(list)
        for (gpus, tokens), seconds in measured.items():
            error = step_seconds(tensor_parallel(bare, gpus), layer, tokens, 0) / seconds - 1
            size = "few" if tokens <= FEW else "many" if tokens >= MANY else "between"
            for split in ("1", "1 to 8") if gpus == 1 else ("1 to 8",):
                errors[split, size].append(error)
                errors[split, "any"].append(error)
        for (split, size), found in sorted(errors.items()):
            setup = {"gpu": gpu, "gpus": split, "tokens": size, "constants": label}
            add_errors(figures, "kernel", found, **setup)


def add_errors(figures: Figures, what: str, errors: Iterable[float], **setup: Any) -> None:
    """Median and p90 of the absolute errors; in the setup the median with its sign."""
    signed = list(errors)
    sizes = sorted(map(abs, signed))
    setup["signed"] = f"{statistics.median(signed):+.2f}"
    p90 = sizes[min(int(0.9 * len(sizes)), len(sizes) - 1)]
    figures.add(f"{what}_error_median", statistics.median(sizes), unit="share", **setup)
    figures.add(f"{what}_error_p90", p90, unit="share", **setup)


# ---- end to end --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answered:
    """When a simulated request came, got its first token, and ended."""

    came_s: float
    first_s: float
    end_s: float
    outputs: int


def requests(case: dict[str, Any], count: int, seed: int) -> Iterator[tuple[float, Sequence]]:
    """Lengths normal and clipped as the run's settings say, with the run's means; one shared prefix.

    Arrivals are evenly spaced: each run took requests / rate and one answer's time, and the 99th
    percentile of its time to the first token is within a step or two of the mean.
    """
    random, metrics = Random(seed), case["metrics"]
    all_tokens = metrics["total_input_tokens"] - case["prefix_tokens"] * case["num-requests"]
    prompts = lengths(case, "prompt_tokens", count, all_tokens, random)
    outputs = lengths(case, "output_tokens", count, metrics["total_output_tokens"], random)
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        first, at_s = (index + 1) << 20, index / case["rate"]
        tokens = (*range(case["prefix_tokens"]), *range(first, first + prompt))
        request = Request(CallId(str(index)), tokens, Sampling(max_tokens=output))
        yield at_s, Sequence(request, index, at_s, output)


def lengths(
    case: dict[str, Any], what: str, count: int, all_tokens: int, random: Random
) -> list[int]:
    """`count` draws, scaled so that as many as the run had would have `all_tokens` in all."""
    low, high = case[f"{what}_min"], case[f"{what}_max"]
    mean, deviation = case[what], case[f"{what}_stdev"]
    drawn = [min(max(random.gauss(mean, deviation), low), high) for _ in range(count)]
    factor = all_tokens / case["num-requests"] / statistics.fmean(drawn)
    return [max(round(factor * length), 1) for length in drawn]


def simulate(
    hardware: Hardware, model: ModelShape, case: dict[str, Any], count: int, seed: int
) -> list[Answered]:
    """Run the case's requests through the engine's batching; a step takes its roofline time."""
    cache = PageCache(case["total-kv-blocks"] + 1, case["block-size-in-tokens"])
    batch = Batch(cache, case["max-num-seqs"], case["max-num-batched-tokens"])
    coming = list(requests(case, count, seed))
    heapq.heapify(coming)
    done: list[Answered] = []
    now_s = 0.0
    while len(done) < count:
        if not batch.running and not batch.waiting:
            now_s = max(now_s, coming[0][0])
        while coming and coming[0][0] <= now_s:
            batch.add(heapq.heappop(coming)[1])
        work = batch.plan()
        tokens = sum(length for _, length in work)
        context = sum(sequence.done for sequence, _ in work)
        pairs = sum(length * (sequence.done + length / 2) for sequence, length in work)
        now_s += step_seconds(hardware, model, tokens, context, pairs)
        batch.advance(work)
        done += filter(None, (draw(batch, sequence, now_s) for sequence, _ in work))
    return done


def draw(batch: Batch, sequence: Sequence, now_s: float) -> Answered | None:
    """The next token of a sequence whose tokens are all computed; its times at its end."""
    if sequence.done < len(sequence.tokens):
        return None
    if sequence.first_s is None:
        sequence.first_s = now_s
    sequence.tokens.append(1)
    if sequence.outputs < sequence.max_output:
        return None
    batch.remove(sequence)
    return Answered(sequence.arrived_s, sequence.first_s, now_s, sequence.outputs)


def summary(answered: list[Answered]) -> dict[str, float]:
    """The quantities of the golden file. Between tokens: the mean over all gaps."""
    gaps = sum(one.outputs - 1 for one in answered)
    ends = sorted(one.end_s - one.came_s for one in answered)
    last_s = max(one.end_s for one in answered)
    return {
        "ttft_mean_ms": 1e3 * statistics.fmean(one.first_s - one.came_s for one in answered),
        "itl_mean_ms": 1e3 * sum(one.end_s - one.first_s for one in answered) / max(gaps, 1),
        "e2e_mean_ms": 1e3 * statistics.fmean(ends),
        "e2e_p90_ms": 1e3 * ends[int(0.9 * (len(ends) - 1))],
        "tokens_per_sec": sum(one.outputs for one in answered) / last_s,
    }


def report_runs(figures: Figures, path: Path, quick: bool) -> None:
    cases = json.loads(path.read_text())["tests"]
    for label in ("card", "preset"):
        possible: list[float] = []
        everything: list[float] = []
        for index, case in enumerate(cases):
            model = MODELS[SHAPES[case["model"]]]
            gpu = case["hardware"].lower()
            single = card(gpu) if label == "card" else preset(gpu)
            hardware = tensor_parallel(single, case["tp"])
            count = 60 if quick else case["num-requests"]
            found = summary(simulate(hardware, model, case, count, seed=case["seed"]))
            setup = {"run": index, "model": model.name, "gpus": case["tp"], "constants": label}
            errors = [found[name] / case["metrics"][name] - 1 for name in MEASURED]
            for name, error in zip(MEASURED, errors, strict=True):
                figures.add(
                    f"run_{name}",
                    found[name],
                    case["metrics"][name],
                    error=f"{error:+.2f}",
                    **setup,
                )
            everything += errors
            if reading_ms(hardware, model) <= case["metrics"]["itl_mean_ms"]:
                possible += errors
            else:
                figures.add("weights_at_peak_bandwidth_ms", reading_ms(hardware, model), **setup)
        add_errors(figures, "run", everything, cases="all", constants=label)
        add_errors(figures, "run", possible, cases="possible as labelled", constants=label)


def reading_ms(hardware: Hardware, model: ModelShape) -> float:
    """Milliseconds to read the weights once at the peak: no step that draws a token is faster."""
    return 1e3 * model.weight_bytes / (hardware.bytes_per_s * hardware.gpus)


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    folder = options.data / "engine"
    if not folder.is_dir():
        sys.exit(f"no measured times in {folder}; give their folder with --data DIR")
    figures = Figures("roofline")
    for gpu in KERNELS:
        report_kernels(figures, folder, gpu)
    report_runs(figures, folder / "blis_golden.json", options.quick)
    figures.table("The roofline beside measured times")


if __name__ == "__main__":
    main()
