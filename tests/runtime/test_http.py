"""The HTTP client against a fake server: every fault has one clear outcome, and nothing is left."""

import asyncio
import base64
import errno
import json
import os
import random
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from bad_server import (
    BadServer,
    Fault,
    answer,
    cut,
    empty,
    endless_line,
    events,
    grammar_error,
    half,
    hang,
    html,
    loris,
    reset,
    stall,
    status,
)

from tenter.runtime.backends import descriptors, http
from tenter.runtime.backends.http import Client
from tenter.runtime.backends.http_exchange import NotBegun
from tenter.runtime.backends.http_text import retry_after_s
from tenter.runtime.errors import (
    BackendUnavailable,
    CallFailed,
    InvalidConfig,
    TenterError,
    TryAgain,
)

PLAIN: dict[str, Any] = {"input_ids": [1, 2, 3], "rid": "a", "sampling_params": {}}
STREAM: dict[str, Any] = PLAIN | {"stream": True}
NOON = 1795262400.0  # Sat, 21 Nov 2026 12:00:00 GMT


@pytest.fixture
async def server() -> AsyncIterator[BadServer]:
    async with BadServer() as running:
        yield running


@pytest.fixture
async def client(server: BadServer) -> AsyncIterator[Client]:
    options: dict[str, Any] = {"stall_timeout_s": 0.2, "answer_timeout_s": 0.4}
    async with Client(server.url + "/", wall=lambda: NOON, **options) as opened:
        yield opened


async def ask(client: Client, streamed: bool, timeout_s: float | None = 5.0) -> list[Any]:
    if streamed:
        return [event async for event in client.stream("/generate", STREAM, timeout_s)]
    return [await client.post("/generate", PLAIN, timeout_s)]


def connections(client: Client) -> int:
    """Open connections of the pool, idle or in use."""
    session = client._session
    assert session is not None
    pool = session.connector
    assert pool is not None
    return sum(map(len, pool._conns.values())) + len(pool._acquired)


