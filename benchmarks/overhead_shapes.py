"""The four shapes of `overhead.py` on Tenter and on plain asyncio, one measurement per process.

`python overhead_shapes.py SYSTEM SHAPE SIZE JOURNAL` prints one JSON line: CPU microseconds per
step and the peak memory above what was there before the work began.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

STEPS = {"W1": 1, "W2": 1, "W3": 5, "W4": 20}  # per unit of size


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- plain asyncio: the floor --------------------------------------------------------------------


async def model(value: str) -> str:
    await asyncio.sleep(0)
    return value


async def asyncio_shape(shape: str, size: int) -> None:
    if shape == "W1":
        value = "x"
        for _ in range(size):
            value = await asyncio.create_task(model(value))
    elif shape == "W2":
        await asyncio.gather(*(model(str(item)) for item in range(size)))
    elif shape == "W3":
        await asyncio.gather(*(diamond(str(row)) for row in range(size)))
    else:
        await asyncio.gather(*(agent(str(row)) for row in range(size)))


async def diamond(row: str) -> str:
    first = await asyncio.create_task(model(row))
    middle = await asyncio.gather(model(first), model(first), model(first))
    return await asyncio.create_task(model(middle[0]))


async def agent(row: str) -> str:
    for _ in range(10):
        row = await asyncio.create_task(model(row))
        row = await asyncio.create_task(model(row))
    return row


# ---- Tenter --------------------------------------------------------------------------------------


def tenter_workflow(shape: str, size: int):
    from tenter.planner.graph import LLM, Each, Graph, Ref, ToolCall
    from tenter.planner.prompt import Prompt
    from tenter.runtime.run.context import current_program
    from tenter.runtime.workflow import Input, Workflow
    from tenter.tools import Tool

    def step(name: str, *sources: str) -> LLM:
        fields = "xyz"[: len(sources)]
        prompt = Prompt("".join(f"{{{{ {field} }}}}" for field in fields))
        args = zip(fields, map(Ref, sources), strict=True)
        return LLM(id=name, prompt=prompt, args=tuple(args))

    if shape == "W1":
        steps = [step("s0", "x"), *(step(f"s{i}", f"s{i - 1}") for i in range(1, size))]
        graph = Graph("chain", ("x",), tuple(steps), Ref(f"s{size - 1}"))
    elif shape == "W2":
        each = Each(id="all", items=Ref("xs"), item="x", body=(step("s", "x"),), result=Ref("s"))
        graph = Graph("fan", ("xs",), (each,), Ref("all"))
    elif shape == "W3":
        steps = [step("a", "x"), *(step(name, "a") for name in "bcd"), step("e", "b", "c", "d")]
        graph = Graph("diamond", ("x",), tuple(steps), Ref("e"))
    else:

        async def act(text: str) -> str:
            return text

        tool = Tool("act", "Does nothing.", "{}", act, effect="idempotent", timeout_s=None)
        think = LLM(id="think", prompt=Prompt("{{ x }}"))
        call = ToolCall(id="act", tool="act", effect="idempotent")

        async def agent(x: str) -> str:
            program = current_program.get()
            assert program is not None
            for _ in range(10):
                x = await program.llm(think, {"x": x})
                x = await program.tool(call, {"text": x})
            return x

        return Workflow("agent", (Input("x"),), program=agent, tools={"act": tool})
    return Workflow(graph.name, tuple(Input(name) for name in graph.inputs), graph)


class OneToken:
    """Tokenising is no part of what is measured."""

    eos_ids: frozenset[int] = frozenset()
    end_of_turn_ids = ()

    def encode(self, text: str) -> list[int]:
        return [0]

    def decode(self, token_ids: list[int]) -> str:
        return ""

    def chat(self, messages: object, tools: object = ()) -> list[int]:
        return [0]


async def tenter_shape(shape: str, size: int, journaled: bool, folder: str) -> None:
    from tenter.runtime.backends.fake import FakeBackend
    from tenter.runtime.journal.base import Manifest
    from tenter.runtime.journal.memory import NoJournal
    from tenter.runtime.journal.store import Store
    from tenter.runtime.run.control import Control
    from tenter.runtime.run.local import open_host, run_program
    from tenter.runtime.run.program import Programs
    from tenter.runtime.run.rows import Row, RowRun

    workflow = tenter_workflow(shape, size)
    backend = FakeBackend()
    backend.tokenizer = OneToken()
    journal = NoJournal()
    if journaled:
        manifest = Manifest("run_bench", "bench", "", "", "", {}, "")
        journal = Store(folder).create(manifest)
    async with open_host({"default": backend}, journal=journal, share=False) as host:
        if shape == "W1":
            await run_program(host, workflow, {"x": "x"})
        elif shape == "W2":
            await run_program(host, workflow, {"xs": [str(item) for item in range(size)]})
        else:
            rows = (Row(row, {}, {"x": str(row)}) for row in range(size))
            status = await RowRun(Programs(host, workflow), journal, Drop(), Control()).run(rows)
            assert status == "done"
    await journal.close()


class Drop:
    """A sink that keeps nothing."""

    held = 0

    def put(self, row: object, value: object, error: str | None) -> None:
        assert error is None, error


def main() -> None:
    system, shape, size, journaled = *sys.argv[1:3], int(sys.argv[3]), sys.argv[4] == "true"
    with tempfile.TemporaryDirectory() as folder:

        def work(size: int, folder: str) -> Awaitable[None]:
            if system == "asyncio":
                return asyncio_shape(shape, size)
            return tenter_shape(shape, size, journaled, folder)

        runs: Callable[[int, str], None] = lambda size, place: asyncio.run(work(size, place))
        runs(3, f"{folder}/warm")  # imports and first calls are not what is measured
        before_mb, cpu_s, wall_s = peak_mb(), time.process_time(), time.perf_counter()
        runs(size, f"{folder}/run")
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    steps = size * STEPS[shape]
    line = {
        "us_per_step": cpu_s / steps * 1e6,
        "wall_us_per_step": wall_s / steps * 1e6,
        "peak_mb": peak_mb() - before_mb,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
