"""A workflow whose engines count, outside their processes, every token that they draw.

The backend `counted` is there wherever this file is loaded, and so in every process of a cluster.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from tenter.runtime import llm, workflow
from tenter.runtime.backends import registry
from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.models import tiny_path


class CountedBackend(EmbeddedBackend):
    """Counts in two files of its process's in the folder `counts`.

    `PID` has a byte for each token, from when it is drawn. `PID.open` has the number of those that
    belong to calls that have not ended.
    """

    def __init__(self, counts: str) -> None:
        super().__init__(tiny_path(), threads=1)
        path, flags = str(Path(counts) / str(os.getpid())), os.O_WRONLY | os.O_CREAT
        self._drawn = os.open(path, flags | os.O_APPEND)
        self._open = os.open(f"{path}.open", flags)
        self._open_tokens = 0

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        streamed = msgspec.structs.replace(
            request, stream=request.choices is None, chunk_tokens=1, chunk_growth=0.0
        )
        new = -len(request.drawn)  # the first chunk begins with them
        mine = 0
        try:
            async for chunk in super().generate(streamed):
                new += len(chunk.token_ids)
                if new > 0:
                    os.write(self._drawn, b"." * new)
                    mine += new
                    self._opened(new)
                    new = 0
                yield chunk
        finally:
            self._opened(-mine)

    def _opened(self, tokens: int) -> None:
        self._open_tokens += tokens
        os.pwrite(self._open, b"%08d" % self._open_tokens, 0)


registry.BACKENDS["counted"] = CountedBackend

kind = llm(
    "Which team handles this ticket?\n\n{{ ticket }}",
    choices=["billing", "bug", "shipping", "sales", "other"],
)
answer = llm("Compute {{ sum }}. Think hard.", max_tokens=64)
note = llm("Classify the review: {{ kind }} said {{ answer }}", max_tokens=8)


@workflow
def counted(ticket: str, sum: str) -> dict[str, Any]:
    """Three calls, of which the last needs the others."""
    team, said = kind(ticket=ticket), answer(sum=sum)
    return {"kind": team, "answer": said, "note": note(kind=team, answer=said)}


@workflow
async def deadly(ticket: str, sum: str) -> str:
    """Ends its whole process at the row that says so."""
    if "deadly" in ticket:
        os._exit(1)
    return await answer(sum=sum)
