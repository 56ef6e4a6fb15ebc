"""The base install has no torch: the backend can be named, and says what is missing."""

import subprocess
import sys

SCRIPT = """
import asyncio, sys
sys.modules["torch"] = None
import tenter.runtime.engine.batch, tenter.runtime.engine.cache, tenter.runtime.engine.cascade
import tenter.runtime.tokenizer
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.errors import InvalidInput

async def main():
    async with EmbeddedBackend("anywhere"):
        pass

try:
    asyncio.run(main())
except InvalidInput as error:
    print(error)
"""


def test_missing_torch_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )

    assert "needs torch: pip install 'tenter[embedded]'" in done.stdout
