"""A model on an SGLang server behind the backend door: one replica, or one rank of it."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from itertools import count
from random import Random
from socket import gethostname
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import anyio

from ...calls import (
    CallId,
    Capabilities,
    Chunk,
    Load,
    Request,
    SessionId,
    Tokenizer,
    Usage,
)
from ...clock import now
from ...errors import BackendUnavailable, CallFailed, InvalidConfig, TenterError
from ..http import Client
from .answer import Answer
from .attempt import Attempt
from .choice import choose_retention, make_retention
from .evictions import LEAST_PAGE, evictions
from .exchange import PATH, POST_S, Exchange
from .health import CANARY_S, LOADS, Patience, ask, recovered
from .info import ServerInfo
from .loads import read_load
from .retention import Contexts, Retention
from .tokens import ModelTokenizer, vocabulary
from .traffic import Traffic

log = logging.getLogger(__name__)
REMEMBERED = 4  # times the server's KV capacity: tokens of sessions that are remembered here
SPARE = 8  # connections for what is not a call
SILENCE_S = 600.0  # between two pieces of an answer; its calls' deadlines are shorter


class SGLangBackend:
    """Implements `Backend` for the server at `url`; use it as an asynchronous context manager.

    Entering asks the server what it can do, unless `info` tells; it raises BackendUnavailable
    where nobody answers, and InvalidConfig for a `retention` that the server does not allow.
    With `failure` it is entered unasked, to be recovered. `rank` addresses one data-parallel
    rank. `max_running` and `kv_tokens` leave a part of the server to others.
    """

    capabilities: Capabilities
    info: ServerInfo
    retention: Retention

    def __init__(
        self,
        url: str,
        tokenizer: ModelTokenizer,
        *,
        info: ServerInfo | None = None,
        failure: str | None = None,
        rank: int | None = None,
        retention: str = "auto",
        api_key: str | None = None,
        max_running: int | None = None,
        kv_tokens: int | None = None,
        name: str = "sglang",
        random: Random | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.tokenizer: Tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer
        self.failure = failure
        self._client = Client(url, api_key=api_key, stall_timeout_s=SILENCE_S)
        self.url = self._client.url
        self._known = info
        self._rank = rank
        self._settings = (name, retention, max_running, kv_tokens)
        self._patience = patience or Patience()
        self._random = random or Random()
        self._vocabulary = vocabulary(tokenizer)
        self._nonce = os.urandom(16)
        self._rids = map(f"{os.urandom(10).hex()}{{:012x}}".format, count())
        self._live: set[asyncio.Task[None]] = set()

    # -- the door

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Answer `request`; closing the iterator early, or cancelling, aborts the call."""
        attempt = self._begin(request)
        try:
            while True:
                chunk = await attempt.next()
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            self._traffic.remove(attempt)
            self._settle(attempt)

    async def abort(self, call: CallId) -> None:
        """Stop `call`; returns once it has ended."""
        attempt = self._traffic.attempts.get(call)
        if attempt is not None:
            await self._traffic.abort(attempt)

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """Keep the KV of `session` until `until_s`, as well as the server can."""
        await self.retention.retain(session, until_s)

    async def release(self, session: SessionId) -> None:
        """Give it back, and forget `session`."""
        self.contexts.forget(session)
        await self.retention.release(session)

    async def warm(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        """Compute the KV of `token_ids` and let `session` name it."""
        self._check_tokens(token_ids)
        self.retention.begin(session)
        whole = False
        try:
            await self.prefill(token_ids, self.retention.fields(session, shared=True))
            self.contexts.remember(session, token_ids)
            whole = True
        finally:
            self.retention.end(session, whole=whole)

    async def load(self) -> Load:
        """What the server (or the rank) is doing; stale by up to a second."""
        return read_load(await self._client.get(LOADS, 5.0), self._rank, self._client.url)

    def evictions(self) -> AsyncIterator[tuple[int, ...]] | None:
        """What the server (or the rank) evicts; None where it does not tell, or in small pages."""
        events = self.info.kv_events
        if events is None or events.block_size < LEAST_PAGE:
            return None
        return evictions(events.endpoint(self.url, self._rank), events.topic)

    async def recover(self) -> None:
        """Returns once the server answers again with the same model, whatever else changed.

        The pins of a server that was never lost, but only asked whether it still answers, stay.
        """
        info = await recovered(
            self._client, self.capabilities, self._canary, self._patience, self._random
        )
        if self.failure is None and info == self.info:  # neither lost nor started anew
            return
        await self._forget_pins()
        try:
            self._adopt(info)
        except InvalidConfig as error:
            raise BackendUnavailable(str(error)) from error
        self.failure = None

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        try:
            self._adopt(self._known or await ask(self._client))
        except BaseException:
            await self._client.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self._patience.leave_s):
                await self._traffic.abort_all()
                await self._forget_pins()
            for attempt in self._traffic.attempts.values():
                attempt.give_up()
            for task in self._live:
                task.cancel()
            if self._live:
                await asyncio.wait(self._live)
            await self._client.__aexit__(None, None, None)

    # -- a call on its way

    def _begin(self, request: Request) -> Attempt:
        """Have `request` sent, or gathered with its group; raises if it can never be answered."""
        if self.failure is not None:
            raise BackendUnavailable(self.failure)
        if request.call in self._traffic.attempts:
            raise CallFailed(f"call {request.call!r} is running already")
        room = self._exchange.room(request)
        self._check_tokens(request.token_ids, request.drawn, *(request.choices or ()))
        answer = Answer(
            request,
            self._detokenizer(),
            self.tokenizer.eos_ids,
            self._vocabulary,
            incremental=self.info.incremental_streaming_output,
            where=self._exchange.where,
        )
        rids = tuple(self._rid() for _ in request.choices or ((),))
        attempt = Attempt(request, room, rids, answer)
        if request.session is not None and request.choices is None:
            self.retention.begin(request.session)
        self._traffic.add(attempt)
        return attempt

    def _settle(self, attempt: Attempt) -> None:
        """A turn of a session has ended: remember what its context has grown to."""
        request = attempt.request
        if request.session is None or request.choices is not None:
            return
        try:
            if attempt.whole:
                tokens = (*request.token_ids, *attempt.answer.tokens)
                self.contexts.remember(request.session, tokens)
        finally:
            whole = attempt.whole and not attempt.running  # what we end is aborted, and not kept
            self.retention.end(request.session, whole=whole)

    async def _canary(self, info: ServerInfo) -> None:
        """One token, really drawn."""
        body: dict[str, Any] = {"rid": self._rid(), "input_ids": [0]}
        body["sampling_params"] = {"max_new_tokens": 1, "temperature": 0.0}
        if self._rank is not None:
            body["routed_dp_rank"] = self._rank
        await self._client.post(PATH, body, CANARY_S, again=False)

    # -- what retention asks (`retention.Server`)

    def now(self) -> float:
        """Seconds on the loop's clock."""
        return now()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have `work` done within the life of this backend."""
        return self._run(self._guard(work))

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._live.add(task)
        task.add_done_callback(self._live.discard)
        return task

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except TenterError as error:
            log.warning("%s: a request about the cache failed: %s", self.url, error)
        except Exception:
            log.exception("%s: a request about the cache failed", self.url)

    def scope(self, name: str) -> str:
        """A name on the server for `name` here: 32 hexadecimal digits, of this process alone."""
        return blake2b(name.encode(), key=self._nonce, digest_size=16).hexdigest()

    async def prefill(self, token_ids: tuple[int, ...], fields: dict[str, Any]) -> Usage:
        """Compute the KV of `token_ids`, with more fields in the request; draws nothing."""
        return await self._exchange.prefill(self._rid(), token_ids, fields)

    async def post(self, path: str, body: object) -> None:
        """Tell the server something that has no answer."""
        await self._client.post(path, body, POST_S)

    # -- parts

    def _adopt(self, info: ServerInfo) -> None:
        """What the server can do from now on; raises InvalidConfig if that is not enough."""
        name, wanted, max_running, kv_tokens = self._settings
        retention = choose_retention(info, wanted, self.url)
        self.info = info
        calls = self._client.connections - SPARE
        max_running = calls if max_running is None else min(max_running, calls)
        able = info.capabilities(name, retention, max_running, kv_tokens)
        self.capabilities = replace(able, place=_place(self.url, self._rank))
        if not hasattr(self, "contexts"):
            self.contexts = Contexts(REMEMBERED * self.capabilities.kv_tokens)
        self.retention = make_retention(retention, info, self)
        self._exchange = Exchange(self._client, info, self.retention, self._rank)
        if not hasattr(self, "_traffic"):
            self._traffic = Traffic(
                self._client, self._exchange, self._patience, self._run, self._lose, self._rid
            )
        self._traffic.exchange = self._exchange

    def _lose(self, failure: str) -> None:
        self.failure = failure

    async def _forget_pins(self) -> None:
        with suppress(TenterError):
            await self.retention.close()

    def _check_tokens(self, *parts: tuple[int, ...]) -> None:
        """A token that the model does not have would end the server for everybody."""
        for part in parts:
            if part and (min(part) < 0 or max(part) >= (self._vocabulary or max(part) + 1)):
                raise CallFailed(
                    f"a token id is outside of the model's vocabulary of {self._vocabulary}"
                )

    def _rid(self) -> str:
        """A request id of its own: of one length, so that none begins another."""
        return next(self._rids)


def _place(url: str, rank: int | None) -> str:
    """What all processes call the server; `localhost` is another one on each machine."""
    host = urlsplit(url).hostname or ""
    here = host in ("localhost", "::1") or host.startswith("127.")
    place = f"{gethostname()} {url}" if here else url
    return place if rank is None else f"{place} rank {rank}"