async def until(condition: Any) -> None:
    """Wait for what another task of this loop does soon."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_values_and_events(server: BadServer, client: Client) -> None:
    [whole] = await ask(client, streamed=False)
    streamed = await ask(client, streamed=True)

    assert client.url == server.url
    assert streamed[-1]["text"] == whole["text"]
    assert len(streamed) == len(whole["output_ids"]) == 9
    assert await client.get("/health", 5) is None  # an empty body
    assert (await client.get("/v1/models", 5))["data"][0]["id"] == "fake-model"
    assert server.bodies["/generate"] == [PLAIN, STREAM]


async def test_one_connection_serves_one_call_after_the_other(client: Client) -> None:
    for _ in range(3):
        await ask(client, streamed=True)
        await ask(client, streamed=False)

    assert connections(client) == 1


@pytest.mark.slow
async def test_five_hundred_calls_are_in_flight_at_once(server: BadServer) -> None:
    server.next(*[hang()] * 500)
    async with Client(server.url) as client, asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(ask(client, streamed=False)) for _ in range(500)]
        await until(lambda: server.requests["/generate"] == 500)
        for call in calls:
            call.cancel()


FAULTS: list[tuple[str, Fault, type[TenterError], str, type[TenterError], str]] = [
    ("503", status(503), NotBegun, "status 503: no", NotBegun, "status 503: no"),
    ("500", status(500), TryAgain, "status 500", TryAgain, "status 500"),
    ("429", status(429), NotBegun, "status 429", NotBegun, "status 429"),
    ("408", status(408), NotBegun, "status 408", NotBegun, "status 408"),
    ("401", status(401), InvalidConfig, "set api_key", InvalidConfig, "set api_key"),
    ("403", status(403), InvalidConfig, "set api_key", InvalidConfig, "set api_key"),
    ("302", status(302), CallFailed, "redirects", CallFailed, "redirects"),
    ("404", status(404), CallFailed, "status 404", CallFailed, "status 404"),
    ("grammar", grammar_error(), CallFailed, "json grammar", CallFailed, "json grammar"),
    ("html", html(), TryAgain, "not JSON (text/html)", TryAgain, "is text/html, not an event"),
    ("half JSON", answer(b'{"a":'), TryAgain, "not JSON", TryAgain, "not an event stream"),
    ("bad UTF-8", answer(b'"\xff"'), TryAgain, "not JSON", TryAgain, "not an event stream"),
    ("NaN", answer(b"NaN"), TryAgain, "not JSON", TryAgain, "not an event stream"),
    ("deep", answer(b"[" * 10_000), TryAgain, "not JSON", TryAgain, "not an event stream"),
    ("bad event", events(b"{}", b'"\xff"'), TryAgain, "not JSON", TryAgain, "event is not JSON"),
    ("no object", events(b"[1]"), TryAgain, "not JSON", TryAgain, "not a JSON object"),
    ("no DONE", events(b"{}"), TryAgain, "not JSON", TryAgain, "without [DONE]"),
    ("hang", hang(), TryAgain, "nothing came for 0.4 s", TryAgain, "nothing came for 0.4 s"),
    ("stall", stall(), TryAgain, "nothing came for 0.2 s", TryAgain, "nothing came for 0.2 s"),
    ("silence", stall(0), TryAgain, "nothing came for", TryAgain, "nothing came for"),
    ("cut", cut(), TryAgain, "cut off", TryAgain, "cut off"),
    ("cut at once", cut(0), TryAgain, "cut off", TryAgain, "cut off"),
    ("half", half(), TryAgain, "not JSON", TryAgain, "without [DONE]"),
    ("reset", reset(), TryAgain, "was reset", TryAgain, "was reset"),
]


@pytest.mark.parametrize(
    ("fault", "kind", "told", "kind_streamed", "told_streamed"),
    [case[1:] for case in FAULTS],
    ids=[case[0] for case in FAULTS],
)
async def test_every_fault_has_its_error(
    server: BadServer,
    client: Client,
    fault: Fault,
    kind: type[TenterError],
    told: str,
    kind_streamed: type[TenterError],
    told_streamed: str,
) -> None:
    server.next(fault, fault)
    for streamed, wanted, text in ((False, kind, told), (True, kind_streamed, told_streamed)):
        with pytest.raises(wanted) as failure:
            await ask(client, streamed)

        assert type(failure.value) is wanted
        assert f"{server.url}/generate" in str(failure.value)
        assert text in str(failure.value)
    assert server.requests["/generate"] == 2  # nothing was sent again behind the scheduler's back
    [whole] = await ask(client, streamed=False)  # the client is as good as new
    assert whole["text"]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_a_slow_loris_ends_at_the_total_deadline(
    server: BadServer, client: Client, streamed: bool
) -> None:
    server.next(loris(0.02))
    with pytest.raises(TryAgain, match=r"took longer than 0\.3 s"):
        await ask(client, streamed, timeout_s=0.3)
    await until(lambda: server.disconnected == 1)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
async def test_a_deadline_that_has_passed_sends_nothing(
    server: BadServer, client: Client, timeout_s: float
) -> None:
    with pytest.raises(NotBegun, match="deadline had passed"):
        await ask(client, False, timeout_s)
    assert not server.requests


async def test_a_long_wait_before_an_answer_is_no_stall(server: BadServer) -> None:
    server.token_s = 0.05  # a plain answer of nine tokens comes after nine times that
    async with Client(server.url, stall_timeout_s=0.1) as client:
        [whole] = await ask(client, streamed=False)
    assert len(whole["output_ids"]) == 9


@pytest.mark.parametrize(
    ("header", "after_s"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
        ("999999999999", 3600.0),
        ("9" * 400, 3600.0),
        ("soon", None),
        ("-3", None),
        ("1e9", None),
        ("NaN", None),
        ("", None),
        ("²", None),
        ("Sat, 99 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after(header: str, after_s: float | None) -> None:
    assert retry_after_s(header, lambda: NOON) == after_s


async def test_retry_after_reaches_the_caller(server: BadServer, client: Client) -> None:
    server.next(status(503, "2"), status(429, "Sat, 21 Nov 2026 12:01:00 GMT"), status(503))
    server.next(status(429))
    found: list[float | None] = []
    for _ in range(4):
        with pytest.raises(TryAgain) as failure:
            await ask(client, streamed=False)
        found.append(failure.value.after_s)

    assert found == [2.0, 60.0, None, 0.1]


async def test_a_long_message_of_the_server_is_cut(server: BadServer, client: Client) -> None:
    server.next(status(400, message="bad " * 1000))
    with pytest.raises(CallFailed, match=r"status 400: bad bad.*\.\.\.$") as failure:
        await ask(client, streamed=False)
    assert len(str(failure.value)) < 700


async def test_an_answer_longer_than_the_bound_is_not_read_on(
    server: BadServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ANSWER_BYTES", 1 << 20)
    monkeypatch.setattr(
        "tenter.runtime.backends.sse.EventReader.__init__.__defaults__", ("", 1 << 20)
    )
    server.next(answer(b'"' + b"a" * (4 << 20) + b'"'), endless_line(4 << 20))
    with pytest.raises(TryAgain, match="longer than 1048576 bytes"):
        await ask(client, streamed=False)
    with pytest.raises(TryAgain, match="longer than 1048576 bytes"):
        await ask(client, streamed=True)


async def test_a_long_request_is_sent_without_a_warning(server: BadServer, client: Client) -> None:
    body = PLAIN | {"input_ids": list(range(300_000))}
    [first] = [await client.post("/generate", body, 10)]

    assert first["meta_info"]["prompt_tokens"] == 300_000


async def test_a_request_that_json_cannot_hold(server: BadServer, client: Client) -> None:
    for body in ({"text": "\ud800"}, {"text": object()}):
        with pytest.raises(CallFailed, match="/generate: the request has no form in JSON"):
            await client.post("/generate", body, 5)
    assert not server.requests


async def test_any_mix_of_faults_ends_each_call_and_leaves_nothing(server: BadServer) -> None:
    draw = random.Random(7)
    bad = [status(503), status(400), html(), empty(), half(), cut(), cut(0), stall(), reset()]
    bad += [hang(), loris(0.01), answer(b'{"a":'), events(b"{}", b'"\xff"')]
    server.choose = lambda path, body: draw.choice(bad) if draw.random() < 0.3 else None
    told: Counter[str] = Counter()

    async def some(client: Client) -> None:
        for number in range(15):
            try:
                await ask(client, streamed=bool(number % 2), timeout_s=0.5)
                told["answered"] += 1
            except (TryAgain, CallFailed, BackendUnavailable) as error:
                told[type(error).__name__] += 1

    before = asyncio.all_tasks()
    options: dict[str, Any] = {"stall_timeout_s": 0.1, "answer_timeout_s": 0.2}
    async with Client(server.url, **options) as client, asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(some(client))

    assert told.total() == 300
    assert told["answered"] > 150
    await until(lambda: not server.running)
    await until(lambda: asyncio.all_tasks() <= before)


# -- who is there


async def test_a_server_that_is_not_there() -> None:
    async with BadServer() as gone:
        url = gone.url
    async with Client(url) as client:
        for streamed in (False, True):
            with pytest.raises(BackendUnavailable, match=r"refused|failed.*is the server running"):
                await ask(client, streamed)


async def test_a_name_that_nobody_has() -> None:
    async with Client("http://no-such-host.invalid:9") as client:
        with pytest.raises(BackendUnavailable, match=r"http://no-such-host\.invalid:9/health: "):
            await client.get("/health", 10)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_a_server_that_dies_in_the_middle_is_unavailable(
    server: BadServer, streamed: bool
) -> None:
    server.next(stall(0.3))
    async with Client(server.url) as client:
        call = asyncio.ensure_future(ask(client, streamed))
        await until(lambda: server.requests)
        await asyncio.sleep(0.05)
        await server.stop()
        with pytest.raises(BackendUnavailable):
            await call
        await server.start()

        assert await ask(client, streamed)


async def test_a_connection_that_the_server_closed_meanwhile_costs_nothing(
    server: BadServer, client: Client
) -> None:
    await ask(client, streamed=True)
    server.next(reset())  # over the kept connection: what a server does that closes idle ones

    [whole] = await ask(client, streamed=False)

    assert whole["text"]
    assert server.requests["/generate"] == 3
    server.next(reset(), reset())  # but a fresh connection that is reset is an error
    with pytest.raises(TryAgain, match="connection was reset"):
        await ask(client, streamed=False)
    assert server.requests["/generate"] == 5


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_what_must_not_be_sent_twice_is_not(
    server: BadServer, client: Client, streamed: bool
) -> None:
    await ask(client, streamed=True)
    server.next(reset())  # over the kept connection
    with pytest.raises(TryAgain, match="connection was reset") as failure:
        if streamed:
            _ = [event async for event in client.stream("/generate", STREAM, 5, again=False)]
        else:
            await client.post("/generate", PLAIN, 5, again=False)
    assert not isinstance(failure.value, NotBegun)  # the server may have heard it
    assert server.requests["/generate"] == 2


# -- when this machine is short of something

SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)


@pytest.mark.parametrize("code", SHORT, ids=errno.errorcode.get)
async def test_a_want_on_our_side_is_no_fault_of_the_server(
    server: BadServer, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(address: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(http, "_open_socket", refuse)
    async with Client(server.url) as client:
        for streamed in (False, True):
            with pytest.raises(NotBegun, match=rf"{server.url}/generate: .*spare.*ulimit -n"):
                await ask(client, streamed)


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "no more"), OSError("Multiple exceptions: [Errno 24] x, y")]
)
async def test_a_server_that_cannot_be_looked_for_is_not_gone(
    server: BadServer, client: Client, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    async def refuse(*address: Any) -> Any:
        raise error

    monkeypatch.setattr(asyncio, "open_connection", refuse)
    server.next(cut())
    with pytest.raises(TryAgain, match="cut off"):
        await ask(client, streamed=True)


def test_a_dead_server_with_an_address_that_we_have_not_is_dead() -> None:
    told = "Multiple exceptions: [Errno 99] Cannot assign requested address, [Errno 111] refused"
    assert not descriptors.is_short(OSError(told))
    assert descriptors.is_short(OSError("Multiple exceptions: [Errno 111] x, [Errno 24] y"))
    assert not descriptors.is_short(TimeoutError())
    assert not descriptors.is_short(ValueError("[Errno 24]"))


@pytest.mark.parametrize(("soft", "hard"), [(256, None), (10, 40), (10, 10)])
def test_a_client_may_open_what_the_limit_of_files_allows(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int | None
) -> None:
    limits = [(soft, resource.RLIM_INFINITY if hard is None else hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append(limit))

    assert descriptors.connections() == {None: 4096, 40: 20, 10: 16}[hard]
    assert limits[-1] == ((hard or 1 << 16), limits[0][1])  # raised, and the hard one kept


def test_a_limit_that_cannot_be_raised_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int, limit: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert descriptors.connections() == 128


async def test_a_client_asks_for_no_more_connections_than_it_may_have(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "connections", lambda: 3)
    server.token_s = 0.01
    async with Client(server.url) as client:
        bodies = [PLAIN | {"rid": str(number)} for number in range(12)]
        posts = (client.post("/generate", body, 5) for body in bodies)
        assert all(await asyncio.gather(*posts))
        assert client.connections == 3 >= connections(client)


# -- leaving early


async def test_closing_a_stream_early_closes_its_connection(
    server: BadServer, client: Client
) -> None:
    server.token_s, server.answer_tokens = 0.01, 10_000
    stream = client.stream("/generate", STREAM | {"sampling_params": {"max_new_tokens": 9999}}, 60)
    async for event in stream:
        assert event["text"]
        break
    assert server.running
    await stream.aclose()

    assert connections(client) == 0
    await until(lambda: not server.running and server.disconnected == 1)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_a_hundred_cancels_leave_nothing_behind(streamed: bool) -> None:
    async with BadServer() as server, Client(server.url) as client:
        server.next(*[hang(), stall(0.2)] * 50)
        before = asyncio.all_tasks()
        calls = [asyncio.ensure_future(ask(client, streamed, None)) for _ in range(100)]
        await until(lambda: server.requests["/generate"] == 100)
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)

        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        assert connections(client) == 0
        await until(lambda: server.disconnected == 100)
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


async def test_leaving_the_client_leaves_no_file_open(server: BadServer) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        async with Client(server.url) as client:
            await ask(client, streamed=True)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


# -- the URL and its secrets


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:30000", "ftp://x", "http://", "http://[::1", "http://h:0", "http://h:99999"]
    + ["http://h?x=1", "http://h#f", "h", "file:///etc/passwd"],
)
def test_a_url_that_is_none_says_what_is_wanted(url: str) -> None:
    with pytest.raises(InvalidConfig, match=r"such as http://127\.0\.0\.1:30000"):
        Client(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2/x@host:80",  # urlsplit's own error quotes it
        "http://me:hunter2#x@host",
        "http://me:123#hunter2@host",
        "http://me:123/hunter2@host/v1",
        "http://me:123?hunter2@host",
        "http://[hunter2@host",
        "me:hunter2@host",
        "hunter2",
        "hunter2:80",
        "http://host?key=hunter2",
        "http://host/#hunter2",
    ],
)
def test_what_may_be_a_secret_in_a_bad_url_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidConfig, match=r"such as http://127\.0\.0\.1:30000") as failure:
        Client(url)
    for secret in ("hunter2", "123"):
        assert secret not in str(failure.value)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__ or failure.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:hunter2@127.0.0.1:1/v1/", "http://127.0.0.1:1/v1"),
        ("https://me:hunter2@h", "https://h"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_credentials_of_a_url_are_not_shown(url: str, shown: str) -> None:
    client = Client(url)

    assert client.url == shown
    assert "hunter2" not in repr(client)


async def test_credentials_are_sent_and_shown_nowhere(server: BadServer) -> None:
    server.api_key = "another"  # the fake tells the headers that it refuses
    address = server.url.removeprefix("http://")
    pair = base64.b64encode(b"me:hunter2").decode()
    clients = {"Bearer canary": Client(server.url, api_key="canary")}
    clients[f"Basic {pair}"] = Client(f"http://me:hunter2@{address}")
    for sent, client in clients.items():
        async with client:
            with pytest.raises(InvalidConfig, match="set api_key") as failure:
                await client.get("/health", 5)
        assert server.headers[-1]["Authorization"] == sent
        for secret in ("canary", "hunter2", pair):
            assert secret not in str(failure.value) + repr(failure.value) + repr(client)
        assert failure.value.__cause__ is None


KEY = "sk-CANARY-" + "x1y2" * 10


@pytest.mark.parametrize("space", [*range(440, 512, 7), 0])
async def test_a_secret_at_the_end_of_a_long_message_is_not_shown_in_part(
    server: BadServer, space: int
) -> None:
    message = "a " * (space // 2) + KEY
    told = [status(500, message=message), status(400, message=message)]
    told += [answer(message.encode(), "text/plain"), answer(b"{}", f"text/{message[-400:]}")]
    server.next(*told)
    async with Client(server.url, api_key=KEY) as client:
        for streamed in (False, False, True, True):
            with pytest.raises(CallFailed) as failure:
                await ask(client, streamed)
            assert "sk-C" not in str(failure.value)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_a_secret_in_an_error_within_an_answer_is_not_shown(
    server: BadServer, streamed: bool
) -> None:
    deep: Any = KEY
    for _ in range(20):
        deep = [deep]
    error = {"message": f"bad header Bearer {KEY}", "more": {KEY: [KEY]}, "deep": deep}
    body = json.dumps({"error": error}).encode()
    server.next(events(body, b"[DONE]") if streamed else answer(b"[" + body + b"]"))
    async with Client(server.url, api_key=KEY) as client:
        found = await ask(client, streamed)
    assert KEY not in json.dumps(found)
    assert "bad header Bearer ***" in json.dumps(found)


@pytest.mark.parametrize("key", ["a\r\nX-Evil: 1", "schlüssel"])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(InvalidConfig, match="api_key has characters"):
        Client("http://h", api_key=key)


def test_credentials_twice() -> None:
    with pytest.raises(InvalidConfig, match="credentials are given twice"):
        Client("http://me:pw@h", api_key="k")


async def test_a_proxy_of_the_environment_is_used_only_if_asked(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with Client(server.url) as client:
        assert await client.get("/health", 5) is None


def test_the_time_of_day_is_the_default_for_dates_only() -> None:
    assert retry_after_s("Thu, 01 Jan 1970 00:00:00 GMT", time.time) == 0.0
