"""One attempt at a call: what was asked, and the chunks of the answer on their way to the caller."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from ...calls import Chunk, Request, Usage
from ...errors import TenterError
from .answer import Answer
from .wire import Reply


class Attempt:
    """Chunks from whoever reads the server's answer to whoever iterates over it.

    `rids` are the ids of its requests on the server. Ends once: with a last chunk or an error.
    """

    def __init__(self, request: Request, room: int, rids: tuple[str, ...], answer: Answer) -> None:
        self.request = request
        self.room = room  # tokens that it may draw
        self.rids = rids
        self.answer = answer
        self.task: asyncio.Task[None] | None = None  # reads its answer, or that of its batch
        self.batch: Sequence[Attempt] = ()  # those that `task` reads
        self.halt: asyncio.Task[None] | None = None  # sees to its end, once it is to be aborted
        self.aborting = False
        self.ended = False
        self.running = False  # the server may be at work on it
        self.whole = False  # it ended with an answer
        self._chunks: deque[Chunk] = deque()
        self._failure: TenterError | None = None
        self._news: asyncio.Future[None] | None = None  # the caller waits for something to come
        self._end: asyncio.Event | None = None  # somebody waits for its end

    # -- for the reader

    def take(self, reply: Reply) -> None:
        """Hand out what `reply` sets free. Raises where the server gave up by itself."""
        reason = reply.meta_info.finish_reason
        aborted = reason is not None and reason.get("type") == "abort"
        running = self.running and reason is None
        if self.ended or aborted:
            self.running = running
        if self.ended:
            return
        if self.aborting and aborted:
            self.put(self.answer.abort(reply))
            return
        chunk = self.answer.read(reply)
        self.running = running  # only now: an end that does not add up may be none
        if chunk is not None:
            self.put(chunk)

    def put(self, chunk: Chunk) -> None:
        """Hand out `chunk`; the last one ends it."""
        if self.ended:
            return
        self._chunks.append(chunk)
        if chunk.finish is not None:
            self.whole = chunk.finish in ("stop", "length")
            self._finish()
        else:
            self._tell()

    def fail(self, error: TenterError) -> None:
        """There will be no answer; one that is being aborted just ends."""
        if self.ended:
            return
        if self.aborting:
            self.give_up()
            return
        self._failure = error
        self._finish()

    def give_up(self) -> None:
        """End it as aborted, whatever the server does."""
        self.put(Chunk(finish="abort", usage=Usage(prompt_tokens=len(self.request.token_ids))))

    def _finish(self) -> None:
        self.ended = True
        if self._end is not None:
            self._end.set()
        self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # -- for the caller

    async def next(self) -> Chunk:
        """The next chunk, or raises why there is none."""
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return self._chunks.popleft()

    async def ends_within(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        if self._end is None:
            self._end = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if not self.ended:
                    await self._end.wait()
        return self.ended
