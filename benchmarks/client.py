"""What one call costs the client: CPU time with 500 calls in flight, against a bare aiohttp loop.

    python benchmarks/client.py [--quick] [--data DIR]

A process of its own plays the server: it answers every /generate after 50 ms with 8 tokens, from
bytes made once, so that its own cost hides nothing. Prompts are 300 tokens. `backend`: the SGLang
backend (request ids, checks, aborts, text from tokens). `program`: all of Tenter, an `async def`
workflow with one call each, scheduler and all. Interleaved, medians.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import Figures

FLIGHT, PROMPT, NEW, ANSWER_S = 500, 300, 8, 0.05


# -- the server's part, in a process of its own: a fake that only answers


def serve() -> None:
    from tenter.runtime.models import tiny_path

    ids = list(range(100, 100 + NEW))
    meta = {"id": "x", "finish_reason": {"type": "length", "length": NEW}}
    counts = {"prompt_tokens": PROMPT, "completion_tokens": NEW, "cached_tokens": PROMPT - 10}
    said = {"text": "word " * NEW, "output_ids": ids, "meta_info": meta | counts}
    info = {"version": "0.5.23", "max_total_num_tokens": 10**9, "max_running_requests": FLIGHT}
    path = str(tiny_path())
    answers = {
        b"/generate": said,
        b"/server_info": info | {"model_path": path, "tokenizer_path": path},
        b"/model_info": {"model_path": path, "tokenizer_path": path},
        b"/v1/loads": {"loads": [{"num_running_reqs": 0, "num_waiting_reqs": 0}]},
    }
    raw = {key: _response(value) for key, value in answers.items()}

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.received = b""

        def data_received(self, data: bytes) -> None:
            self.received += data
            while (end := self.received.find(b"\r\n\r\n")) >= 0:
                head = self.received[:end].lower()
                length = 0
                if (at := head.find(b"content-length:")) >= 0:
                    length = int(head[at + 15 :].split(b"\r\n")[0])
                if len(self.received) < end + 4 + length:
                    return
                self.received = self.received[end + 4 + length :]
                path = head.split(b" ")[1].split(b"?")[0]
                delay_s = ANSWER_S if path == b"/generate" else 0
                found = raw.get(path) or _response({"error": "none"}, b"404 Not Found")
                asyncio.get_running_loop().call_later(delay_s, self.transport.write, found)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Answering, "127.0.0.1", 0, backlog=2000)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


def _response(value: object, status: bytes = b"200 OK") -> bytes:
    body = json.dumps(value).encode()
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


# -- the ways to ask


async def keep_flying(count: int, one: Callable[[int], Awaitable[None]]) -> float:
    """CPU seconds per call of `count` calls, `FLIGHT` of them at a time."""
    numbers = iter(range(count))

    async def line() -> None:
        for number in numbers:
            await one(number)

    began_s = time.process_time()
    await asyncio.gather(*(line() for _ in range(FLIGHT)))
    return (time.process_time() - began_s) / count


def prompt(number: int) -> tuple[int, ...]:
    return (*range(100, 100 + PROMPT - 1), 10 + number % 500)


async def bare(url: str, count: int) -> float:
    import aiohttp

    sampling = {"max_new_tokens": NEW, "temperature": 0.0}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def one(number: int) -> None:
            body = {"input_ids": prompt(number), "sampling_params": sampling}
            async with http.post(f"{url}/generate", json=body) as answer:
                assert (await answer.json())["output_ids"]

        await keep_flying(FLIGHT, one)
        return await keep_flying(count, one)


async def backend(url: str, count: int) -> float:
    from tenter.planner.graph import Sampling
    from tenter.runtime.backends.registry import open_replicas
    from tenter.runtime.calls import CallId, Request
    from tenter.runtime.workflow import ModelSpec

    sampling = Sampling(max_tokens=NEW)
    spec = ModelSpec(backend="sglang", options={"url": url})
    async with open_replicas(spec) as (replica,):

        async def one(number: int) -> None:
            request = Request(CallId(f"c{number}"), prompt(number), sampling)
            async for chunk in replica.generate(request):
                assert chunk.finish == "length"

        await keep_flying(FLIGHT, one)
        return await keep_flying(count, one)


async def program(url: str, count: int) -> float:
    from tenter.planner.graph import LLM, Sampling
    from tenter.planner.prompt import Prompt
    from tenter.runtime.backends.registry import open_replicas
    from tenter.runtime.run.context import current_program
    from tenter.runtime.run.local import open_host
    from tenter.runtime.run.program import Programs
    from tenter.runtime.workflow import Input, ModelSpec, Workflow

    words = "stone river cloud lamp table seven green under north paper " * 7
    ask = LLM(id="ask", prompt=Prompt(words + "{{ x }}"), sampling=Sampling(max_tokens=NEW))

    async def work(x: int) -> Any:
        here: Any = current_program.get()
        return await here.llm(ask, {"x": x})

    spec = ModelSpec(backend="sglang", options={"url": url})
    async with (
        open_replicas(spec) as replicas,
        open_host({"default": replicas}, share=False, max_programs=FLIGHT) as host,
    ):
        programs = Programs(host, Workflow("ask", (Input("x"),), program=work))
        rows = iter(range(10**9))

        async def one(number: int) -> None:
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def ended(value: Any, error: Exception | None) -> None:
                assert error is None, error
                over.set_result(None)

            programs.arrive(next(rows), {"x": number}, ended)
            await over

        await keep_flying(FLIGHT, one)
        return await keep_flying(count, one)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer calls and rounds")
    parser.add_argument("--data", default="../shared/data", help="not read")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    count, rounds = (2000, 3) if options.quick else (5000, 5)
    figures = Figures("client")
    ways = {"bare": bare, "backend": backend, "program": program}
    found: dict[str, list[float]] = {name: [] for name in ways}
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        try:
            for _ in range(rounds):
                for name, way in ways.items():
                    found[name].append(asyncio.run(way(url, count)))
        finally:
            server.terminate()
    base_s = statistics.median(found["bare"])
    setup = {"in_flight": FLIGHT, "prompt_tokens": PROMPT, "calls": count, "rounds": rounds}
    for name, seconds in found.items():
        us = statistics.median(seconds) * 1e6
        figures.add("cpu_us_per_call", us, base_s * 1e6, "us CPU", way=name, **setup)
        if name != "bare":
            ratio = statistics.median(a / b for a, b in zip(seconds, found["bare"], strict=True))
            figures.add("client_cpu_ratio", ratio, 1.0, way=name, **setup)
    figures.table("CPU time of the client per call")


if __name__ == "__main__":
    main()
