"""From URLs to backends: one for each replica, and for each data-parallel rank of one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ...errors import BackendUnavailable, InvalidConfig, TryAgain
from ..http import Client
from ..http_text import key_from
from .backend import SGLangBackend
from .health import Patience, ask
from .info import ServerInfo
from .tokens import compare, open_tokenizer


@dataclass(frozen=True, slots=True)
class _Asked:
    """What came of asking one server: its info, or why there is none."""

    url: str  # without credentials
    given: str
    info: ServerInfo | None
    failure: str | None


def connect(
    urls: Sequence[str],
    *,
    tokenizer: str | Path | None = None,
    retention: str = "auto",
    api_key: str | None = None,
    max_running: int | None = None,
    kv_tokens: int | None = None,
) -> AbstractAsyncContextManager[list[SGLangBackend]]:
    """The replicas at `urls`, which all serve one model, ready for use.

    `tokenizer` is a folder or a hub id; by default it is where the server has it. `retention`
    forces one of pins, sessions, priority, touch and none. `api_key` names the environment variable
    that holds the servers' key. `max_running` and `kv_tokens` (of each replica) leave room for
    other clients. One that does not answer while another does is returned with `failure` set, to
    be recovered.

    Raises BackendUnavailable if none answers, InvalidConfig if they serve different models or if
    there is no key under that name.
    """
    return open_backends(
        urls,
        tokenizer=tokenizer,
        retention=retention,
        key=key_from(api_key),
        max_running=max_running,
        kv_tokens=kv_tokens,
    )


@asynccontextmanager
async def open_backends(
    urls: Sequence[str],
    *,
    tokenizer: str | Path | None = None,
    retention: str = "auto",
    key: str | None = None,
    max_running: int | None = None,
    kv_tokens: int | None = None,
    random: Random | None = None,
    patience: Patience | None = None,
) -> AsyncGenerator[list[SGLangBackend], None]:
    """`connect` with the key itself, and with what no user sets."""
    if not urls:
        raise InvalidConfig("an SGLang model needs a url, such as url=http://127.0.0.1:30000")
    asked = await asyncio.gather(*(_ask(url, key) for url in urls))
    first = _check(asked)
    model = await asyncio.to_thread(open_tokenizer, tokenizer, _info(first), first.url)
    async with Client(first.given, api_key=key) as client:
        await compare(model, client, given=tokenizer is not None)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                SGLangBackend(
                    one.given,
                    model,
                    info=one.info or first.info,
                    failure=one.failure,
                    rank=rank,
                    retention=retention,
                    api_key=key,
                    max_running=max_running,
                    kv_tokens=kv_tokens,
                    random=random,
                    patience=patience,
                )
            )
            for one in asked
            for rank in _ranks(one.info or first.info)
        ]


async def ask_server(url: str, key: str | None = None) -> ServerInfo:
    """What the server at `url` says of itself; BackendUnavailable where nobody answers."""
    async with Client(url, api_key=key) as client:
        return await ask(client)


async def _ask(url: str, key: str | None) -> _Asked:
    """InvalidConfig is the user's to mend, and raised; a server that is away may come back."""
    async with Client(url, api_key=key) as client:
        try:
            return _Asked(client.url, url, await ask(client), None)
        except (BackendUnavailable, TryAgain) as error:
            return _Asked(client.url, url, None, str(error))


def _check(asked: Sequence[_Asked]) -> _Asked:
    """The first server that answers; the others that do must serve the same."""
    found = [one for one in asked if one.info is not None]
    if not found:
        reasons = "\n".join(f"  {one.failure}" for one in asked)
        raise BackendUnavailable(
            f"no SGLang server answers:\n{reasons}\nstart one with python -m sglang.launch_server, "
            "and wait until its /health answers"
        )
    first = found[0]
    for one in found[1:]:
        if _info(one).fingerprint != _info(first).fingerprint:
            raise InvalidConfig(
                f"the replicas of one model must be alike: {first.url} serves "
                f"{_served(first)}, {one.url} serves {_served(one)}"
            )
    return first


def _info(one: _Asked) -> ServerInfo:
    assert one.info is not None
    return one.info


def _served(one: _Asked) -> str:
    info = _info(one)
    return f"{info.model_path} (weights {info.weight_version or '?'}, {info.dtype or '?'})"


def _ranks(info: ServerInfo | None) -> Sequence[int | None]:
    return (None,) if info is None or info.dp_size <= 1 else range(info.dp_size)
