"""Where runs are kept: URLs of a Redis, and the servers that are refused."""

import asyncio
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from journals import made_manifest

from tenter.runtime.errors import InvalidConfig, JournalError
from tenter.runtime.journal import Store
from tenter.runtime.journal.address import is_redis, parse_redis
from tenter.runtime.journal.redis_link import check_server, leave_idle

SENTINEL = "redis+sentinel://ops:env:PW@a:1,b,[::1]:3/main/2?prefix=team&patience_s=600"


def test_all_that_an_address_may_say():
    plain = parse_redis("redis://localhost")
    assert (plain.nodes, plain.kind, plain.tls, plain.database) == (
        (("localhost", 6379),),
        "",
        False,
        0,
    )
    found = parse_redis(SENTINEL)
    assert found.nodes == (("a", 1), ("b", 26379), ("::1", 3))
    assert (found.kind, found.primary, found.database) == ("sentinel", "main", 2)
    assert (found.user, found.password) == ("ops", "env:PW")
    assert (found.options.prefix, found.options.patience_s) == ("team", 600.0)
    assert parse_redis("rediss+cluster://env:PW@a:7000,b:7001").tls
    assert parse_redis("redis://:env:PW@h/3").database == 3


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://user:hunter2secret@h/0", "write env:NAME for it"),
        ("redis://hunter2secret@h/0", "write env:NAME for it"),
        ("redis://a:1,b:2/0", "several hosts are redis\\+sentinel"),
        ("redis+sentinel://a:1", "name the primary"),
        ("redis+cluster://a:1/3", "a cluster has no databases"),
        ("redis://h/zero", "it is a number, as in /0"),
        ("redis://h:99999/0", "is no HOST:PORT"),
        ("redis://:6379/0", "is no HOST:PORT"),
        ("redis://h/0?patience=9", "there is no option 'patience'; the options: prefix, folder"),
        ("redis://h/0?patience_s=never", "it must be seconds above 0"),
        ("redis://h/0?prefix=a{b}", "prefix: letters, digits"),
        ("redis:h", "a Redis is redis://HOST:PORT/DATABASE"),
        ("redis+magic://h", "a Redis is redis://HOST:PORT/DATABASE"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_without_the_password(url: str, said: str):
    with pytest.raises(InvalidConfig, match=said) as raised:
        Store(url)
    assert "hunter2secret" not in str(raised.value)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(text: str):
    for scheme in ("redis://", "rediss+sentinel://", "redis+cluster://", "redis"):
        with suppress(InvalidConfig):
            parse_redis(scheme + text)


def test_a_folder_is_no_redis(tmp_path: Path):
    assert not is_redis("redis") and not is_redis(tmp_path) and not is_redis(None)
    assert Store("redis").home == Path("redis")
    assert is_redis("redis://h") and is_redis("rediss+cluster://h")


def test_a_home_in_redis_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TENTER_HOME", "redis://127.0.0.1:1/0?folder=beside")
    store = Store()
    assert store.trace_path("run_1") == Path("beside/runs/run_1/trace.jsonl")
    assert store.shown == "redis://127.0.0.1:1/0"


def test_a_password_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("redis")
    monkeypatch.delenv("PW", raising=False)
    with pytest.raises(InvalidConfig, match="the environment variable PW is not set"):
        Store("redis://env:PW@127.0.0.1:1/0").find("last")


# ---- servers that are refused ------------------------------------------------------------------


def test_servers_that_cannot_hold_a_journal_are_refused():
    address = parse_redis("redis://h")
    with pytest.raises(JournalError, match=r"this is Redis 6\.2\.14; a journal needs Redis 7"):
        check_server(address, {"redis_version": "6.2.14"}, "always")
    evicting = {"redis_version": "7.0.0", "maxmemory": 100, "maxmemory_policy": "allkeys-lru"}
    with pytest.raises(JournalError, match="set maxmemory-policy noeviction"):
        check_server(address, evicting, None)


@pytest.mark.parametrize(
    ("version", "file", "fsync", "keeps"),
    [
        ("7.0.15", 1, "always", "always"),
        ("7.0.15", 1, "everysec", "everysec"),
        ("7.0.15", 1, None, "everysec"),
        ("7.2.0", 1, "everysec", "waitaof"),
        ("8.0.1", 1, None, "waitaof"),
        ("7.2.0", 1, "no", "no"),
        ("7.2.0", 0, "always", "no"),
    ],
)
def test_how_a_server_keeps_what_it_is_given(version: str, file: int, fsync: str, keeps: str):
    info = {"redis_version": version, "aof_enabled": file}
    assert check_server(parse_redis("redis://h"), info, fsync).keeps == keeps


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """`answering(reply)`: the URL of a server that gives each command the same reply."""
    servers: list[socketserver.ThreadingTCPServer] = []

    def start(reply: bytes) -> str:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while line := self.rfile.readline():
                    for _ in range(int(line[1:])):
                        self.rfile.read(int(self.rfile.readline()[1:]) + 2)
                    self.wfile.write(reply)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"redis://127.0.0.1:{server.server_address[1]}/0"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "it is loading its data"),
        (b"-NOAUTH Authentication required.\r\n", "Redis refuses us"),
        (b"-MISCONF Redis is configured to save\r\n", "it cannot write to its disk"),
        (b"HTTP/1.1 400 Bad Request\r\n", "what answers there is no Redis"),
        (b"$34\r\n# Server\r\nredis_version:6.2.14\r\n\r\n\r\n", r"this is Redis 6\.2\.14"),
    ],
)
def test_what_a_server_says_is_told(
    answering: Callable[[bytes], str], tmp_path: Path, reply: bytes, said: str
):
    pytest.importorskip("redis")
    with pytest.raises(JournalError, match=said):
        Store(f"{answering(reply)}?folder={tmp_path}&timeout_s=2").create(made_manifest())


def test_a_server_that_is_not_there_is_said(tmp_path: Path):
    pytest.importorskip("redis")
    with pytest.raises(JournalError, match="does not answer: .*; start it, or name another --home"):
        Store(f"redis://127.0.0.1:1/0?folder={tmp_path}").find("last")


def test_a_connection_that_does_not_close_is_left():
    class Pool:
        async def disconnect(self, inuse_connections: bool) -> None:
            raise redis.exceptions.TimeoutError("Timed out closing connection after 10.0")

    client = SimpleNamespace(connection_pool=Pool())
    asyncio.run(leave_idle(parse_redis("rediss://cache"), client))
