"""A job whose engine counts, outside the process, every token that it draws (for test_kill.py).

`python counted_job.py map WORKFLOW TABLE OUT HOME COUNTS` or `... resume HOME COUNTS`.
"""

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec

from tenter.runtime.backends import registry
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.jobs import Control, MapSpec, map_table, resume
from tenter.runtime.models import tiny_path
from tenter.runtime.report.tally import Tally


class CountedBackend(EmbeddedBackend):
    """Writes a byte to `counts` for each token, when it is drawn."""

    def __init__(self, counts: str) -> None:
        super().__init__(tiny_path(), threads=1)
        self._counts = os.open(counts, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        streamed = msgspec.structs.replace(
            request, stream=request.choices is None, chunk_tokens=1, chunk_growth=0.0
        )
        new = -len(request.drawn)  # the first chunk begins with them
        async for chunk in super().generate(streamed):
            new += len(chunk.token_ids)
            if new > 0:
                os.write(self._counts, b"." * new)
                new = 0
            yield chunk


def main() -> None:
    what, *arguments = sys.argv[1:]
    registry.BACKENDS["counted"] = CountedBackend

    async def work() -> Any:
        if what == "map":
            workflow, table, out, home, counts = arguments
            models = {"default": f"counted:counts={counts}"}
            spec = MapSpec(workflow, table, out, models=models, home=home)
            return await map_table(spec, Control(), Tally())
        home, _ = arguments
        return await resume("last", home, Control(), Tally())

    outcome = anyio.run(work)
    assert outcome.status == "done", outcome.status


if __name__ == "__main__":
    main()
