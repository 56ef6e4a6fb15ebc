"""A job of one agent that is killed within its payment (for test_effects.py). Its model is a fake.

`python payer_job.py map FLOW TABLE OUT HOME LOG` or `... resume HOME LOG`. LOG has a line for each
payment that began; within the first one the process kills itself, as `kill -9` does.
"""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio

from tenter.runtime import agent, tool, workflow
from tenter.runtime.backends import registry
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.jobs import Control, MapSpec, map_table, resume
from tenter.runtime.report.tally import Tally

LOG = "TENTER_TEST_LOG"
TRIES = 3


@tool(effect="once")
def pay(order: str) -> str:
    """Pay an order."""
    log = Path(os.environ[LOG])
    with log.open("a") as file:
        file.write(f"{order}\n")
    if log.read_text().count("\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"receipt of {order}"


bold = agent("Pay {{ order }}", tools=[pay], allow=["pay"], name="bold")
careful = agent("Pay {{ order }}", tools=[pay], allow=["pay"], approve="pause", name="careful")


@workflow
def go_on(order: str) -> str:
    return bold(order=order)


@workflow
def ask(order: str) -> str:
    return careful(order=order)


class Stubborn(FakeBackend):
    """Pays again and again until it has a receipt, then tells what it was told."""

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        told = [message.content for message in request.messages if message.role == "tool"]
        order = request.messages[0].content.removeprefix("Pay ")
        call = json.dumps({"name": "pay", "arguments": {"order": order}})
        paid = bool(told) and told[-1].startswith("receipt")
        text = " | ".join(told) if paid or len(told) == TRIES else f"<tool_call>{call}</tool_call>"
        async for chunk in super().generate(request):
            yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)


def main() -> None:
    what, *arguments = sys.argv[1:]
    registry.BACKENDS["stubborn"] = Stubborn
    os.environ[LOG] = arguments[-1]

    async def work() -> Any:
        if what == "map":
            flow, table, out, home, _ = arguments
            models = {"default": "stubborn"}
            spec = MapSpec(f"{__file__}:{flow}", table, out, models=models, home=home)
            return await map_table(spec, Control(), Tally())
        return await resume("last", arguments[0], Control(), Tally())

    sys.stdout.write(anyio.run(work).status)


if __name__ == "__main__":
    main()
