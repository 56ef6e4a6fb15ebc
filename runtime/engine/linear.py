"""A matrix product with fixed weights; on a CPU the weights are packed once for oneDNN."""

import torch
import torch.nn.functional as F
from torch import Tensor

_PACKED_FOR_ROWS = 64  # the batch that the packed layout is chosen for; any other works too


class Linear:
    """y = x @ weight.T + bias, for x [rows, inputs] and weight [outputs, inputs].

    PyTorch packs a weight anew in every call. `torch.compile` avoids it by freezing; the same
    operator is called here directly. Where it is missing, `F.linear` does the work.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.outputs, self.inputs = weight.shape
        self.bias = bias
        self.packed = _pack(weight)
        self.weight = weight if self.packed is None else None  # one copy is enough

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")

    def add_to(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + y, in one operation where the device has one."""
        if self.weight is not None:
            return residual + F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.packed, self.bias, "add")


def _pack(weight: Tensor) -> Tensor | None:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
