"""The embedded engine beside transformers: same model, same prompts, one thread, one process.

    python benchmarks/engine.py [--quick] [--data DIR] [--peers] [--gpu]

64 requests of 520 tokens, 64 new tokens each: once over a shared prefix of 512 tokens, once
unrelated. transformers answers them as one static batch (`generate`) and by its own continuous
batching (`generate_batch`); the better of the two counts. Runs are interleaved; medians count.
`speedup` compares CPU seconds, `speedup_wall` wall seconds. `--quick`: the tiny model and one
round only. `--peers`: OpenVINO GenAI too (in `.cache/peers/openvino`, installed on first use), with
the shared prefix in both caches beforehand, since it does not share what is still being computed.
`--gpu`: an 8B-shaped random model on a GPU, as shares of what the device can do, and no peers.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures, Timing, interleaved, one_thread, timed
from _models import mid_model

one_thread()

import torch

from tenter.runtime.calls import CallId, Request, Sampling
from tenter.runtime.engine.config import ModelConfig
from tenter.runtime.engine.engine import Engine
from tenter.runtime.engine.load import EngineOptions, load_engine
from tenter.runtime.engine.model import Model
from tenter.runtime.engine.weights import build_weights
from tenter.runtime.tokenizer import HFTokenizer

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "runtime" / "models" / "tiny"
MADE = ROOT / ".cache" / "benchmarks"  # models that are made for the comparison
REQUESTS, SHARED, OWN, NEW = 64, 512, 8, 64
PEER_BLOCKS = {"shared": 400, "unrelated": 2400}  # of 16 tokens: what the prompts need

Prompts = list[list[int]]


def make_prompts(kind: str, vocab: int, count: int = REQUESTS) -> Prompts:
    """`count` prompts of SHARED + OWN tokens; of "shared" ones the first SHARED are the same."""
    draw = random.Random(0)

    def ids(length: int) -> list[int]:
        return [draw.randrange(3, vocab) for _ in range(length)]

    prefix = ids(SHARED)
    return [(prefix if kind == "shared" else ids(SHARED)) + ids(OWN) for _ in range(count)]


# -- the contestants


def own_engine(folder: Path) -> Engine:
    """The embedded engine: bfloat16, one thread."""
    options = EngineOptions(dtype="bfloat16", device="cpu", kv_tokens=60_000, threads=1)
    return load_engine(folder, options, time.perf_counter)


def own_run(loaded: Engine, prompts: Prompts, warm: list[int] | None = None) -> Timing:
    """Answer `prompts` with a cache that is cold, or holds `warm`."""
    engine = Engine(loaded.model, loaded.tokenizer, time.perf_counter, kv_tokens=60_000)
    if warm:
        answer(engine, [warm], 1)
    return timed(lambda: answer(engine, prompts, NEW))


def answer(engine: Engine, prompts: Prompts, new: int) -> None:
    """Submit all prompts at once and step until they are answered."""
    sampling = Sampling(max_tokens=new, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.submit(Request(CallId(str(index)), tuple(prompt), sampling))
    while engine.busy:
        engine.step()


def transformers_runs(folder: Path, prompts: Prompts, kind: str) -> dict[str, Callable[[], Timing]]:
    """transformers on the same weights: a static batch, and its continuous batching."""
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    transformers.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    generation = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    batching = ContinuousBatchingConfig(
        page_size=16, num_blocks=PEER_BLOCKS[kind], max_batch_tokens=1024
    )
    ids = torch.tensor(prompts)

    @torch.inference_mode()
    def static() -> Any:
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=generation
        )

    def continuous() -> Any:
        return model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching
        )

    return {"static": lambda: timed(static), "continuous": lambda: timed(continuous)}


class OpenVino:
    """OpenVINO GenAI in a process and a virtual environment of its own; a context manager."""

    def __init__(self, folder: Path, data: Path) -> None:
        python = self._installed()
        program = Path(__file__).parent / "_openvino.py"
        command = [python, program, folder, data / f"openvino-{folder.name}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, prompts: Prompts, warm: list[int]) -> Timing:
        """Answer `prompts` with a cache that holds `warm`."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process of OpenVINO has no pipes")
        task = {"prompts": prompts, "new_tokens": NEW, "warm": warm}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return Timing(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    @staticmethod
    def _installed() -> Path:
        home = ROOT / ".cache" / "peers" / "openvino"
        python = home / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            pip = [python, "-m", "pip"]
            needed = ["openvino-genai", "optimum-intel", "nncf", "transformers<5.6"]
            torch_version = f"torch=={torch.__version__}"
            subprocess.run([*pip, "install", "-q", *needed, torch_version], check=True)
            subprocess.run([*pip, "uninstall", "-q", "-y", "torchvision"], check=True)  # for CUDA
        return python


# -- CPU


def compare(figures: Figures, name: str, folder: Path, kind: str, rounds: int, quick: bool) -> None:
    """Time the contestants on one model and one kind of prompts."""
    prompts = make_prompts(kind, ModelConfig.read(folder).vocab)
    loaded = own_engine(folder)
    peers = transformers_runs(folder, prompts, kind)
    if kind == "unrelated" and (quick or name == "mid"):
        del peers["continuous"]  # its dense mask over all cached tokens takes minutes here
    own = {"own": lambda: own_run(loaded, prompts)}
    timings = interleaved(own | peers, rounds)
    setup = {"prompts": kind, "model": name, "dtype": "bfloat16", "threads": 1}
    answer(loaded, prompts, 1)
    computed = loaded.counters.prefill_tokens
    figures.add("prefill_tokens", computed, len(prompts) * (SHARED + OWN), "tokens", **setup)
    for contestant, timing in timings.items():
        rate = REQUESTS * NEW / timing.cpu_s
        figures.add("output_rate", rate, unit="tokens/CPU-s", engine=contestant, **setup)
    best = min((timings[peer] for peer in peers), key=lambda timing: timing.cpu_s)
    for peer in peers:
        value, detail = timings[peer].cpu_s / timings["own"].cpu_s, f"transformers {peer}"
        figures.add("speedup", value, 1.0, "x", **{**setup, "peer": detail})
    setup["peer"] = "transformers"
    figures.add("speedup", best.cpu_s / timings["own"].cpu_s, 1.0, "x", **setup)
    figures.add("speedup_wall", best.wall_s / timings["own"].wall_s, 1.0, "x", **setup)


def compare_openvino(figures: Figures, name: str, folder: Path, data: Path, rounds: int) -> None:
    """Time the engine beside OpenVINO GenAI on shared prompts, both with the prefix cached."""
    loaded, vocab = own_engine(folder), ModelConfig.read(folder).vocab
    with OpenVino(folder, data) as peer:
        for rows in (1, REQUESTS):
            prompts = make_prompts("shared", vocab, rows)
            warm = prompts[0][:SHARED] + [3]
            runs = {
                "own": partial(own_run, loaded, prompts, warm),
                "openvino": partial(peer.run, prompts, warm),
            }
            timings = interleaved(runs, rounds)
            setup = {"prompts": "shared", "model": name, "batch": rows, "dtype": "bfloat16"}
            for contestant, timing in timings.items():
                rate = rows * NEW / timing.cpu_s
                figures.add("output_rate", rate, unit="tokens/CPU-s", engine=contestant, **setup)
            value = timings["openvino"].cpu_s / timings["own"].cpu_s
            figures.add("speedup", value, 1.0, "x", peer="openvino", **setup)


def floor(figures: Figures, name: str, folder: Path) -> None:
    """A decode step beside its matrix products alone, and beside reading its bytes."""
    engine = own_engine(folder)
    for rows in (1, REQUESTS):
        prompts = make_prompts("shared", engine.model.config.vocab, rows)
        step_s = decode_step_s(engine, prompts)
        gemm_s = products_s(engine.model, rows)
        setup = {"model": name, "batch": rows, "dtype": "bfloat16", "threads": 1}
        figures.add("decode_step", step_s * 1e3, gemm_s * 1e3, "ms, products alone", **setup)
        figures.add("over_gemm_floor", step_s / gemm_s, 1.0, "x", **setup)
        share = step_bytes(engine.model, rows) / step_s / read_rate(engine.model.device)
        figures.add("read_bandwidth_share", share, 1.0, "of a plain read", **setup)


def decode_step_s(engine: Engine, prompts: Prompts, new: int = 48) -> float:
    """The median time of a step in which every prompt decodes."""
    sampling = Sampling(max_tokens=new, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.submit(Request(CallId(str(index)), tuple(prompt), sampling))
    found: list[float] = []
    while engine.busy:
        took_s = seconds(timed(engine.step), engine.model.device)
        if engine.last_step.decode_rows == len(prompts):
            found.append(took_s)
    return sorted(found)[len(found) // 2]


@torch.inference_mode()
def products_s(model: Model, rows: int) -> float:
    """The matrix products of one step over `rows` tokens, and nothing else."""
    products = [
        p
        for layer in model.weights.layers
        for p in (layer.qkv, layer.out, layer.gate_up, layer.down)
    ]
    products.append(model.weights.head)
    inputs = {
        p.inputs: torch.randn(rows, p.inputs, dtype=model.dtype, device=model.device)
        for p in products
    }

    def run() -> None:
        for product in products:
            product(inputs[product.inputs])
        synchronize(model.device)

    return best_s(run, model.device, 20)


def step_bytes(model: Model, rows: int) -> int:
    """Bytes that a decode step must read at least: all weights, shared KV once, own KV per row."""
    config = model.config
    layer = config.width * (config.heads + 2 * config.kv_heads) * config.head_width
    layer += config.heads * config.head_width * config.width + 3 * config.width * config.ffn_width
    weights = config.layers * layer + config.vocab * config.width
    context = SHARED + rows * (OWN + NEW // 2)
    return (weights + context * config.kv_elements) * model.dtype.itemsize


def read_rate(device: torch.device, size: int = 2**28) -> float:
    """Bytes per second that a plain sum reads from memory."""
    data = torch.ones(size // 4, dtype=torch.float32, device=device)

    def run() -> None:
        data.sum()
        synchronize(device)

    return size / best_s(run, device, 5)


def best_s(run: Callable[[], None], device: torch.device, count: int) -> float:
    """The shortest of `count` runs, after two that warm up."""
    for _ in range(2):
        run()
    return min(seconds(timed(run), device) for _ in range(count))


def seconds(timing: Timing, device: torch.device) -> float:
    """CPU seconds where the CPU does the work (others share it); else wall seconds."""
    return timing.cpu_s if device.type == "cpu" else timing.wall_s


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- GPU


def gpu(figures: Figures) -> None:
    """Prefill as a share of the matmul rate, decoding as a share of the memory bandwidth."""
    device = torch.device("cuda")
    config = ModelConfig(
        "LlamaForCausalLM",
        128256,
        4096,
        32,
        32,
        8,
        128,
        14336,
        8192,
        1e-5,
        False,
        ModelConfig.read(TINY).rope,
    )
    model = random_model(config, device)
    tokenizer = HFTokenizer(TINY)
    square = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)

    def multiply() -> None:
        torch.mm(square, square)
        synchronize(device)

    flops = 2 * 8192**3 / best_s(multiply, device, 10)
    setup = {"model": "8B-shaped", "device": torch.cuda.get_device_name(device)}
    engine = Engine(model, tokenizer, time.perf_counter, kv_tokens=120_000, chunk_tokens=8192)
    answer(engine, make_prompts("unrelated", 1000, 8), 2)
    prompts = make_prompts("unrelated", 2000, 16)
    took_s = timed(lambda: answer(engine, prompts, 1)).wall_s
    rate = len(prompts) * (SHARED + OWN) / took_s
    parameters = step_bytes(model, 0) / model.dtype.itemsize - SHARED * config.kv_elements
    figures.add("prefill_rate", rate, unit="tokens/s", **setup)
    figures.add("prefill_share", rate * 2 * parameters / flops, 1.0, "of a matmul", **setup)
    bandwidth = read_rate(device, 2**32)
    for rows in (1, 16, 64):
        step_s = decode_step_s(engine, make_prompts("shared", 3000, rows))
        figures.add("decode_rate", rows / step_s, unit="tokens/s", batch=rows, **setup)
        share = step_bytes(model, rows) / step_s / bandwidth
        figures.add("read_bandwidth_share", share, 1.0, "of a plain read", batch=rows, **setup)


def random_model(config: ModelConfig, device: torch.device) -> Model:
    """A model of random weights that are made on the device."""

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device) * 0.02

    width, query, kv = (
        config.width,
        config.heads * config.head_width,
        config.kv_heads * config.head_width,
    )
    tensors = {
        "model.embed_tokens.weight": tensor(config.vocab, width),
        "lm_head.weight": tensor(config.vocab, width),
    }
    tensors["model.norm.weight"] = tensor(width)
    for index in range(config.layers):
        name = f"model.layers.{index}."
        for part, rows in (("q", query), ("k", kv), ("v", kv)):
            tensors[f"{name}self_attn.{part}_proj.weight"] = tensor(rows, width)
        tensors[name + "self_attn.o_proj.weight"] = tensor(width, query)
        for part in ("gate", "up"):
            tensors[f"{name}mlp.{part}_proj.weight"] = tensor(config.ffn_width, width)
        tensors[name + "mlp.down_proj.weight"] = tensor(width, config.ffn_width)
        tensors[name + "input_layernorm.weight"] = tensor(width)
        tensors[name + "post_attention_layernorm.weight"] = tensor(width)
    return Model(config, build_weights(config, tensors, torch.bfloat16))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="the tiny model, one round")
    parser.add_argument("--data", default="../shared/data", help="not read")
    parser.add_argument("--rounds", type=int, help="of which medians count; 3, or 1 if quick")
    parser.add_argument("--peers", action="store_true", help="OpenVINO GenAI too")
    parser.add_argument("--gpu", action="store_true", help="an 8B-shaped model on a GPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = Figures("engine")
    if options.gpu:
        gpu(figures)
    else:
        models = {"tiny": TINY} if options.quick else {"tiny": TINY, "mid": mid_model(MADE)}
        rounds = options.rounds or (1 if options.quick else 3)
        for name, folder in models.items():
            floor(figures, name, folder)
            for kind in ("shared", "unrelated"):
                compare(figures, name, folder, kind, rounds, options.quick)
            if options.peers:
                compare_openvino(figures, name, folder, MADE, rounds)
    part = " (quick: the tiny model, one round)" if options.quick else ""
    figures.table(f"Embedded engine{part}: {REQUESTS} requests, {SHARED}+{OWN} tokens, {NEW} new")


if __name__ == "__main__":
    main()
