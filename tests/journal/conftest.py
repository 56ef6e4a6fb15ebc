"""Real Redis servers for the journal's tests; without redis-server those are skipped."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this file

import redis_server
from redis_server import RedisServer

NEEDING = {"redis", "start_redis"}


def _lacking() -> str:
    if redis_server.BINARY is None:
        return "there is no redis-server here (Debian: apt-get install redis-server)"
    if importlib.util.find_spec("redis") is None:
        return "there is no redis-py here: pip install 'tenter[redis]'"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """TENTER_REQUIRE_REDIS=1 makes it an error that there is no Redis."""
    lacking = _lacking()
    needing = [item for item in items if _needs_redis(item)]
    if not needing or not lacking:
        return
    if os.environ.get("TENTER_REQUIRE_REDIS") == "1":
        raise pytest.UsageError(f"{lacking}, and TENTER_REQUIRE_REDIS asks for it")
    for item in needing:
        item.add_marker(pytest.mark.skip(reason=lacking))


def _needs_redis(item: pytest.Item) -> bool:
    if Path(__file__).parent not in item.path.parents or not isinstance(item, pytest.Function):
        return False
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return bool(NEEDING & set(item.fixturenames)) or "redis" in values


@pytest.fixture(scope="session")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis(_redis: RedisServer) -> RedisServer:
    """An empty server that all tests share: not to be killed.

    Libraries under test, such as Ray, may end the children of the process that uses them; then it
    is started again.
    """
    if not _redis.runs:
        _redis.start()
    _redis.ask("FLUSHALL")
    return _redis


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """`start_redis(*flags)`: a server of the test's own."""
    servers: list[RedisServer] = []

    def start(*flags: str) -> RedisServer:
        server = RedisServer(tmp_path / f"redis{len(servers)}", *flags)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()
