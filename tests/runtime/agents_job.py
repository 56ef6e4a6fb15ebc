"""A job of agents that is killed at given points (for test_kill_agents.py). Its model is called a fake.

`python agents_job.py map TABLE OUT HOME LOG [MOMENT]` or `... resume HOME LOG [MOMENT]`: as soon as
LOG has MOMENT lines the process kills itself, as `kill -9` does.

LOG has a line for each beginning and end of a turn, and for each step of a payment; the ledger
beside it a line for each payment.
"""

import hashlib
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
from tenter.runtime.calls import Chunk, Message, Request, Usage
from tenter.runtime.jobs import Control, MapSpec, map_table, resume
from tenter.runtime.report.tally import Tally
from tenter.tools import tool_context

PAYMENTS = 2  # of each agent


class Log:
    """Lines that outlive the process; the one of number `moment` ends it."""

    def __init__(self, path: str, moment: int | None) -> None:
        self.path = Path(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._lines = self.path.read_bytes().count(b"\n")
        self._moment = moment

    def write(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())
        self._lines += 1
        if self._moment is not None and self._lines >= self._moment:
            os.kill(os.getpid(), signal.SIGKILL)


LOG: list[Log] = []  # of this process
LEDGER = "TENTER_TEST_LEDGER"


def pause_s(*about: object) -> float:
    """Between 2 and 12 ms, by what it is for."""
    return 0.002 + hashlib.blake2b(repr(about).encode(), digest_size=1).digest()[0] / 25_600


@tool(effect="pure")
async def look(order: str) -> str:
    """The price of an order."""
    await anyio.sleep(pause_s("look", order))
    return f"{order} costs {len(order)}"


def paid(order: str, part: int) -> str | None:
    """What an interrupted payment came to: its receipt, or None where nothing was paid."""
    ledger = Path(os.environ[LEDGER])
    keys = ledger.read_text().split() if ledger.exists() else []
    return receipt(order, part) if tool_context().key in keys else None


def receipt(order: str, part: int) -> str:
    return f"paid part {part} of {order}"


@tool(effect="once", outcome=paid)
async def pay(order: str, part: int) -> str:
    """Pay a part of an order."""
    log = lines()
    log.write("pay begins")
    await anyio.sleep(pause_s("pay", order, part))
    with open(os.environ[LEDGER], "a") as ledger:  # noqa: ASYNC230
        ledger.write(f"{tool_context().key}\n")
    log.write("pay paid")
    await anyio.sleep(pause_s("paid", order, part))
    return receipt(order, part)


def lines() -> Log:
    return sys.modules["__main__"].LOG[0]


clerk = agent(
    "Settle order {{ order }}",
    tools=[look, pay],
    allow=["pay"],
    system="Pay all.",
    speculate=True,
)


@workflow
def settle(order: str) -> str:
    return clerk(order=order)


def says(messages: tuple[Message, ...]) -> str:
    """Look, pay, look, pay; then everything that the tools said."""
    results = [message.content for message in messages if message.role == "tool"]
    order = messages[1].content.removeprefix("Settle order ")
    if len(results) == 2 * PAYMENTS:
        return "; ".join(results)
    call: dict[str, Any] = {"name": "look", "arguments": {"order": order}}
    if len(results) % 2:
        call = {"name": "pay", "arguments": {"order": order, "part": len(results) // 2}}
    return f"<tool_call>{json.dumps(call)}</tool_call> That is next."


class Scripted(FakeBackend):
    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        LOG[0].write(f"turn {request.call}")
        await anyio.sleep(pause_s(request.call))
        text = says(request.messages)
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(text))
        written, mark, rest = text.partition("</tool_call>")
        if mark:
            yield Chunk(written, tuple(written.encode()))
            await anyio.sleep(pause_s("rest", request.call))
        rest = f"{mark}{rest}" if mark else written
        yield Chunk(rest, (*rest.encode(), 256), finish="stop", usage=usage)
        LOG[0].write("turn ended")


def main() -> None:
    what, *arguments = sys.argv[1:]
    registry.BACKENDS["scripted"] = Scripted
    places, ends = (3, arguments[4:]) if what == "map" else (1, arguments[2:])
    LOG.append(Log(arguments[places], int(ends[0]) if ends else None))
    os.environ[LEDGER] = f"{arguments[places]}.ledger"

    async def work() -> Any:
        if what == "map":
            table, out, home, _ = arguments[:4]
            spec = MapSpec(
                f"{__file__}:settle", table, out, models={"default": "scripted"}, home=home
            )
            return await map_table(spec, Control(), Tally())
        return await resume("last", arguments[0], Control(), Tally())

    outcome = anyio.run(work)
    assert outcome.status == "done", outcome.status


if __name__ == "__main__":
    main()
