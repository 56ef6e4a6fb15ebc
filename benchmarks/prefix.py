"""Computed prefill tokens over the optimum, by order and cache size, read from the engine.

    python benchmarks/prefix.py [--quick] [--data DIR] [--cache TOKENS ...]

TAT-QA prompts (table and paragraphs, then a question; 1,668 over 278 contexts) and GSM8K questions
behind 8 shared examples, as token ids of the tiny model's tokenizer, with one token answered each.
They run through the embedded engine: its scheduler, its radix cache of 16-token pages, its LRU, 64
prompts at once. The weights are random and as small as they can be, since only the engine's own
count of computed prompt tokens is read, and that does not depend on what the model says.

Orders: as in the file (arrival), shuffled, sorted by tokens, BatchLLM's single-level groups (groups
with the most to decode per computed token first, their members as they came), ours. The optimum
computes every page of the prefix tree once. `saved_share`: 1 - computed / logical tokens, beside
that of the optimum. `prefill_over_token_optimum` counts single tokens of the tree, which pages of
16 cannot reach. `run, planned` is a workflow over the prompts as the rows of a shuffled table, run
by the runtime, which plans their order (as chats: some more tokens each); `run, as it comes` without
its plan. `--quick`: fewer prompts.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, one_thread

one_thread()

import torch
from _prefix_run import Question, run_rows, save_smallest, text_of

from tenter.planner.prefixes import Prompts, group_prompts, single_level_groups
from tenter.runtime.calls import CallId, Message, Request, Sampling
from tenter.runtime.engine.config import ModelConfig
from tenter.runtime.engine.engine import Engine
from tenter.runtime.engine.model import Model
from tenter.runtime.models import tiny_path
from tenter.runtime.tokenizer import HFTokenizer

CACHES = (16_384, 65_536, 262_144)
EXAMPLES = 8
QUICK_PROMPTS = 200
SEED = 0

Tokens = list[list[int]]


# -- prompts


def tatqa(file: Path) -> tuple[list[Question], list[float]]:
    """Context and question; and the length of the answer in characters."""
    prompts, answers = list[Question](), list[float]()
    for entry in json.loads(file.read_text()):
        table = "\n".join(" | ".join(row) for row in entry["table"]["table"])
        text = "\n".join(part["text"] for part in entry["paragraphs"])
        for question in entry["questions"]:
            prompts.append((f"{table}\n\n{text}\n\n", question["question"]))
            answers.append(len(str(question["answer"])))
    return prompts, answers


def gsm8k(file: Path) -> tuple[list[Question], list[float]]:
    """Eight examples, then a question."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    shots = "".join(
        f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows[:EXAMPLES]
    )
    rest = rows[EXAMPLES:]
    return [(shots, row["question"]) for row in rest], [len(row["answer"]) for row in rest]


# -- orders


def shuffled(count: int) -> list[int]:
    order = list(range(count))
    random.Random(SEED).shuffle(order)
    return order


def batchllm(prompts: Prompts, lengths: Sequence[int], answers: Sequence[float]) -> list[int]:
    """Its groups, those first that decode most per token that they compute."""
    found = single_level_groups(prompts)

    def ratio(group: tuple[tuple[int, ...], int]) -> float:
        members, shared = group
        computed = sum(lengths[member] for member in members) - shared * (len(members) - 1)
        return -sum(answers[member] for member in members) / max(computed, 1)

    groups = sorted(zip(found.groups, found.shared, strict=True), key=ratio)
    return [member for members, _ in groups for member in sorted(members)]


def orders(tokens: Tokens, answers: list[float]) -> dict[str, Callable[[], Sequence[int]]]:
    prompts = Prompts.of_tokens(tokens)
    lengths = [len(ids) for ids in tokens]
    return {
        "arrival": lambda: range(len(tokens)),
        "shuffled": lambda: shuffled(len(tokens)),
        "sorted": lambda: sorted(range(len(tokens)), key=tokens.__getitem__),
        "batchllm": lambda: batchllm(prompts, lengths, answers),
        "ours": lambda: group_prompts(prompts, output_tokens=answers).order,
    }


# -- the engine


