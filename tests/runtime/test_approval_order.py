"""Calls of one turn that are approved in any order, with a crash at every write in between."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from tenter.runtime.approvals import Question
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.run.context import current_program
from tenter.runtime.run.trust import Approval, Approve, Trust
from tenter.tools import Tool, python_tool, tool_context

from .lives import Book, approve, lives

pytestmark = pytest.mark.anyio
ORDERS = ("a1", "b2", "c3")
EQUALS = ("a1", "b2", "a1")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Bank:
    """Keeps account of what was paid, by the keys of the calls."""

    def __init__(self) -> None:
        self.paid: dict[str, str] = {}
        self.made: list[str] = []

    async def pay(self, order: str) -> str:
        """Pay an order."""
        self.made.append(order)
        self.paid[tool_context().key] = order
        await anyio.sleep(1)
        return self.receipt(order)

    async def outcome(self, order: str) -> str | None:
        return self.receipt(order) if tool_context().key in self.paid else None

    def receipt(self, order: str) -> str:
        return f"receipt of {order}"


class Payer(FakeBackend):
    """Pays all in one turn, then tells what it was told. Called a fake."""

    def __init__(self, orders: tuple[str, ...]) -> None:
        super().__init__()
        self._orders = orders

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        told = [message.content for message in request.messages if message.role == "tool"]
        calls = [{"name": "pay", "arguments": {"order": order}} for order in self._orders]
        text = " | ".join(told) or "".join(
            f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls
        )
        async for chunk in super().generate(request):
            yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)


async def settle(pay: Tool, approve: Approve) -> Any:
    program: Any = current_program.get()
    chat = program.session(trust=Trust(approve=approve))
    return await chat.run("Pay all.", [pay], untrusted="a mail")


def asked(bank: Bank, first: str) -> Any:
    """An author who approves of one order before the others, and who knows what was paid."""

    def answers(questions: list[Question]) -> tuple[Question, bool, Any]:
        question = min(questions, key=lambda each: each.arguments["order"] != first)
        order = question.arguments["order"]
        if question.began and order in bank.made:
            return question, True, bank.receipt(order)
        return approve(question)

    return answers


async def check_at_every_write(
    scenario: Callable[[Bank, Book], Awaitable[Any]], orders: tuple[str, ...], keep: bool = True
) -> None:
    """A crash at any one write changes neither the answer nor what is paid."""
    crash, writes = 0, 1
    while crash < writes:
        bank, book = Bank(), Book(crash, keep)
        said = await scenario(bank, book)
        assert said == " | ".join(map(bank.receipt, orders)), crash
        assert sorted(bank.made) == sorted(orders), crash
        crash, writes = crash + 1, book.writes
    assert crash > 9


@pytest.mark.parametrize("first", ["a1", "b2"])
@pytest.mark.parametrize("keep", [True, False], ids=["written", "lost"])
async def test_answered_after_a_pause_in_any_order(first: str, keep: bool) -> None:
    async def scenario(bank: Bank, book: Book) -> Any:
        tool = python_tool(bank.pay, effect="once", outcome=bank.outcome)
        return await lives(partial(settle, tool, "pause"), Payer(EQUALS), book, asked(bank, first))

    await check_at_every_write(scenario, EQUALS, keep)


@pytest.mark.parametrize("first", ["a1", "b2"])
async def test_where_only_the_author_knows_what_was_paid(first: str) -> None:
    async def scenario(bank: Bank, book: Book) -> Any:
        tool = python_tool(bank.pay, effect="once")
        return await lives(partial(settle, tool, "pause"), Payer(ORDERS), book, asked(bank, first))

    await check_at_every_write(scenario, ORDERS)


@pytest.mark.parametrize("keep", [True, False], ids=["written", "lost"])
async def test_answered_while_it_runs_and_otherwise_in_the_next_life(keep: bool) -> None:
    async def scenario(bank: Bank, book: Book) -> Any:
        delays = {"a1": 20, "b2": 1, "c3": 5}

        async def ask(approval: Approval) -> bool:
            order = approval.arguments["order"]
            takes_s = delays[order]
            delays[order] = 21 - takes_s  # whoever is asked again takes as long as the other
            await anyio.sleep(takes_s)
            return True

        tool = python_tool(bank.pay, effect="once", outcome=bank.outcome)
        return await lives(partial(settle, tool, ask), Payer(ORDERS), book, asked(bank, "a1"))

    await check_at_every_write(scenario, ORDERS, keep)
