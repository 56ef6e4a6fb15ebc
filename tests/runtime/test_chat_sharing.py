"""Equal turns of chats are said once, and equal early calls made once: in a run, and across processes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from tenter.planner.graph import Sampling
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.fleet.ledger import MemoryLedger
from tenter.runtime.fleet.peers import Peers
from tenter.runtime.fleet.prefixes import MemoryDirectory
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.run.context import current_program
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.scheduler.events import Speculated
from tenter.runtime.trace import MemoryTrace
from tenter.runtime.workflow import Input, Workflow

from .test_flights import Shared, shared
from .test_speculation import LOG, LONG, LOOK, Typist, call

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.fixture(autouse=True)
def log() -> None:
    LOG.clear()


class Chatter:
    """Programs of one run, each with a chat of two turns; `asked` are the prompts of the model."""

    def __init__(self, latency_s: float = 10.0, temperature: float = 0.0) -> None:
        self.asked: list[str] = []
        self._sampling = Sampling(temperature=temperature)
        self._latency_s = latency_s
        self.trace = MemoryTrace()
        self.work: Callable[[str], Awaitable[Any]] = self._work

    def _answer(self, prompt: str) -> str:
        self.asked.append(prompt)
        return f"answer {len(self.asked)}"

    async def _work(self, name: str) -> list[str]:
        program: Any = current_program.get()
        chat = program.session("You are brief.")
        first = await chat.ask("Who are you?", sampling=self._sampling)
        second = await chat.ask(f"And {name}?", sampling=self._sampling)
        return [first.content, second.content]

    async def run(
        self, *names: str, cancel: float | None = None, journal: MemoryJournal | None = None
    ) -> list[Any]:
        """What each program said; the first is cancelled after so many seconds."""
        backend = FakeBackend(self._answer, self._latency_s)
        resumed = journal is not None
        async with open_host(
            {"default": backend}, trace=self.trace, journal=journal, resumed=resumed
        ) as host:
            programs = Programs(host, Workflow("w", (Input("name"),), program=self.work))
            ended = [asyncio.get_running_loop().create_future() for _ in names]
            for row, name in enumerate(names):

                def over(value: Any, error: Any, row: int = row) -> None:
                    ended[row].set_result(value)

                programs.arrive(row, {"name": name}, over)
            if cancel is not None:
                await anyio.sleep(cancel)
                programs.cancel("r0")
            return await asyncio.gather(*ended)


async def test_equal_turns_in_flight_are_said_once_and_the_chats_go_on_apart() -> None:
    chatter = Chatter()
    said = await chatter.run("ann", "bob", "ann")
    assert [first for first, _ in said] == ["answer 1"] * 3
    ann, bob, other_ann = (second for _, second in said)
    assert ann == other_ann != bob
    assert len(chatter.asked) == 3
    assert sorted(shared(chatter.trace)) == ["joined"] * 3


async def test_turns_are_not_equal_where_only_the_tokens_of_their_chats_are() -> None:
    chatter = Chatter()
    chats = {"one": ("Be brief.\nuser: Hi.", "Who?"), "two": ("Be brief.", "Hi.\nuser: Who?")}

    async def work(name: str) -> str:
        program: Any = current_program.get()
        system, question = chats[name]
        return (await program.session(system).ask(question)).content

    chatter.work = work
    assert await chatter.run("one", "two") == ["answer 1", "answer 2"]
    assert chatter.asked[0] == chatter.asked[1], "as a tokenizer without a template has it"


async def test_turns_that_are_drawn_are_each_chats_own() -> None:
    chatter = Chatter(temperature=1.0)
    await chatter.run("ann", "ann")
    assert len(chatter.asked) == 4


async def test_who_waits_says_it_himself_where_the_first_is_cancelled() -> None:
    chatter = Chatter()
    said = await chatter.run("ann", "bob", cancel=5)
    assert said[0] is None
    assert said[1][0].startswith("answer")
    assert len(chatter.asked) == 2, "of one that was cancelled nothing came"
    assert now() <= 25


async def test_a_resumed_run_repeats_no_turn_that_another_program_had() -> None:
    journal, first = MemoryJournal(), Chatter()
    said = await first.run("ann", "bob", journal=journal)
    again = Chatter()
    assert await again.run("ann", "bob", journal=_copy(journal)) == said
    assert again.asked == []


def _copy(journal: MemoryJournal) -> MemoryJournal:
    """What it holds, in a journal of its own: the next process reads rows' steps by signature."""
    copy = MemoryJournal()
    for steps in journal._steps.values():
        for step in steps.values():
            copy.record(step)
    return copy


