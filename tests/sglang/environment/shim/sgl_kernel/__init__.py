"""SGLang's compiled kernels, absent.

SGLang imports names from this package when its modules load, also where no kernel will be called:
on a CPU it computes with PyTorch alone. Any name can be imported; calling one is an error.
"""

from collections.abc import Callable
from typing import Any, NoReturn

__version__ = "0"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is not there: these tests run on a CPU")

    return absent
