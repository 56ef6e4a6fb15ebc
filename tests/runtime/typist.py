"""A fake model that writes piece by piece."""

from collections.abc import AsyncIterator

import anyio

from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request, Usage
from tenter.runtime.errors import TryAgain

PIECE, PIECE_S = 4, 0.1  # characters, and how long they take


class Typist(FakeBackend):
    """Writes one line after the other, piece by piece; breaks off where a line has "!". A fake."""

    def __init__(self, *lines: str) -> None:
        super().__init__(remember=True)
        self._lines = list(lines)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.asked.append(self.tokenizer.decode(list(request.token_ids)))
        line = self._lines.pop(0)
        for start in range(0, len(line), PIECE):
            await anyio.sleep(PIECE_S)
            piece = line[start : start + PIECE]
            if "!" in piece:
                raise TryAgain("the line was cut")
            if request.stream:
                yield Chunk(piece)
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(line))
        yield Chunk("" if request.stream else line, finish="stop", usage=usage)
