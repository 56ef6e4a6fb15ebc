"""What a failed call of a tool leaves behind: the same error again, and no effect twice."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tenter.runtime import tool, workflow
from tenter.runtime.approvals import Question
from tenter.runtime.backends import registry
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import ApprovalWanted, OutcomeUnknown, StepFailed, ToolFailed
from tenter.runtime.jobs import Control, MapSpec, map_table, resume
from tenter.runtime.report.tally import Tally
from tenter.runtime.run.context import current_program
from tenter.runtime.run.trust import Trust
from tenter.tools import NoEffect, Tool, python_tool

from .lives import Book, approve, live, lives


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def never(asked: list[Question]) -> Any:
    raise AssertionError(f"nobody is to be asked: {asked}")


def here() -> Any:
    return current_program.get()


class Payer(FakeBackend):
    """Pays each order of its prompt, one a turn, then tells what it was told. Called a fake."""

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        orders = request.messages[0].content.split()
        told = [message.content for message in request.messages if message.role == "tool"]
        text = " | ".join(told)
        if len(told) < len(orders):
            call = {"name": "pay", "arguments": {"order": orders[len(told)]}}
            text = f"<tool_call>{json.dumps(call)}</tool_call>"
        async for chunk in super().generate(request):
            yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)


async def pays(pay: Tool, orders: str, asks: bool = False) -> Any:
    chat = here().session(trust=Trust(frozenset({"pay"}), "pause" if asks else None))
    return await chat.run(orders, [pay])


class Payments:
    """Payments, of which those of a1 raise these errors, one a call, after they were made."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.made: list[str] = []

    async def pay(self, order: str) -> str:
        """Pay an order."""
        self.made.append(order)
        error = self.errors.pop(0) if self.errors and order == "a1" else None
        await anyio.sleep(1)
        if error is not None:
            raise error
        return f"receipt of {order}"


def a_tool(payments: Payments, outcome: Callable[..., Any] | None = None) -> Tool:
    return python_tool(payments.pay, effect="once", outcome=outcome)


pytestmark = pytest.mark.anyio


class TestWhatHasAnEffect:
    async def test_is_not_made_again_and_the_same_is_told_of_it_after_a_crash(self) -> None:
        crash, writes = 0, 1
        while crash < writes:
            payments, book = Payments(OSError("cut off")), Book(crash)
            said = await lives(partial(pays, a_tool(payments), "a1 a1 b2"), Payer(), book, never)
            raised, again, other = said.split(" | ")
            assert "OSError: cut off), and may have had its effect" in raised or "before" in raised
            assert "with the same arguments before" in again
            assert other == "receipt of b2" or "was started before, and cut off" in other
            assert sorted(set(payments.made)) == payments.made, "nothing twice"
            crash, writes = crash + 1, book.writes
        assert crash > 8

    async def test_what_was_said_of_it_is_said_again(self) -> None:
        payments, book = Payments(OSError("cut off")), Book()
        await live(partial(pays, a_tool(payments), "a1"), Payer(), book)
        whole = {path: step for path, step in book.steps.items() if "turn" not in path}
        found = Book(steps=dict(book.steps))
        for path in [path for path in found.steps if path.startswith("turn")][1:]:
            del found.steps[path]  # as if the crash had come before the last turn
        said = await live(partial(pays, a_tool(payments), "a1"), Payer(), found)
        assert "OSError: cut off" in said
        assert payments.made == ["a1"]
        assert {path: found.steps[path] for path in whole} == whole

    async def test_is_called_again_where_it_says_that_it_has_done_nothing(self) -> None:
        payments = Payments(NoEffect("the bank is closed"))
        said = await live(partial(pays, a_tool(payments), "a1 a1"), Payer(), Book())
        assert said == "error: step 'pay': tool 'pay': the bank is closed | receipt of a1"

    async def test_and_where_it_was_called_wrongly(self) -> None:
        async def pay(order: int) -> str:
            return "paid"

        tool = python_tool(pay, effect="once")
        said = await live(partial(pays, tool, "a1 a1"), Payer(), Book())
        assert said.count("order: Input should be a valid integer") == 2

    @pytest.mark.parametrize(
        ("known", "told", "made"),
        [
            ("receipt 7", "receipt 7 | receipt of a1", 2),
            (None, "error: step 'pay': tool 'pay': OSError: cut off | receipt of a1", 2),
        ],
        ids=["it-had-one", "it-had-none"],
    )
    async def test_its_outcome_is_looked_up(self, known: str | None, told: str, made: int) -> None:
        async def outcome(order: str) -> str | None:
            return known

        payments, book = Payments(OSError("cut off")), Book()
        tool = a_tool(payments, outcome)
        assert await live(partial(pays, tool, "a1 a1"), Payer(), book) == told
        assert len(payments.made) == made
        assert await live(partial(pays, tool, "a1 a1"), Payer(), book) == told, "and remembered"
        assert len(payments.made) == made

    @pytest.mark.parametrize(
        ("answers", "told", "made"),
        [
            (lambda asked: approve(asked[0]), "receipt of a1", 2),
            (lambda asked: (asked[0], True, "receipt 7"), "receipt 7", 1),
        ],
        ids=["made-again", "it-had-one"],
    )
    async def test_its_author_is_asked_where_the_agent_pauses(
        self, answers: Any, told: str, made: int
    ) -> None:
        payments, book = Payments(OSError("cut off")), Book()
        work = partial(pays, a_tool(payments), "a1", True)
        assert isinstance(await live(work, Payer(), book), ApprovalWanted)
        assert isinstance(await live(work, Payer(), book), ApprovalWanted), "nobody has answered"
        assert len(payments.made) == 1
        assert await lives(work, Payer(), book, answers) == told
        assert len(payments.made) == made

    async def test_fails_its_program_with_an_error_of_its_own(self) -> None:
        payments, book = Payments(OSError("cut off")), Book()

        async def work() -> Any:
            with pytest.raises(OutcomeUnknown, match="may have had its effect") as raised:
                await here().use(a_tool(payments), {"order": "a1"})
            return str(raised.value)

        said = await live(work, Payer(), book)
        assert "OSError: cut off" in said
        assert await live(work, Payer(), book) == said
        assert payments.made == ["a1"]