def peers(common: Shared, name: str) -> Peers:
    return Peers(MemoryLedger(now), common.claims(name), MemoryDirectory(now), "the book")


async def agent(
    common: Shared, name: str, wait_s: float, *lines: str, prompt: str = "go"
) -> tuple[Any, MemoryTrace]:
    """The answer of a process's one agent, which begins after `wait_s` and writes these lines."""
    trace = MemoryTrace()

    async def work() -> Any:
        program: Any = current_program.get()
        return await program.session().run(prompt, [LOOK], speculate=True)

    await anyio.sleep(wait_s)
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with open_host(
        {"default": Typist(*lines)},
        trace=trace,
        results=common.results,
        peers=peers(common, name),
    ) as host:
        Programs(host, Workflow("w", (), program=work)).arrive(
            0, {}, lambda value, error: ended.set_result(error or value)
        )
        return await ended, trace


def early(trace: MemoryTrace) -> list[bool]:
    """Of each early call, whether it was used."""
    return [record.used for _, record in trace.records if isinstance(record, Speculated)]


async def test_an_equal_turn_of_another_process_is_waited_for() -> None:
    common = Shared()
    one = call("look", place="attic", s=2)
    (first, _), (second, trace) = await asyncio.gather(
        agent(common, "a", 0, one + LONG, "done"), agent(common, "b", 1, "never said")
    )
    assert (first, second) == ("done", "done")
    assert shared(trace) == ["result-cache"] * 3, "two turns, and the tool's call"
    assert len(LOG) == 1


async def test_an_early_call_is_claimed_so_that_other_processes_wait_for_it() -> None:
    common = Shared()
    one = call("look", place="attic", s=30)
    (first, mine), (second, theirs) = await asyncio.gather(
        agent(common, "a", 0, one + LONG, "done"),
        agent(common, "b", 1, one, "too", prompt="go on"),
    )
    assert (first, second) == ("done", "too")
    assert [line.split()[0] for line in LOG] == ["attic"], "made once, and early"
    assert (early(mine), early(theirs)) == ([True], [])
    assert shared(theirs) == ["result-cache"]


async def test_an_early_call_waits_for_its_turn_where_another_process_makes_it() -> None:
    common = Shared()
    one = call("look", place="attic", s=30)
    (first, mine), (second, theirs) = await asyncio.gather(
        agent(common, "a", 0, one, "done"),
        agent(common, "b", 3, one + LONG, "too", prompt="go on"),
    )
    assert (first, second) == ("done", "too")
    assert len(LOG) == 1
    assert (early(mine), early(theirs)) == ([True], [])


async def test_an_early_call_that_is_dropped_is_made_by_the_process_that_waits() -> None:
    common = Shared()
    one = call("look", place="attic", s=30)
    (first, mine), (second, _) = await asyncio.gather(
        agent(common, "a", 0, f"{one}{LONG}</think>I know it."),
        agent(common, "b", 1, one, "too", prompt="go on"),
    )
    assert (first, second) == ("I know it.", "too")
    assert [line.split()[1] for line in LOG] == ["at", "cancelled", "at"]
    assert early(mine) == [False]
