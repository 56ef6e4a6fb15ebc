"""The part of the kernels that SGLang imports by this name."""

import sgl_kernel

__getattr__ = sgl_kernel.__getattr__
