"""HTTP tools: where they may go, what they bring back, and what a hostile server cannot make them do."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web

from tenter.tools import InvalidArguments, InvalidTool, ToolError, call
from tenter.tools.addresses import Reach, Unreachable
from tenter.tools.call import did_nothing
from tenter.tools.context import ToolContext, enter
from tenter.tools.http import fetch_tool, http_tool

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
LOCAL = Reach(networks=("127.0.0.0/8",), ports=tuple(range(1, 65536)))

FORBIDDEN = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0x7f.1/",
    "http://127.0.0.1.:80/",
    "http://0/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::10.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[ff02::1]/",
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://172.16.0.1/",
    "http://172.31.255.254/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://100.64.0.1/",
    "http://192.0.0.1/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://user@127.0.0.1/",
    "http://example.org@127.0.0.1/",
    "http://127.0.0.1#@example.org/",
    "http://127.0.0.1\\@example.org/",
    "http://example.org:22/",
    "http://example.org:6379/",
    "https://example.org:8080/",
    "ftp://example.org/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "data:text/plain,x",
    "dict://127.0.0.1/",
    "//127.0.0.1/",
    "http:///",
    "http://",
    "127.0.0.1",
    "http://[::1",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
]


@pytest.mark.parametrize("url", FORBIDDEN)
async def test_no_connection_is_made_to_a_forbidden_address(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dialled(*_: Any) -> None:
        raise AssertionError(f"{url} was dialled")

    monkeypatch.setattr(socket.socket, "connect", dialled)
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", dialled)
    with pytest.raises(ToolError):
        await call(fetch_tool(), {"url": url})


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_a_name_that_turns_private_is_not_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a first look says a public address, the one that is dialled is private."""
    loop = asyncio.get_running_loop()

    async def resolved(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]

    async def dialled(*_: Any) -> None:
        raise AssertionError("dialled")

    monkeypatch.setattr(loop, "getaddrinfo", resolved)
    monkeypatch.setattr(loop, "sock_connect", dialled)
    with pytest.raises(ToolError, match=r"127\.0\.0\.1 is no public address"):
        await call(fetch_tool(), {"url": "http://rebound.example.org/"})


async def test_a_redirect_to_a_private_address_is_not_followed() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://169.254.169.254/latest/")

    async with serving(answer) as url:
        with pytest.raises(ToolError, match=r"169\.254\.169\.254"):
            await call(fetch_tool(reach=LOCAL), {"url": url})