def computed(model: Model, tokenizer: HFTokenizer, tokens: Tokens, cache: int) -> int:
    """Prompt tokens that the engine says it computed for `tokens`, in this order."""
    engine = Engine(model, tokenizer, time.perf_counter, kv_tokens=cache, chunk_tokens=2048)
    sampling = Sampling(max_tokens=1, ignore_eos=True)
    for index, ids in enumerate(tokens):
        engine.submit(Request(CallId(str(index)), tuple(ids), sampling))
    while engine.busy:
        engine.step()
    return engine.counters.prefill_tokens


def measure(
    figures: Figures,
    name: str,
    folder: Path,
    tokens: Tokens,
    answers: list[float],
    caches: Sequence[int],
) -> None:
    """Orders of prompts that are handed to the engine."""
    model, tokenizer = Model.load(folder, torch.float32, torch.device("cpu")), HFTokenizer(folder)
    prompts = Prompts.of_tokens(tokens)
    best = group_prompts(prompts)
    finest = group_prompts(prompts, page_tokens=1).computed_tokens
    logical = best.logical_tokens
    single = single_level_groups(prompts).computed_tokens
    setup = {"data": name, "prompts": len(tokens)}
    figures.add("logical_tokens", logical, unit="tokens", **setup)
    figures.add("optimum_saved_share", best.saving, 1 - single / logical, page_tokens=16, **setup)
    for method, order in orders(tokens, answers).items():
        began_s = time.process_time()
        sent = [tokens[index] for index in order()]
        planned_s = time.process_time() - began_s
        for cache in caches:
            count = computed(model, tokenizer, sent, cache)
            of = {**setup, "method": method, "cache_tokens": cache}
            figures.add("prefill_over_optimum", count / best.computed_tokens, 1.0, **of)
            figures.add("prefill_over_token_optimum", count / finest, 1.0, **of)
            figures.add("saved_share", 1 - count / logical, best.saving, **of)
        figures.add("order_s", planned_s, unit="CPU-s", **setup, method=method)


def measure_run(
    figures: Figures,
    name: str,
    folder: Path,
    questions: list[Question],
    caches: Sequence[int],
) -> None:
    """A workflow over the prompts as a shuffled table, with its plan and without."""
    tokenizer = HFTokenizer(folder)
    chats = [tokenizer.chat([Message("user", text_of(question))]) for question in questions]
    best = group_prompts(Prompts.of_tokens(chats))
    rows = [questions[index] for index in shuffled(len(questions))]
    for planned in (False, True):
        method = "run, planned" if planned else "run, as it comes"
        for cache in caches:
            count = asyncio.run(run_rows(folder, rows, cache, planned))
            setup = {"data": name, "prompts": len(rows), "method": method, "cache_tokens": cache}
            figures.add("prefill_over_optimum", count / best.computed_tokens, 1.0, **setup)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PROMPTS} prompts of each")
    parser.add_argument("--data", type=Path, help="folder with qa/; ../shared/data")
    parser.add_argument("--cache", type=int, nargs="+", default=CACHES, help="cache sizes, tokens")
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    folder = (options.data or root.parent / "shared" / "data") / "qa"
    sources = {
        "tatqa": (tatqa, folder / "tatqa_dataset_dev.json"),
        "gsm8k": (gsm8k, folder / "gsm8k_test.jsonl"),
    }
    torch.set_num_threads(1)
    figures, tokenizer = Figures("prefix"), HFTokenizer(tiny_path())
    for name, (read, file) in sources.items():
        if not file.exists():
            sys.exit(f"{file} is missing: give the folder of the public data with --data")
        questions, answers = read(file)
        count = QUICK_PROMPTS if options.quick else len(questions)
        tokens = [tokenizer.encode(text_of(question)) for question in questions[:count]]
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            save_smallest(folder, ModelConfig.read(tiny_path()).vocab, SEED)
            measure(figures, name, folder, tokens, answers[:count], options.cache)
            measure_run(figures, name, folder, questions[:count], options.cache)
    part = f" (quick: {QUICK_PROMPTS} prompts of each)" if options.quick else ""
    figures.table(f"Computed prefill tokens over the optimum{part}")


if __name__ == "__main__":
    main()
