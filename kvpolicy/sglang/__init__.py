"""Pins that hold: a tree-cache backend for SGLang servers, installed as their plugin.

    hints.py     what clients ask, read from the `kv_hints` of their requests
    pins.py      the book of pins: clock, budget, who gives way first. Pure
    cache.py     SGLang's radix cache, keeping such a book
    fit.py       how it is fitted into the scheduler
    metrics.py   the book's counts in SGLang's /metrics

An SGLang server in whose environment tenter is installed calls `register` at its start. The pins
are on where it is also started with `--radix-cache-backend tenter`.
"""

import logging
import os
from importlib import import_module
from typing import Any

from .pins import share

NAME = "tenter"  # of the backend: `--radix-cache-backend tenter`
TESTED = "0.5.23"

logger = logging.getLogger(__name__)


def register() -> None:
    """Offer the backend to the SGLang that runs us, or log why not. SGLang's entry point."""
    try:
        found: str = import_module("sglang.version").__version__
        if found != TESTED:
            raise ValueError(
                f"they were tested with SGLang {TESTED} only, and this is {found}; "
                f"install sglang=={TESTED}, or drop --radix-cache-backend {NAME}"
            )
        share(os.environ)
    except ValueError as error:
        logger.error("tenter's pins are not offered: %s", error)
        return
    import_module("sglang.srt.mem_cache.registry").register_radix_cache_backend(NAME, _build)


def _build(context: Any) -> Any:
    from .fit import build

    return build(context)
