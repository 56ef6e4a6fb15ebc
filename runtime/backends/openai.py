"""Any server that answers OpenAI's chat completions: no pins, no priority, but it answers.

Used for servers that are neither SGLang nor ours. Prompts go as messages, answers come as text.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import anyio

from ..calls import CallId, Capabilities, Chunk, Load, Request, SessionId, Tokenizer
from ..clock import now
from ..errors import BackendUnavailable, CallFailed, InvalidConfig, TenterError, TryAgain
from ..tokenizer import HFTokenizer
from .estimate import EstimatedTokenizer
from .http import Client
from .http_text import key_from
from .openai_answer import FINISHES, Counts, Pieces, Text, chosen, read_part
from .openai_ask import body_of, texts_of
from .openai_models import ModelList

CONTEXT_TOKENS = 32_768  # where neither the server nor the user says
UNLIKELY = -1e9  # log-probability of a choice that was not taken
_UNLIMITED_TOKENS = 1 << 40


class OpenAIBackend:
    """The model `model` of the server at `url`. Implements `Backend`.

    `url` as OpenAI's own clients take it, ending in /v1; a URL without a path gets one. Without
    `model` the server must serve a single one. `api_key` is the name of the environment variable
    that holds the key. `tokenizer` is a folder of the model's own; without it token counts before
    a call are estimates. `schemas`: the server takes `response_format` with a JSON Schema; if
    not, the schema is put into words. `context_tokens`: where the server does not tell.

    There is no scoring of choices over this door, so the model is asked to write one of them: the
    one it writes gets log-probability 0, the others `UNLIKELY`. Entering raises InvalidConfig for
    what cannot be right, and BackendUnavailable if nobody answers.
    """

    capabilities: Capabilities
    tokenizer: Tokenizer
    failure: str | None = None

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        tokenizer: str | Path | None = None,
        *,
        max_running: int = 64,
        context_tokens: int | None = None,
        schemas: bool = True,
        stall_timeout_s: float = 60.0,
        trust_env: bool = False,
        jitter: random.Random | None = None,
    ) -> None:
        if max_running < 1:
            raise InvalidConfig(f"max_running={max_running}: at least one call must run")
        self._client = Client(
            url, api_key=key_from(api_key), stall_timeout_s=stall_timeout_s, trust_env=trust_env
        )
        path = "" if self._client.url.count("/") > 2 else "/v1"
        self._chat_path = f"{path}/chat/completions"
        self._models = ModelList(self._client, f"{path}/models", model)
        self._max_running = max_running
        self._context_tokens = context_tokens
        self._schemas = schemas
        self._jitter = jitter or random.Random()
        self._calls: dict[CallId, _Call] = {}
        self.tokenizer = EstimatedTokenizer() if tokenizer is None else HFTokenizer(tokenizer)

    # -- the door

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer `request`; closing the iterator early closes the connection."""
        if request.call in self._calls:
            raise CallFailed(f"call {request.call!r} is running already")
        call = self._calls[request.call] = _Call()
        try:
            async with aclosing(self._answer(request, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except BackendUnavailable as error:
            self.failure = str(error)
            raise
        except InvalidConfig as error:
            await self._refused(error)
        finally:
            del self._calls[request.call]

    async def abort(self, call: CallId) -> None:
        """Close the connection of `call`; its stream ends with finish `abort`."""
        if call in self._calls:
            self._calls[call].abort()

    async def retain(self, session: SessionId, until_s: float | None) -> None:
        """The server decides alone what it keeps."""

    async def release(self, session: SessionId) -> None:
        """There is no promise to give back."""

    async def warm(self, session: SessionId, token_ids: tuple[int, ...]) -> None:
        """There is no way to ask for it."""

    async def load(self) -> Load:
        """What this client has running; the server does not tell."""
        return Load(running=len(self._calls))

    def evictions(self) -> None:
        """Nobody tells over this door."""
        return

    async def recover(self) -> None:
        """Ask for the server's models until it names the same one again (`ModelList.recovered`)."""
        await self._models.recovered(self._jitter)
        self.failure = None

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        try:
            model, told_tokens = await self._models.find()
        except BaseException as error:
            await self._client.__aexit__(None, None, None)
            if isinstance(error, TryAgain):
                raise BackendUnavailable(str(error)) from None
            raise
        self.capabilities = Capabilities(
            name="openai",
            model=model,
            model_fingerprint=f"openai/{model}",
            context_tokens=self._context_tokens or told_tokens or CONTEXT_TOKENS,
            kv_tokens=_UNLIMITED_TOKENS,
            page_tokens=1,
            max_running=self._max_running,
            schemas=self._schemas,
            remote=True,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for call in self._calls.values():
            call.abort()
        await self._client.__aexit__(kind, error, trace)

    # -- one call

    async def _answer(self, request: Request, call: "_Call") -> AsyncGenerator[Chunk, None]:
        choices = texts_of(request.choices, self.tokenizer)
        model = self.capabilities.model
        body = body_of(request, model, choices, self._schemas)
        begun_s, first_s = now(), None
        text, pieces = Text(), Pieces(request)
        whole, streamed = "", "stream" in body
        try:
            async with aclosing(self._parts(body, _time_left(request))) as parts:
                while (value := await call.next(parts)) is not None:
                    first_s = first_s or now()
                    new = text.add(read_part(value, self._client.url + self._chat_path))
                    whole += new
                    if streamed and (piece := pieces.push(new)):
                        yield Chunk(text=piece)
        except CallFailed as error:
            raise self._explained(error, body) from None
        ended_s = now()
        first_s = (first_s if streamed else begun_s) or ended_s
        times = (first_s - begun_s, ended_s - first_s)
        if call.aborted:
            yield Chunk(finish="abort", usage=self._count(request, text, whole).usage(*times))
            return
        rest = text.end()
        piece = (pieces.rest() if streamed else whole) + rest
        yield self._last(request, text, whole + rest, piece, choices, times)

    async def _parts(self, body: Any, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        """The events of a streamed answer, or a plain answer as the only one."""
        if not body.get("stream"):
            answer = await self._client.post(self._chat_path, body, timeout_s)
            yield {} if answer is None else answer  # an empty body: an answer without a finish
            return
        async with aclosing(self._client.stream(self._chat_path, body, timeout_s)) as events:
            async for event in events:
                yield event

    def _last(
        self,
        request: Request,
        text: Text,
        whole: str,
        piece: str,
        choices: list[str],
        times: tuple[float, float],
    ) -> Chunk:
        """The chunk with the finish. Raises TryAgain where there is none, CallFailed for others."""
        where = self._client.url + self._chat_path
        if text.finish is None:
            raise TryAgain(f"{where}: the answer ended without a finish_reason")
        finish = FINISHES.get(text.finish)
        if finish is None:
            raise CallFailed(f"{where}: the server ended the answer with {text.finish[:100]!r}")
        usage = self._count(request, text, whole).usage(*times)
        if not choices:
            return Chunk(text=piece, finish=finish, usage=usage)
        place = chosen(whole, choices)
        if place is None:
            raise CallFailed(f"{where}: {whole[:200]!r} is none of the choices {choices}")
        scores = tuple(0.0 if other == place else UNLIKELY for other in range(len(choices)))
        return Chunk(finish="stop", usage=usage, choice_logprobs=scores)

    def _count(self, request: Request, text: Text, whole: str) -> Counts:
        """As the server counted; an estimate where it did not, or counted what cannot be."""
        counts = text.counts
        if counts is not None and counts.credible(self.capabilities.context_tokens):
            return counts
        return Counts(len(request.token_ids), len(self.tokenizer.encode(whole)))

    def _explained(self, error: CallFailed, body: dict[str, Any]) -> CallFailed:
        if "response_format" not in body or isinstance(error, TryAgain):
            return error
        return CallFailed(f"{error}; if this server takes no JSON Schema, set schemas to false")

    async def _refused(self, refusal: InvalidConfig) -> NoReturn:
        """A server that took us has refused a call: for what it asks, or whatever is asked now."""
        try:
            await self._models.ask()
        except InvalidConfig as error:
            self.failure = str(error)
            raise BackendUnavailable(self.failure) from None
        except TenterError:
            pass  # it is for other calls to find out
        raise CallFailed(str(refusal)) from None


class _Call:
    """A call on its way, and how to stop it."""

    def __init__(self) -> None:
        self.aborted = False
        self._scope: anyio.CancelScope | None = None

    async def next(self, parts: AsyncIterator[Any]) -> Any:
        """The next part; None where there is none, or the call was aborted."""
        if self.aborted:
            return None
        with anyio.CancelScope() as self._scope:
            return await anext(parts, None)
        return None

    def abort(self) -> None:
        self.aborted = True
        if self._scope is not None:
            self._scope.cancel()


def _time_left(request: Request) -> float | None:
    return None if request.deadline_s is None else request.deadline_s - now()
