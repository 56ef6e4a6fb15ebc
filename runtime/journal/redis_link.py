"""Connections to the Redis of an address, what its server is, and what its errors mean.

redis-py is told to try nothing again by itself: whoever asks knows what may be asked twice.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidConfig, JournalError
from .address import RedisAddress

LEAST_MAJOR = 7
_PASSING = ("MISCONF", "MASTERDOWN", "NOREPLICAS", "BUSY", "UNBLOCKED", "OOM", "READONLY")
_REFUSED = ("NOAUTH", "WRONGPASS", "NOPERM")


class RedisAway(Exception):
    """Redis cannot answer now; the same may be asked again. The message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a journal has to know of its Redis server.

    `keeps` says how it puts writes on the disk: "always" before it answers, "waitaof" when it is
    asked, "everysec" about each second, "no" never, or whenever it likes.
    """

    version: tuple[int, ...]
    keeps: str


def need_redis() -> None:
    """Raises InvalidConfig where redis-py is not installed."""
    try:
        import redis  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise InvalidConfig("a home in Redis needs redis-py: pip install 'tenter[redis]'") from None


def _options(address: RedisAddress) -> dict[str, Any]:
    options: dict[str, Any] = {
        "username": address.user or None,
        "password": address.secret(),
        "socket_timeout": address.options.timeout_s,
        "socket_connect_timeout": address.options.timeout_s,
        "protocol": 2,
    }
    if address.tls:
        options["ssl"] = True
        named = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
        for name, option in named.items():
            if getattr(address.options, name):
                options[option] = getattr(address.options, name)
    return options


def connect(address: RedisAddress) -> Any:
    """A client that waits for its answers, for what is asked before a run and beside it."""
    need_redis()
    from redis import Redis, RedisCluster
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode
    from redis.retry import Retry
    from redis.sentinel import Sentinel

    options: dict[str, Any] = {**_options(address), "retry": Retry(NoBackoff(), 0)}
    with answering(address):
        if address.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in address.nodes]
            return RedisCluster(startup_nodes=nodes, **options)
        options["db"] = address.database
        if address.kind == "sentinel":
            sentinel: Any = Sentinel(
                address.nodes, sentinel_kwargs=_of_sentinel(options), **options
            )
            return sentinel.master_for(address.primary)
    host, port = address.nodes[0]
    return Redis(host=host, port=port, **options)


def connect_async(address: RedisAddress) -> Any:
    """A redis-py asyncio client, for a journal. It connects when it is first asked."""
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {**_options(address), "retry": Retry(NoBackoff(), 0)}
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.nodes]
        return RedisCluster(startup_nodes=nodes, **options)
    options["db"] = address.database
    if address.kind == "sentinel":
        sentinel: Any = Sentinel(address.nodes, sentinel_kwargs=_of_sentinel(options), **options)
        return sentinel.master_for(address.primary)
    host, port = address.nodes[0]
    return Redis(host=host, port=port, **options)


async def close_async(address: RedisAddress, client: Any) -> None:
    """Let go of what `connect_async` gave, the Sentinels too, which redis-py forgets."""
    watchers: list[Any] = []
    if address.kind == "sentinel":
        watchers = client.connection_pool.sentinel_manager.sentinels
    for each in (client, *watchers):
        with suppress(RedisAway), answering(address):
            await each.aclose()


async def leave_idle(address: RedisAddress, client: Any) -> None:
    """Leave connections that nobody uses: the name may lead to another server by now."""
    with suppress(RedisAway), answering(address):  # over TLS, one that hangs does not close
        await client.connection_pool.disconnect(inuse_connections=False)


def _of_sentinel(options: dict[str, Any]) -> dict[str, Any]:
    """Sentinels have no databases; their passwords are rarely set, and then not the server's."""
    return {k: v for k, v in options.items() if k not in ("db", "username", "password")}


@contextmanager
def heeding() -> Generator[None]:
    """Raise CancelledError where the task was cancelled and what it did has not heeded that.

    redis-py writes within asyncio.wait_for, which until Python 3.12 loses a cancel that comes when
    the write is just done (CPython issue 81839).
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a client that waits, in a thread
        task = None
    if task is None:
        yield
        return
    before = task.cancelling()
    try:
        yield
    except Exception as error:
        if task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError


@contextmanager
def answering(address: RedisAddress) -> Generator[None]:
    """Redis's errors as ours: RedisAway for what may pass, JournalError for what will not.

    A task that was cancelled meanwhile ends (see `heeding`).
    """
    with heeding(), _named(address):
        yield


@contextmanager
def _named(address: RedisAddress) -> Generator[None]:
    from redis import exceptions

    try:
        yield
    except exceptions.AuthenticationError as error:
        raise JournalError(
            f"{address.shown}: Redis refuses us: {str(error).rstrip('.')}; name the environment "
            "variable that holds its password, as in redis://env:REDIS_PASSWORD@host:6379/0"
        ) from error
    except exceptions.NoPermissionError as error:
        raise JournalError(f"{address.shown}: Redis refuses us: {error}") from error
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise RedisAway(_cause(error)) from error
    except exceptions.InvalidResponse as error:
        raise RedisAway(f"what answers there is no Redis ({error})") from error
    except (
        exceptions.ReadOnlyError,
        exceptions.OutOfMemoryError,
        exceptions.ClusterError,
        exceptions.ClusterDownError,
        exceptions.TryAgainError,
        exceptions.RedisClusterException,
    ) as error:
        raise RedisAway(_cause(error)) from error
    except exceptions.NoScriptError:
        raise
    except exceptions.RedisError as error:
        text = str(error)
        if text.startswith(_REFUSED):
            raise JournalError(f"{address.shown}: Redis refuses us: {text}") from error
        if text.startswith(_PASSING):
            raise RedisAway(_cause(error)) from error
        raise JournalError(f"{address.shown}: {text}") from error


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    for sign, meaning in (
        ("OOM", "it is out of memory: raise its maxmemory"),
        ("maxmemory", "it is out of memory: raise its maxmemory"),
        ("loading", "it is loading its data"),
        ("read only", "it is a read-only replica"),
        ("MISCONF", "it cannot write to its disk"),
    ):
        if sign in text:
            return f"{meaning} ({text})"
    return text


def check_server(address: RedisAddress, info: dict[str, Any], fsync: str | None) -> Server:
    """What the server is. Raises JournalError for one that cannot hold a journal.

    `info` is INFO's answer, `fsync` its setting appendfsync, None where that is a secret.
    """
    text = str(info.get("redis_version", "0"))
    version = tuple(int(part) for part in text.split(".") if part.isdecimal())
    if version < (LEAST_MAJOR,):
        raise JournalError(
            f"{address.shown}: this is Redis {text}; a journal needs Redis {LEAST_MAJOR} or later"
        )
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys") and int(info.get("maxmemory", 0)):
        raise JournalError(
            f"{address.shown}: it throws keys away when its memory is full (maxmemory-policy "
            f"{policy}), journals among them; set maxmemory-policy noeviction"
        )
    if not int(info.get("aof_enabled", 0)):
        return Server(version, "no")
    if fsync in ("always", "no"):
        return Server(version, fsync)
    able = version >= (7, 2) and address.kind != "cluster"
    return Server(version, "waitaof" if able else "everysec")
