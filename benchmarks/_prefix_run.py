"""What `prefix.py` needs of engines: the smallest model, and prompts run as the rows of a table."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tenter.planner.graph import LLM, Graph, Ref, Sampling
from tenter.planner.optimize import optimize
from tenter.planner.plan import Context
from tenter.planner.prompt import Prompt
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.journal.memory import NoJournal
from tenter.runtime.models import tiny_path
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host
from tenter.runtime.run.planned import Planned
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.workflow import Input, Workflow

WIDTH = 16
TEMPLATE = "{{ context }}Question: {{ question }}\nAnswer:"
Question = tuple[str, str]  # its context, and itself


def save_smallest(folder: Path, vocab: int, seed: int) -> None:
    """A model of one layer, 16 wide, of random weights, with the tiny model's tokenizer."""
    torch.manual_seed(seed)
    shapes = {"model.embed_tokens": (vocab, WIDTH), "lm_head": (vocab, WIDTH)}
    layer = "model.layers.0."
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        shapes[f"{layer}self_attn.{name}"] = (WIDTH, WIDTH)
    for name in ("gate_proj", "up_proj", "down_proj"):
        shapes[f"{layer}mlp.{name}"] = (WIDTH, WIDTH)
    for name in ("model.norm", f"{layer}input_layernorm", f"{layer}post_attention_layernorm"):
        shapes[name] = (WIDTH,)
    weights = {f"{name}.weight": torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 32_768,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_path() / file, folder)


def text_of(question: Question) -> str:
    """The prompt that a row makes."""
    return f"{question[0]}Question: {question[1]}\nAnswer:"


class _Ends:
    """Counts the rows that were answered."""

    held = done = 0

    def put(self, row: Row, value: Any, error: str | None) -> None:
        assert error is None, error
        self.done += 1


async def run_rows(folder: Path, questions: Sequence[Question], cache: int, planned: bool) -> int:
    """Run a workflow over `questions`, in this order of the table; the prompt tokens computed.

    The engine's own count. Without `planned` rows go as they come, with no hints.
    """
    prompt = Prompt(TEMPLATE)
    sampling = Sampling(max_tokens=1, ignore_eos=True)
    args = tuple((name, Ref(name)) for name in prompt.fields)
    step = LLM(id="answer", prompt=prompt, args=args, sampling=sampling)
    graph = Graph("read", prompt.fields, (step,), Ref("answer"))
    flow = Workflow("read", tuple(map(Input, prompt.fields)), graph)
    inputs = [dict(zip(prompt.fields, question, strict=True)) for question in questions]
    rows = [Row(number, values, values) for number, values in enumerate(inputs)]
    ends = _Ends()
    async with EmbeddedBackend(folder, kv_tokens=cache, chunk_tokens=2048, threads=1) as backend:
        async with open_host({"default": backend}, max_programs=256) as host:
            plan = optimize(graph, Context())
            found = host.planned = Planned(plan, host.scheduler) if planned else None
            about = (NoJournal(), ends, Control(), (), Limits(256))
            await RowRun(Programs(host, flow), *about, planned=found).run(iter(rows))
        counters = (await backend.load()).counters
    assert ends.done == len(rows)
    return round(counters["prefill_tokens"])
