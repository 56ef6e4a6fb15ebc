"""What SGLang 0.5.23 lacks on a CPU: operators for torchvision, a host tier for its KV cache.

`tenter_sglang_cpu.pth` calls `watch_imports` in every interpreter of the environment, and SGLang
calls `register`, its plugin of the entry point group `sglang.srt.plugins`, in each of its own
processes.
"""

import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from typing import Any


class _Torchvision:
    """Declares, before torchvision is imported, two operators that it expects.

    They are compiled into a library that belongs to a build of PyTorch for GPUs and does not load
    beside the one for CPUs. Declared without code they can be imported, though not be called.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare("nms", "qnms")
        return None  # the usual finders go on


def _declare(*operators: str) -> None:
    import torch

    for operator in operators:
        with suppress(RuntimeError):  # declared already
            torch.library.define(
                f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float limit) -> Tensor"
            )


def watch_imports() -> None:
    """Be ready for an `import torchvision`."""
    sys.meta_path.insert(0, _Torchvision())


def register() -> None:
    """Let HiCache keep its host tier in ordinary memory, beside a KV pool that lies there too.

    For `--hicache-io-backend direct --hicache-mem-layout layer_first`.
    """
    from sglang.srt.mem_cache.pool_host import common, mha

    common.ALLOC_MEMORY_FUNCS["cpu"] = _allocate
    mha.transfer_kv_direct = _transfer


def _allocate(dims: Any, dtype: Any, device: str, *_: Any, allocator: Any, **__: Any) -> Any:
    return allocator.allocate(dims, dtype=dtype, device=device)


def _transfer(
    src_layers: Any, dst_layers: Any, src_indices: Any, dst_indices: Any, page_size: int
) -> None:
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]
