"""Make an engine from a model folder: device, dtype, size of the KV cache."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InvalidInput
from ..tokenizer import HFTokenizer
from .engine import Engine
from .model import Model

_CPU_KV_BYTES = 512 * 2**20
_GPU_SHARE = 0.8  # of the memory that is free once the weights are loaded
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 64 * 2**20
_WIDE = 1024  # a hidden size from which a product is worth several threads
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run a model. None: chosen to fit the device and the model."""

    dtype: str = "float32"
    device: str = "auto"
    kv_bytes: int | None = None
    kv_tokens: int | None = None
    max_running: int = 64
    chunk_tokens: int | None = None
    threads: int | None = None


def load_engine(folder: Path, options: EngineOptions, clock: Callable[[], float]) -> Engine:
    """Load the model in `folder`. Raises InvalidInput if it, or an option, cannot be used."""
    if options.dtype not in _DTYPES:
        raise InvalidInput(f"dtype {options.dtype!r} is not supported; {', '.join(_DTYPES)} are")
    device = _device(options.device)
    if device.type == "cpu":
        _keep_freed_memory()
    model = Model.load(folder, _DTYPES[options.dtype], device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads or _threads(model))
    chunk_tokens = options.chunk_tokens or (512 if device.type == "cpu" else 4096)
    return Engine(
        model,
        HFTokenizer(folder),
        clock,
        kv_tokens=_kv_tokens(model, options),
        max_running=options.max_running,
        chunk_tokens=chunk_tokens,
    )


def _threads(model: Model) -> int:
    """Threads for the products: one for a small model, whose steps are shorter than it takes
    several threads to meet (and many times slower where the machine is busy otherwise)."""
    width = model.config.width
    return 1 if width < _WIDE else torch.get_num_threads()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInput(f"device {name!r} is unknown; auto, cpu and cuda are") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"device {name!r} was asked for, but PyTorch finds no GPU")
    return device


def _kv_tokens(model: Model, options: EngineOptions) -> int:
    """Tokens of KV: as asked, else what the memory holds, and no more than can be in use."""
    if options.kv_tokens is not None:
        return options.kv_tokens
    token_bytes = model.config.kv_elements * model.dtype.itemsize
    if options.kv_bytes is not None:
        return options.kv_bytes // token_bytes
    free_bytes = _CPU_KV_BYTES
    if model.device.type == "cuda":
        free_bytes = int(torch.cuda.mem_get_info(model.device)[0] * _GPU_SHARE)
    return min(free_bytes // token_bytes, options.max_running * model.config.context)


def _keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next one.

    glibc gives large blocks back to the kernel at once and then faults them in again, page by
    page, which can double the time of a prefill's products. Without effect elsewhere.
    """
    with suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
        allocator.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