@pytest.mark.parametrize(
    "to",
    ["", "http://169.254.169.254/", "http://127.0.0.1:9/"],
    ids=["garbage", "redirect-refused", "redirect-unreachable"],
)
async def test_what_a_server_has_heard_may_have_had_an_effect(to: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if to:
            raise web.HTTPSeeOther(to)
        return web.Response(text="{", content_type="application/json")

    async with serving(answer) as url:
        tool = http_tool("post", url, {"q": str}, method="POST")
        with pytest.raises(ToolError) as raised:
            await call(tool, {"q": "x"})
    assert not did_nothing(raised.value)


async def test_what_nobody_has_heard_had_none() -> None:
    tool = http_tool("post", "http://127.0.0.1:9/", {"q": str}, method="POST")
    with pytest.raises(ToolError) as raised:
        await call(tool, {"q": "x"})
    assert did_nothing(raised.value)


async def test_redirects_have_an_end() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/again")

    async with serving(answer) as url:
        with pytest.raises(ToolError, match="more than 5 redirects"):
            await call(fetch_tool(reach=LOCAL), {"url": url})


async def test_headers_stay_with_the_server_they_are_meant_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEY", "canary-1234")
    seen: list[str | None] = []

    async def other(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.Response(text="there")

    async with serving(other) as second:

        async def first(request: web.Request) -> web.StreamResponse:
            assert request.headers["Authorization"] == "Bearer canary-1234"
            raise web.HTTPFound(second)

        async with serving(first) as url:
            tool = http_tool(
                "go", url, {}, headers={"Authorization": "Bearer env:KEY"}, reach=LOCAL
            )
            assert (await call(tool, {}))["body"] == "there"
    assert seen == [None]


async def test_an_answer_and_an_error_do_not_show_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "canary-1234")

    async def echo(request: web.Request) -> web.StreamResponse:
        return web.Response(text=f"you said {request.headers['X-Key']}", status=403)

    async with serving(echo) as url:
        tool = http_tool("echo", url, {}, headers={"X-Key": "env:KEY"})
        found = await call(tool, {})
    assert found["status"] == 403
    assert "canary" not in json.dumps(found)
    assert "canary" not in repr(tool)


async def test_parameters_are_encoded_into_the_path_the_query_and_the_body() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        return web.json_response([request.raw_path, request.method, body])

    async with serving(echo) as url:
        get = http_tool("get", url + "/orders/{id}", {"id": str, "q": str})
        found = await call(get, {"id": "a/../b?c", "q": "x&y"})
        assert found["json"] == ["/orders/a%2F..%2Fb%3Fc?q=x%26y", "GET", None]
        with pytest.raises(InvalidArguments, match="id"):
            await call(get, {"id": "..", "q": ""})
        post = http_tool("post", url + "/orders", {"n": int}, method="POST")
        assert (await call(post, {"n": 3}))["json"] == ["/orders", "POST", {"n": 3}]
        assert (get.effect, post.effect) == ("pure", "once")


async def test_an_idempotent_request_says_its_key() -> None:
    keys: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        keys.append(request.headers.get("Idempotency-Key"))
        return web.json_response({})

    async with serving(answer) as url:
        tool = http_tool("pay", url, {}, method="POST", effect="idempotent", retries=1)
        enter(ToolContext(key="run/1/pay"))
        await call(tool, {})
        enter(ToolContext())
    assert keys == ["run/1/pay"]


async def test_an_endless_answer_is_cut_and_a_slow_one_ends_in_time() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(b"x" * 10_000 if request.path == "/fast" else b"x")
                if request.path == "/slow":
                    await asyncio.sleep(0.01)
        return response

    async with serving(endless) as url:
        found = await call(fetch_tool(reach=LOCAL, max_bytes=1000), {"url": url + "/fast"})
        assert "first 1000 bytes" in found["cut"]
        with pytest.raises(ToolError, match=r"within 0\.3 s"):
            await call(fetch_tool(reach=LOCAL, timeout_s=0.3), {"url": url + "/slow"})


async def test_a_compressed_bomb_is_cut() -> None:
    import gzip

    bomb = gzip.compress(b"0" * 50_000_000)

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    async with serving(answer) as url:
        found = await call(fetch_tool(reach=LOCAL, max_bytes=1000), {"url": url})
    assert len(found["body"]) < 1200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 200",
    ],
)
async def test_garbage_is_an_error_of_the_tool(raw: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ToolError):
            await call(fetch_tool(reach=LOCAL), {"url": f"http://127.0.0.1:{port}/"})


def test_what_cannot_work_is_refused_when_the_tool_is_made() -> None:
    for url in ("ftp://x/", "https://{host}/", "https://user:pw@host/", "orders"):
        with pytest.raises(InvalidTool):
            http_tool("x", url, {"host": str})
    with pytest.raises(InvalidTool, match="id"):
        http_tool("x", "https://host/{id}", {})


def test_reach_names_hosts() -> None:
    reach = Reach(hosts=("api.example.org", ".example.net"))
    for host in ("api.example.org", "API.example.org.", "a.example.net", "a.b.example.net"):
        reach.check_host(host)
    for host in ("example.org", "xapi.example.org", "example.net.evil.org", "notexample.net"):
        with pytest.raises(Unreachable):
            reach.check_host(host)