async def test_a_program_that_went_on_after_a_failure_goes_the_same_way_again() -> None:
    calls: list[str] = []

    async def look(place: str) -> str:
        calls.append(place)
        if len(calls) == 1:
            raise ValueError("it is dark")
        return f"dust in the {place}"

    async def work() -> Any:
        looks = python_tool(look, effect="pure")
        try:
            return await here().use(looks, {"place": "cellar"})
        except ToolFailed as error:
            found = await asyncio.gather(*(here().use(looks, {"place": "attic"}) for _ in "ab"))
            return [str(error), *found]

    book = Book()
    said = await live(work, Payer(), book)
    assert said == ["step 'look': tool 'look': ValueError: it is dark", *["dust in the attic"] * 2]
    assert await live(work, Payer(), book) == said
    assert calls == ["cellar", "attic"]


async def test_all_who_wait_for_a_failed_call_hear_the_same_after_a_crash() -> None:
    calls: list[int] = []

    async def look() -> str:
        calls.append(1)
        await anyio.sleep(1)
        raise ValueError(f"failure {len(calls)}")

    async def work() -> Any:
        looks = python_tool(look, effect="pure")
        both = (here().use(looks, {}) for _ in "ab")
        return [str(error) for error in await asyncio.gather(*both, return_exceptions=True)]

    book = Book()
    said = await live(work, Payer(), book)
    assert (said[0], len(calls)) == (said[1], 1)
    assert await live(work, Payer(), book) == said
    assert len(calls) == 1


async def test_a_result_that_lasts_a_while_is_what_its_programs_got_also_after_a_crash() -> None:
    calls: list[int] = []

    async def rate() -> int:
        calls.append(1)
        return len(calls)

    async def work() -> Any:
        rates = python_tool(rate, effect="pure", memo_s=5)
        found = [await here().use(rates, {}) for _ in "ab"]
        await anyio.sleep(10)
        return [*found, await here().use(rates, {})]

    book = Book()
    assert await live(work, Payer(), book) == [1, 1, 2]
    assert await live(work, Payer(), book) == [1, 1, 2]


async def test_a_program_that_stops_has_not_failed() -> None:
    """A tool that takes steps of its program, in a run that stops: resumed, the tool goes on."""
    payments = Payments()

    async def helper() -> str:
        return await pays(asked, "a1", asks=True)

    async def work() -> Any:
        return await here().use(python_tool(helper, effect="idempotent"), {})

    asked = python_tool(payments.pay, effect="once")
    payments.errors.append(OSError("cut off"))
    book = Book()
    assert isinstance(await live(work, Payer(), book), ApprovalWanted)
    assert not [path for path in book.steps if path.startswith("helper")]
    assert await lives(work, Payer(), book, lambda asked: approve(asked[0])) == "receipt of a1"


tried: list[str] = []


def fail_first(text: str, error: Exception) -> str:
    tried.append(text)
    if len(tried) == 1:
        raise error
    return f"seen {text}"


@tool(effect="pure")
async def look(text: str) -> str:
    return fail_first(text, ValueError("not yet"))


@tool(effect="once")
async def ship(text: str) -> str:
    return fail_first(text, NoEffect("not yet"))


@tool(effect="once")
async def drop(text: str) -> str:
    return fail_first(text, OSError("cut off"))


@workflow
async def looks(text: str) -> str:
    return await look(text=text)


@workflow
def ships(text: str) -> str:
    return ship(text=text)


@workflow
def drops(text: str) -> str:
    return drop(text=text)


@pytest.mark.parametrize(
    ("flow", "calls", "said"),
    [("looks", 2, "seen this"), ("ships", 2, "seen this"), ("drops", 1, "it is not repeated")],
)
def test_a_row_that_is_tried_again_calls_what_failed_and_may_be_called(
    flow: str, calls: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.BACKENDS, "payer", Payer)
    tried.clear()
    (tmp_path / "in.csv").write_text("text\nthis\n")
    home = str(tmp_path / "home")
    places = str(tmp_path / "in.csv"), str(tmp_path / "out.csv")
    models = {"default": "payer"} if flow == "looks" else {}
    spec = MapSpec(f"{__name__}:{flow}", *places, models=models, home=home)
    first = asyncio.run(map_table(spec, Control(), Tally()))
    assert (first.rows_failed, len(tried)) == (1, 1)
    again = asyncio.run(resume("last", home, Control(), Tally(), retry=True))
    assert (again.status, len(tried)) == ("done", calls)
    assert said in Path(spec.out).read_text()


def test_half_a_surrogate_pair_in_an_error_fails_the_step() -> None:
    async def broken() -> str:
        raise ValueError("\ud800")

    async def work() -> Any:
        with pytest.raises(StepFailed):
            await here().use(python_tool(broken, effect="pure"), {})
        return "went on"

    assert asyncio.run(live(work, Payer(), Book())) == "went on"
