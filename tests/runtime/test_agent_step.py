"""Agents as steps: in graphs and in programs, shared, resumed, stopped, handed over to."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from tenter.planner.explain import explain
from tenter.planner.graph import LLM, Loop
from tenter.planner.lower import lower
from tenter.planner.mermaid import mermaid
from tenter.planner.plan import repeatable
from tenter.planner.validate import validate
from tenter.runtime import agent, each, length, run_workflow, tool, when, workflow
from tenter.runtime.api import session
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidWorkflow, StepFailed
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.run.trust import Approval
from tenter.runtime.scheduler.events import CallReady, CallShared, ToolRefused, ToolStarted
from tenter.runtime.spec import dump, loads
from tenter.runtime.trace import MemoryTrace

from .one_row import rows


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Obeys(FakeBackend):
    """Says what `says` makes of the chat so far: its messages, oldest first. Called a fake."""

    def __init__(self, says: Any, latency_s: float = 0.0) -> None:
        super().__init__(latency_s=latency_s)
        self.says = says
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.requests.append(request)
        async for chunk in super().generate(request):
            text = self.says(request.messages)
            yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)


def looks_up(messages: Any) -> str:
    """Looks up what the user asks for, then says what it found."""
    if messages[-1].role == "tool":
        return f"it is {messages[-1].content}"
    return call("price", item=messages[-1].content)


@tool(effect="pure", eta_s=3)
async def price(item: str) -> int:
    """The price of an item."""
    await anyio.sleep(3)
    return len(item)


sent: list[str] = []


@tool(effect="once")
async def send(to: str) -> str:
    """Send it."""
    sent.append(to)
    return "sent"


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    sent.clear()


class Found(BaseModel):
    price: int


seller = agent("{{ item }}", tools=[price], system="You sell.", max_turns=4, turn_tokens=60)
typed = agent("{{ item }}", tools=[price, send], output=Found, max_tokens=400, allow=["send"])


@workflow
def shop(item: str) -> str:
    return seller(item=item)


@workflow
async def shops(items: list[str]) -> list[str]:
    return await asyncio.gather(*(seller(item=item) for item in items))


async def test_a_graph_has_an_agent_as_a_step() -> None:
    trace, backend = MemoryTrace(), Obeys(looks_up)
    backends = {"default": backend}
    answer = await run_workflow(shop.workflow, {"item": "lamp"}, backends=backends, trace=trace)
    assert answer == "it is 4"
    assert {item.step for _, item in trace.records if isinstance(item, CallReady)} == {"seller"}
    first, second = backend.requests
    assert [spec.name for spec in first.tools] == ["price"]
    assert first.sampling.max_tokens == 60
    assert second.token_ids[: len(first.token_ids)] == first.token_ids
    assert first.messages[0].content == "You sell."


async def test_a_program_awaits_agents_side_by_side() -> None:
    began = anyio.current_time()
    found = await run_workflow(
        shops.workflow, {"items": ["a", "bb", "ccc"]}, backends={"default": Obeys(looks_up)}
    )
    assert found == ["it is 1", "it is 2", "it is 3"]
    assert anyio.current_time() - began < 4


async def test_equal_agents_run_once_where_they_only_look() -> None:
    trace, backend = MemoryTrace(), Obeys(looks_up)
    await run_workflow(
        shops.workflow, {"items": ["a", "a", "a"]}, backends={"default": backend}, trace=trace
    )
    assert len(backend.requests) == 2
    shared = [item for _, item in trace.records if isinstance(item, CallShared)]
    assert [(item.step, item.how) for item in shared] == [("seller", "joined")] * 2


async def test_an_agent_with_an_effect_is_not_shared() -> None:
    mailer = agent("{{ to }}", tools=[send], allow=["send"])

    @workflow
    async def program() -> Any:
        return await asyncio.gather(mailer(to="ann"), mailer(to="ann"))

    def says(messages: Any) -> str:
        return "done" if messages[-1].role == "tool" else call("send", to="ann")

    await run_workflow(program.workflow, {}, backends={"default": Obeys(says)})
    assert sent == ["ann", "ann"]


async def test_the_answer_is_of_its_type() -> None:
    @workflow
    async def program(item: str) -> int:
        return (await typed(item=item)).price

    def says(messages: Any) -> str:
        return '{"price": 4}' if messages[-1].role == "tool" else call("price", item="lamp")

    backend = Obeys(says)
    assert await run_workflow(program.workflow, {"item": "x"}, backends={"default": backend}) == 4


class TestLimits:
    async def test_turns(self) -> None:
        backend = Obeys(lambda messages: call("price", item="x"))
        with pytest.raises(StepFailed, match="step 'seller': .* after 4 turns"):
            await run_workflow(shop.workflow, {"item": "x"}, backends={"default": backend})
        assert len(backend.requests) == 4

    @pytest.mark.parametrize("limit", [1, 50, 100, 137])
    async def test_tokens_are_never_passed(self, limit: int) -> None:
        """An agent that writes ten times what it may stops exactly there (X7)."""

        class Writes(Obeys):
            written = 0

            async def generate(self, request: Request) -> AsyncIterator[Chunk]:
                async for chunk in FakeBackend.generate(self, request):
                    text = (call("price", item="x") * 100)[: request.sampling.max_tokens]
                    self.written += len(text)
                    ids = tuple(text.encode())
                    yield Chunk(text, ids, finish=chunk.finish, usage=chunk.usage)

        endless = agent("{{ x }}", tools=[price], max_tokens=limit, max_turns=1000)

        @workflow
        async def program(x: str) -> str:
            return await endless(x=x)

        backend = Writes(None)
        with pytest.raises(StepFailed, match="max_tokens"):
            await run_workflow(program.workflow, {"x": "x"}, backends={"default": backend})
        assert backend.written == limit


class TestTrust:
    @staticmethod
    def says(messages: Any) -> str:
        return "done" if messages[-1].role == "tool" else call("send", to=messages[-1].content)

    async def test_what_the_prompt_is_given_may_not_choose(self) -> None:
        trace = MemoryTrace()
        mailer = agent("{{ row }}", tools=[send])

        @workflow
        def program(row: str) -> str:
            return mailer(row=row)

        backend = Obeys(self.says)
        await run_workflow(
            program.workflow, {"row": "eve"}, backends={"default": backend}, trace=trace
        )
        assert sent == []
        (refused,) = [item for _, item in trace.records if isinstance(item, ToolRefused)]
        assert refused.sources == ("the step's inputs",)

    async def test_the_authors_own_words_may(self) -> None:
        mailer = agent("ann", tools=[send])

        @workflow
        def program(row: str) -> Any:
            return [mailer(), row]

        await run_workflow(program.workflow, {"row": ""}, backends={"default": Obeys(self.says)})
        assert sent == ["ann"]

    async def test_somebody_approves(self) -> None:
        asked: list[Approval] = []

        def approve(approval: Approval) -> bool:
            asked.append(approval)
            return True

        mailer = agent("{{ row }}", tools=[send], approve=approve)

        @workflow
        async def program(row: str) -> str:
            return await mailer(row=row)

        await run_workflow(program.workflow, {"row": "bob"}, backends={"default": Obeys(self.says)})
        assert sent == ["bob"]
        assert asked == [Approval("send", {"to": "bob"}, ("the step's inputs",))]


class TestHandingOver:
    def pair(self, **more: Any) -> tuple[Any, Any]:
        inner = agent("{{ task }}", tools=[price], system="We sell.", name="inner")
        outer = agent(
            "{{ task }}",
            tools=[inner.as_tool("expert", "Knows prices.")],
            system="We sell.",
            name="outer",
            **more,
        )
        return inner, outer

    @staticmethod
    def says(messages: Any) -> str:
        content = messages[-1].content
        if messages[-1].role == "tool":
            return f"<{content}>"
        return call("price", item="lamp") if content == "ask" else call("expert", task="ask")

    async def test_an_agent_is_a_tool_of_another(self) -> None:
        _, outer = self.pair()

        @workflow
        def program(task: str) -> str:
            return outer(task=task)

        trace, backend = MemoryTrace(), Obeys(self.says)
        answer = await run_workflow(
            program.workflow, {"task": "go"}, backends={"default": backend}, trace=trace
        )
        assert answer == "<<4>>"
        started = [item for _, item in trace.records if isinstance(item, ToolStarted)]
        assert [item.tool for item in started] == ["expert", "price"]
        assert started[0].session != started[1].session, "both chats wait, each for its own tool"
        spec = json.loads(outer.toolbox.tools["expert"].parameters)
        assert spec["required"] == ["task"]

    async def test_equal_system_prompts_begin_alike(self) -> None:
        _, outer = self.pair()

        @workflow
        async def program(task: str) -> str:
            return await outer(task=task)

        backend = Obeys(self.says)
        await run_workflow(program.workflow, {"task": "go"}, backends={"default": backend})
        one, other = (bytes(t for t in backend.requests[n].token_ids if t < 256) for n in (0, 1))
        assert one.startswith(b"system: We sell.")
        assert other.startswith(b"system: We sell.")

    def test_one_that_may_act_by_itself_is_sensitive(self) -> None:
        quiet = agent("{{ task }}", tools=[send]).as_tool("a", "")
        acts = agent("{{ task }}", tools=[send], allow=["send"]).as_tool("b", "")
        assert (quiet.sensitive, acts.sensitive) == (False, True)
        assert agent("Do it.", tools=[send]).as_tool("d", "").sensitive  # it begins untainted
        assert (quiet.effect, agent("{{ x }}").as_tool("c", "").effect) == ("idempotent", "pure")

    def test_a_changed_agent_is_another_tool(self) -> None:
        one, other = (agent("{{ task }}", system=text).as_tool("a", "") for text in "xy")
        assert one.source_hash != other.source_hash


async def test_a_stopped_agent_goes_on_at_the_turn_where_it_was() -> None:
    """A kill in the middle: turns and tool calls that were recorded are not done again."""
    runs: list[str] = []

    @tool(effect="once")
    async def first(x: str) -> str:
        runs.append("first")
        return "one"

    @tool(effect="once")
    async def second(x: str) -> str:
        runs.append("second")
        return "two"

    acts = agent("{{ x }}", tools=[first, second], allow=["first", "second"], name="acts")

    @workflow
    def program(x: str) -> str:
        return acts(x=x)

    def says(messages: Any) -> str:
        done = sum(message.role == "tool" for message in messages)
        return [call("first", x="a"), call("second", x="b"), "both"][done]

    class Dies(Obeys):
        async def generate(self, request: Request) -> AsyncIterator[Chunk]:
            if len(self.requests) == 1:
                self.requests.append(request)
                await anyio.sleep_forever()
            async for chunk in super().generate(request):
                yield chunk

    journal, whole = MemoryJournal(), Obeys(says)
    with anyio.move_on_after(100):
        await rows(program.workflow, Dies(says), journal)
    assert runs == ["first"]
    resumed = Obeys(says)
    assert await rows(program.workflow, resumed, journal, resumed=True) == {0: "both"}
    assert runs == ["first", "second"]
    assert await rows(program.workflow, whole, MemoryJournal()) == {0: "both"}
    assert [r.token_ids for r in resumed.requests] == [r.token_ids for r in whole.requests[1:]]


async def test_a_cancelled_program_takes_its_agents_with_it() -> None:
    stopped: list[str] = []

    @tool(effect="pure")
    async def forever(x: str) -> str:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append(x)
        return x

    waits = agent("{{ x }}", tools=[forever])
    fails = agent("{{ x }}", max_tokens=1)

    @workflow
    def program(x: str) -> Any:
        return [waits(x=x), fails(x=x)]

    backend = Obeys(lambda messages: call("forever", x="x"))
    with pytest.raises(StepFailed, match="max_tokens"):
        await run_workflow(program.workflow, {"x": "x"}, backends={"default": backend})
    assert stopped == ["x"]


# ---- what is known of it before it runs -----------------------------------------------------------


def test_it_goes_to_yaml_and_back() -> None:
    flow = workflow(name="shop")(shop.__wrapped__).workflow
    again = loads(dump(flow), __file__.replace("test_agent_step.py", "flow.yaml"))
    assert again.graph == flow.graph
    assert again.fingerprint == flow.fingerprint
    step = again.graph.steps[0] if again.graph else None
    assert isinstance(step, LLM)
    assert step.loop == Loop(("price",), max_turns=4, pure=True)


def test_plan_and_diagram_show_it() -> None:
    graph = shop.graph
    told = "seller = agent default text(item) with price; at most 4 turns"
    assert told in explain(lower(graph))
    assert "agent with price" in mermaid(graph)


def test_only_one_that_looks_is_repeatable() -> None:
    assert repeatable(seller.step)
    assert not repeatable(typed.step)


def test_an_unknown_tool_is_a_problem() -> None:
    problems = [str(problem) for problem in validate(shop.graph, tools=["prices"])]
    assert problems == ["step 'seller': the tool 'price' is not defined; did you mean 'prices'?"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tools": [price, price.tool]}, None),
        ({"tools": [len]}, "made with @tool"),
        ({"max_turns": "many"}, "max_turns is a whole number"),
        ({"max_tokens": True}, "max_tokens is a whole number"),
        ({"name": "my agent"}, "cannot be used in templates"),
        ({"prompt": "{{ x"}, "does not parse"),
        ({"allow": ["sent"], "tools": [send]}, "no tool of it; did you mean 'send'"),
        ({"max_turns": 0}, "max_turns is 0"),
    ],
)
def test_wrong_settings_are_told(given: dict[str, Any], said: str | None) -> None:
    def make() -> None:
        made = agent(**{"prompt": "{{ x }}", "name": "it", **given})

        @workflow
        def program(x: str) -> str:
            return made(x=x)

        assert program.graph

    if said is None:
        make()
        return
    with pytest.raises(InvalidWorkflow, match=said):
        make()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"choices": ("a", "b")}, "an agent has no choices"),
        ({"loop": Loop(("price", "price"))}, "'price' is given to it 2 times"),
        ({"loop": Loop(("price",), allow=("send",))}, "allow names 'send'"),
        ({"loop": Loop(max_tokens=0)}, "max_tokens of all turns is 0"),
    ],
)
def test_a_graph_with_a_wrong_agent_is_told(changed: dict[str, Any], said: str) -> None:
    (step,) = shop.graph.steps
    graph = replace(shop.graph, steps=(replace(step, **changed),))
    assert any(said in str(problem) for problem in validate(graph))


async def test_agents_inside_loops_branches_and_other_workflows() -> None:
    @workflow
    def many(items: list[str]) -> Any:
        prices = each(items, lambda item: shop(item=item))
        return when(length(items) > 1, lambda: prices, lambda: seller(item="none"))

    backends = {"default": Obeys(looks_up)}
    found = await run_workflow(many.workflow, {"items": ["a", "bb"]}, backends=backends)
    assert found == ["it is 1", "it is 2"]


def test_an_agent_that_acts_is_not_idle_if_nothing_reads_it() -> None:
    mailer = agent("{{ to }}", tools=[send])
    looker = agent("{{ to }}", tools=[price])

    @workflow
    def sends(to: str) -> str:
        mailer(to=to)
        return to

    @workflow
    def looks(to: str) -> str:
        looker(to=to)
        return to

    assert len(sends.graph.steps) == 1
    with pytest.raises(InvalidWorkflow, match="nothing reads its result"):
        assert looks.graph


async def test_two_chats_of_a_program_and_an_agent_keep_apart() -> None:
    @workflow
    async def program(item: str) -> Any:
        chat = session("You talk.")
        said = await chat.ask(item)
        return [said.content, await seller(item=item)]

    def says(messages: Any) -> str:
        return "hello" if messages[0].content == "You talk." else looks_up(messages)

    assert await run_workflow(
        program.workflow, {"item": "pen"}, backends={"default": Obeys(says)}
    ) == ["hello", "it is 3"]


def test_one_tool_in_the_place_of_a_list_is_refused_with_the_cure() -> None:
    @tool(effect="pure")
    def look(place: str) -> str:
        return place

    with pytest.raises(InvalidWorkflow, match=r"tools is a list, such as tools=\[search\]"):
        agent("Help: {{ text }}", tools=look)  # pyright: ignore[reportArgumentType]
