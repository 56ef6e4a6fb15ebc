"""Small random checkpoints of each architecture, and what transformers makes of them."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tenter.runtime.calls import CallId, Chunk, Request, Sampling
from tenter.runtime.engine.engine import Engine
from tenter.runtime.engine.load import EngineOptions, load_engine

VOCAB = 320
CONTEXT = 512
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True)),
    "llama3-rope": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "linear-rope": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            attention_bias=True,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen2-yarn": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, rope_parameters=YARN)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_files() -> dict[str, str]:
    """A byte-level BPE of `VOCAB` tokens, with ChatML's special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["the cat and the dog sat on the mat; then the hat", "user assistant system tool"]
    tokenizer.train_from_iterator(text * 20, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config)}


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_files: dict[str, str]
) -> Callable[[str], Path]:
    """The folder of a named checkpoint, made when it is first asked for."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            torch.manual_seed(len(name))
            folder = tmp_path_factory.mktemp(name)
            model = CHECKPOINTS[name]()
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases that are not trivial
                    torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
            model.save_pretrained(folder, max_shard_size="60KB" if "yarn" in name else "5GB")
            for file, content in tokenizer_files.items():
                (folder / file).write_text(content)
            made[name] = folder
        return made[name]

    return find


@pytest.fixture(scope="session")
def logits_of(checkpoint: Callable[[str], Path]) -> Callable[[str, list[int]], torch.Tensor]:
    """Logits [tokens, vocab] by transformers, for a checkpoint's name and token ids."""
    loaded: dict[str, Any] = {}

    @torch.inference_mode()
    def logits(name: str, ids: list[int]) -> torch.Tensor:
        if name not in loaded:
            model = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32)
            loaded[name] = model.eval()
        return loaded[name](input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    return logits


@pytest.fixture(scope="session")
def greedy(
    logits_of: Callable[[str, list[int]], torch.Tensor],
) -> Callable[[str, list[int], int], tuple[int, ...]]:
    """What transformers answers: name, prompt, number of tokens."""
    known: dict[tuple[Any, ...], tuple[int, ...]] = {}

    def answer(name: str, prompt: list[int], count: int) -> tuple[int, ...]:
        key = (name, tuple(prompt), count)
        if key not in known:
            ids = list(prompt)
            for _ in range(count):
                ids.append(int(logits_of(name, ids)[-1].argmax()))
            known[key] = tuple(ids[len(prompt) :])
        return known[key]

    return answer


@pytest.fixture
def engine(checkpoint: Callable[[str], Path]) -> Callable[..., Engine]:
    """Makes an engine for a checkpoint's name; keywords as of EngineOptions."""

    def make(name: str, clock: Callable[[], float] = time.monotonic, **options: Any) -> Engine:
        return load_engine(checkpoint(name), EngineOptions(**options), clock)

    return make


@pytest.fixture
def run() -> Callable[[Engine, Iterable[Request]], dict[str, Chunk]]:
    """Submits requests and steps until all have ended; the last chunk of each call."""

    def until_done(engine: Engine, requests: Iterable[Request] = ()) -> dict[str, Chunk]:
        for request in requests:
            engine.submit(request)
        last: dict[str, Chunk] = {}
        for _ in range(10_000):
            if not engine.busy:
                return last
            last |= {call: chunk for call, chunk in engine.step() if chunk.finish}
        raise AssertionError("the engine makes no progress")

    return until_done


@pytest.fixture
def ask() -> Callable[..., Request]:
    """Makes a request from a name and token ids; keywords of Sampling and of Request."""

    def make(call: str, ids: Iterable[int], **options: Any) -> Request:
        sampling = {k: options.pop(k) for k in list(options) if k in Sampling.__slots__}
        sampling = {"max_tokens": 12, "ignore_eos": True} | sampling
        return Request(CallId(call), tuple(ids), Sampling(**sampling), **options)

    return make


@pytest.fixture
def assert_all_free() -> Callable[[Engine], None]:
    """Nothing runs, and every page is free or cached and idle."""

    def check(engine: Engine) -> None:
        assert not engine.batch.running
        assert not engine.batch.waiting
        assert engine.cache.available == engine.cache.capacity

    return check
