"""A fake language model server for tests, with faults on demand.

It speaks SGLang's /generate and the OpenAI dialect well enough that a client cannot tell, with
answers derived from the input. `next` and `choose` inject faults over that working fake.

    async with BadServer() as server:
        server.next(status(503, retry_after="2"), None, cut())   # then all is well again
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from fake_model import FakeModel

GENERATION = ("/generate", "/v1/chat/completions")
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


@dataclass(frozen=True)
class Fault:
    """What is done instead of answering well. `share` of the good answer's bytes goes out first."""

    kind: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    share: float = 0.5
    every_s: float = 0.2


def status(code: int, retry_after: str | None = None, message: str = "no") -> Fault:
    """An error status with a JSON body."""
    headers = {"Retry-After": retry_after} if retry_after is not None else {}
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return Fault("answer", code, {"Content-Type": "application/json", **headers}, body)


def grammar_error() -> Fault:
    """What SGLang says to a JSON schema that its grammar backend does not take."""
    return status(400, message='Failed to compile json grammar: Unsupported type "foo"\n')


def answer(body: bytes, content_type: str = "application/json") -> Fault:
    """Any bytes with status 200: garbage, HTML, NaN, nothing, a list."""
    return Fault("answer", 200, {"Content-Type": content_type}, body)


def html() -> Fault:
    return answer(HTML, "text/html")


def empty() -> Fault:
    return answer(b"")


def events(*payloads: bytes) -> Fault:
    """An event stream of these payloads, well framed, without `[DONE]`."""
    return answer(b"".join(b"data: " + data + b"\n\n" for data in payloads), "text/event-stream")


def endless_line(size_bytes: int) -> Fault:
    return answer(b"data: " + b"a" * size_bytes, "text/event-stream")


def hang() -> Fault:
    """Takes the request and says nothing."""
    return Fault("hang")


def stall(share: float = 0.5) -> Fault:
    """Falls silent in the middle of the answer."""
    return Fault("stall", share=share)


def loris(every_s: float = 0.2) -> Fault:
    """One byte of the good answer at a time."""
    return Fault("loris", share=1.0, every_s=every_s)


def cut(share: float = 0.5) -> Fault:
    """Closes the connection in the middle of the answer."""
    return Fault("cut", share=share)


def half(share: float = 0.5) -> Fault:
    """Ends the answer properly, but too early."""
    return Fault("half", share=share)


def reset() -> Fault:
    """Resets the connection before any byte of an answer."""
    return Fault("reset")


class BadServer(FakeModel):
    """The fake. `requests` counts by path, `bodies` has what was sent to each path.

    `aborted` has the request ids that /abort_request stopped, `disconnected` counts the clients
    that left before their answer's end. `choose(path, body)` says what to do instead of a good
    answer; unless replaced, what was given to `next`.
    """

    def __init__(self, model: str = "fake-model", port: int = 0) -> None:
        super().__init__()
        self.model = model
        self.port = port
        self.server_info: dict[str, Any] = {}  # over the defaults
        self.api_key: str | None = None
        self.choose: Callable[[str, Any], Fault | None] = self._from_queue
        self._queues: dict[str, deque[Fault | None]] = {}
        self.requests: Counter[str] = Counter()
        self.bodies: dict[str, list[Any]] = {}
        self.headers: list[dict[str, str]] = []
        self.aborted: list[str] = []
        self.disconnected = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def next(self, *faults: Fault | None, path: str = "") -> None:
        """Do these to the next requests, in order; `path` "": those that ask for generation."""
        self._queues.setdefault(path, deque()).extend(faults)

    async def start(self) -> None:
        """Listen; on the same port as before, if it was stopped."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Go away at once, with every connection."""
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # -- requests

    def _from_queue(self, path: str, body: Any) -> Fault | None:
        queue = self._queues.get(path) or (path in GENERATION and self._queues.get(""))
        return queue.popleft() if queue else None

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        body = await request.json() if request.can_read_body else None
        self.requests[path] += 1
        self.bodies.setdefault(path, []).append(body)
        self.headers.append(dict(request.headers))
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": f"bad key {request.headers}"}, status=401)
        try:
            if (fault := self.choose(path, body)) is not None:
                return await self._misbehave(request, body, fault)
            if path in GENERATION:
                return await self._generate(request, body)
            return self._look(path, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.disconnected += 1
            raise

    def _look(self, path: str, body: Any) -> web.Response:
        match path:
            case "/health":
                return web.Response()
            case "/abort_request":
                self._abort("" if body.get("abort_all") else body["rid"])
                return web.Response()
            case "/v1/models":
                card = {"id": self.model, "object": "model", "max_model_len": 8192}
                return web.json_response({"object": "list", "data": [card]})
            case "/model_info":
                found: Any = {"model_path": self.model, "tokenizer_path": self.model}
                return web.json_response(found | {"is_generation": True})
            case "/server_info":
                return web.json_response(
                    SERVER_INFO | {"model_path": self.model} | self.server_info
                )
            case "/v1/loads":
                load = {"dp_rank": 0, "num_running_reqs": len(self.running), "num_waiting_reqs": 0}
                pool = {"num_used_tokens": 0, "max_total_num_tokens": 4096, "token_usage": 0.0}
                return web.json_response({"version": "0.5.23", "loads": [load | pool]})
            case _:
                return web.json_response({"detail": "Not Found"}, status=404)

    def _abort(self, prefix: str) -> None:
        for rid in [rid for rid in self.running if rid.startswith(prefix)]:
            self.running[rid].set()
            self.aborted.append(rid)

    async def _generate(self, request: web.Request, body: Any) -> web.StreamResponse:
        parts = self.parts(request.path, body)
        if not body.get("stream"):
            return web.Response(
                body=b"".join([part async for part in parts]), content_type="application/json"
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        async with contextlib.aclosing(parts):
            async for part in parts:
                await response.write(part)
        return response

    async def _misbehave(self, request: web.Request, body: Any, fault: Fault) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        if fault.kind == "answer":
            return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "reset":
            _reset(transport)
            return web.Response()
        good = b"".join([part async for part in self.parts(request.path, body)])
        good = good[: int(len(good) * fault.share)]
        kind = "text/event-stream" if body.get("stream") else "application/json"
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        if fault.kind == "loris":
            for place in range(len(good)):
                await response.write(good[place : place + 1])
                await asyncio.sleep(fault.every_s)
        else:
            await response.write(good)
        if fault.kind == "stall":
            await asyncio.Event().wait()
        if fault.kind == "cut":
            transport.close()
        return response


SERVER_INFO: dict[str, Any] = {
    "version": "0.5.23",
    "tokenizer_path": "fake-model",
    "schedule_policy": "fcfs",
    "enable_priority_scheduling": False,
    "enable_session_radix_cache": False,
    "enable_hierarchical_cache": False,
    "enable_metrics": False,
    "radix_eviction_policy": "lru",
    "radix_cache_backend": None,
    "page_size": 1,
    "dp_size": 1,
    "max_total_num_tokens": 4096,
    "max_req_input_len": 4090,
    "max_running_requests": 16,
    "incremental_streaming_output": False,
    "internal_states": [{}],
}


def _reset(transport: asyncio.BaseTransport) -> None:
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.close()
