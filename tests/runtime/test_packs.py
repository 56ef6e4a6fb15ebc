"""Rows that share a prompt: how they are asked, voted on, recorded, and what happens to bad items."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest
from row_sink import RowSink

from tenter.planner.explain import explain as explain_plan
from tenter.planner.graph import LLM, Pack
from tenter.planner.optimize import optimize
from tenter.planner.plan import Context
from tenter.planner.prompt import Prompt
from tenter.planner.stats import ColumnStats, TableStats
from tenter.runtime import each, llm, workflow
from tenter.runtime.api import WorkflowHandle
from tenter.runtime.backends.fake import ByteTokenizer, FakeBackend
from tenter.runtime.calls import Message, Request, ToolSpec
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import InvalidWorkflow
from tenter.runtime.fleet.claims import Book, MemoryClaims
from tenter.runtime.fleet.ledger import MemoryLedger
from tenter.runtime.fleet.peers import Peers
from tenter.runtime.fleet.prefixes import MemoryDirectory
from tenter.runtime.journal import MemoryResults
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.report.analysis import Analyst
from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host, run_workflow
from tenter.runtime.run.pack_text import Ballot, pack_chat, pack_schema, read_pack
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun
from tenter.runtime.spec import dump, loads
from tenter.runtime.trace import Trace
from tenter.runtime.workflow import Scheduling

ITEM = re.compile(r"Item (\d+):\n(.*)")
Answer = Callable[[str], str]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def packed(answer: Answer, sure: bool | None = None, wrong: Callable[[str], bool] | None = None):
    """Answers every item of a pack by itself; numbers are spoilt where `wrong` says so."""

    def reply(prompt: str) -> str:
        items = ITEM.findall(prompt)
        if not items:
            return answer(prompt)
        said = []
        for number, text in items:
            bad = wrong is not None and wrong(text)
            one: dict[str, Any] = {"item": 99 if bad else int(number), "answer": answer(text)}
            said.append(one if sure is None else {**one, "sure": sure})
        return json.dumps(said)

    return reply


def flow(**settings: Any) -> WorkflowHandle:
    shout = llm("Shout this: {{ word }}", name="shout", **settings)

    @workflow
    def shouting(word: str) -> str:
        return shout(word=word)

    return shouting


async def run(
    workflow: WorkflowHandle,
    backend: FakeBackend,
    words: list[Any],
    journal: MemoryJournal | None = None,
    trace: Trace | None = None,
    resumed: bool = False,
    concurrency: int = 256,
    **options: Any,
) -> dict[int, Any]:
    journal, sink = journal or MemoryJournal(), RowSink()
    async with open_host(
        {"default": backend}, journal=journal, trace=trace, resumed=resumed, **options
    ) as host:
        rows = (Row(n, {}, {"word": word}) for n, word in enumerate(words))
        programs = Programs(host, workflow.workflow)
        limits = Limits(concurrency)
        await RowRun(programs, journal, sink, Control(), limits=limits, resumed=resumed).run(rows)
    return sink.values


WORDS = [f"word {n}" for n in range(10)]


async def test_rows_share_prompts_and_each_gets_its_own_answer() -> None:
    backend = FakeBackend(packed(str.upper), remember=True)
    values = await run(flow(pack=4), backend, WORDS)

    assert values == {n: f"WORD {n}" for n in range(10)}
    assert len(backend.asked) == 3
    assert backend.asked[0].startswith("Shout this: \n\nItem 1:\nword 0\n\nItem 2:\nword 1\n")
    assert "JSON array of 2 objects" in backend.asked[2]


async def test_an_item_without_a_good_answer_is_asked_by_itself() -> None:
    reply = packed(str.upper, wrong=lambda text: text == "word 5")
    backend = FakeBackend(reply, remember=True)
    values = await run(flow(pack=5), backend, WORDS)

    assert values[5] == "SHOUT THIS: WORD 5"
    assert values[4] == "WORD 4"
    assert len(backend.asked) == 3


async def test_no_json_at_all_costs_a_call_and_no_answer() -> None:
    backend = FakeBackend(lambda prompt: "what?", remember=True)
    assert set((await run(flow(pack=5), backend, WORDS[:5])).values()) == {"what?"}
    assert len(backend.asked) == 6


async def test_the_last_row_that_finds_nobody_to_share_with_has_its_own_prompt() -> None:
    backend = FakeBackend(packed(str.upper), remember=True)
    assert (await run(flow(pack=4), backend, WORDS[:5]))[4] == "SHOUT THIS: WORD 4"
    assert backend.asked[-1] == "Shout this: word 4"


class Refusing(ByteTokenizer):
    """A chat template that raises where a chat has some text in it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def chat(self, messages: list[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        if any(self._text in message.content for message in messages):
            raise ValueError("the template refuses")
        return super().chat(messages, tools)


@pytest.mark.parametrize("settings", [{}, {"pack": 5}], ids=["alone", "packed"])
async def test_a_prompt_that_cannot_be_made_fails_alone_and_so_does_equal_work(
    settings: dict[str, Any],
) -> None:
    backend = FakeBackend(packed(lambda text: text[-1]))
    backend.tokenizer = Refusing("word 2")
    values = await run(flow(**settings), backend, [*WORDS, "word 2"])

    assert values.pop(2) == values.pop(10) == "step 'shout': the template refuses"
    assert values == {n: str(n) for n in range(10) if n != 2}


async def test_other_processes_do_not_wait_for_what_is_answered_for_one_run_alone() -> None:
    shout = llm("Shout this: {{ word }}", name="shout", pack=2)
    slow = llm("Wait", name="slow", temperature=1.0)

    @workflow
    def shouting(words: list[str]) -> list[Any]:
        return [each(words, lambda word: shout(word=word)), slow()]

    class Slow(FakeBackend):
        async def generate(self, request: Request) -> Any:
            await anyio.sleep(500 if request.sampling.temperature else 1)
            async for chunk in super().generate(request):
                yield chunk

    results, book, shouts = MemoryResults(clock=now), Book(), list[float]()

    def answer(prompt: str) -> str:
        if prompt != "Wait":
            shouts.append(now())
        return packed(str.upper)(prompt)

    async def process(name: str) -> None:
        claims, ledger = MemoryClaims(book, name, now), MemoryLedger(now)
        peers = Peers(ledger, claims, MemoryDirectory(now), "the book")
        inputs, backends = {"words": ["a", "b"]}, {"default": Slow(answer)}
        await run_workflow(
            shouting.workflow, inputs, backends=backends, results=results, peers=peers
        )

    async with anyio.create_task_group() as group:
        group.start_soon(process, "one")
        await anyio.sleep(10)
        group.start_soon(process, "two")
    assert len(shouts) == 2
    assert max(shouts) < 20


async def test_what_does_not_fit_is_asked_in_smaller_packs() -> None:
    backend = FakeBackend(packed(str.upper), remember=True)
    backend.capabilities = replace(backend.capabilities, context_tokens=420)
    values = await run(flow(pack=8, max_tokens=20), backend, WORDS[:8])

    assert values == {n: f"WORD {n}" for n in range(8)}
    assert [len(ITEM.findall(prompt)) for prompt in backend.asked] == [4, 4]


async def test_equal_rows_are_asked_once() -> None:
    backend = FakeBackend(packed(str.upper), remember=True)
    values = await run(flow(pack=2), backend, ["a", "b", "a", "b"])

    assert [values[row] for row in range(4)] == ["A", "B"] * 2
    assert len(backend.asked) == 1


async def test_rows_of_two_tenants_share_no_prompt() -> None:
    shout = llm("Shout this: {{ word }}", pack=4)

    @workflow(tenant="who")
    def ours(who: str, word: str) -> str:
        return shout(word=word)

    backend = FakeBackend(packed(str.upper), remember=True)
    rows = [Row(n, {}, {"who": "ab"[n % 2], "word": f"word {n}"}) for n in range(8)]
    async with open_host({"default": backend}, scheduling=ours.workflow.scheduling) as host:
        programs, sink = Programs(host, ours.workflow), RowSink()
        await RowRun(programs, MemoryJournal(), sink, Control()).run(iter(rows))
    assert sink.values == {n: f"WORD {n}" for n in range(8)}
    asked = [[text for _, text in ITEM.findall(prompt)] for prompt in backend.asked]
    assert sorted(asked) == [[f"word {n}" for n in (m, m + 2, m + 4, m + 6)] for m in (0, 1)]


async def test_a_workflow_may_leave_packs_out() -> None:
    backend = FakeBackend(packed(str.upper), remember=True)
    await run(flow(pack=4), backend, WORDS[:4], scheduling=Scheduling(without=("pack",)))
    assert len(backend.asked) == 4


async def test_items_of_one_row_share_prompts_too() -> None:
    shout = llm("Shout this: {{ word }}", pack=3)

    @workflow
    def many(word: list[str]) -> list[str]:
        return each(word, lambda word: shout(word=word))

    backend = FakeBackend(packed(str.upper), remember=True)
    assert await run(many, backend, [["a", "b", "c"]]) == {0: ["A", "B", "C"]}
    assert len(backend.asked) == 1


async def test_fewer_programs_than_a_pack_do_not_wait_for_ever() -> None:
    backend = FakeBackend(packed(str.upper), remember=True)
    assert len(await run(flow(pack=8), backend, WORDS, concurrency=3)) == 10
    assert len(backend.asked) == 4


# ---- votes --------------------------------------------------------------------------------------


def opinions(*rounds: str) -> Callable[[str], str]:
    """Says the same of all items, another thing in each round."""
    said = iter(rounds)

    def reply(prompt: str) -> str:
        answer = next(said)
        items = [
            {"item": int(number), "answer": answer[0], "sure": answer.endswith("!")}
            for number, _ in ITEM.findall(prompt)
        ]
        return json.dumps(items)

    return reply


@pytest.mark.parametrize(
    ("rounds", "winner", "taken"),
    [
        (("x!", "x!", "y", "y", "y"), "x", 2),  # sure of it twice running
        (("x", "x", "x", "y", "y"), "x", 3),  # nothing can overtake it
        (("x", "y", "y", "x", "y"), "y", 5),
        (("x!", "y", "x", "y!", "x"), "x", 5),
    ],
)
async def test_the_majority_of_several_orders_wins(
    rounds: tuple[str, ...], winner: str, taken: int
) -> None:
    backend = FakeBackend(opinions(*rounds), remember=True)
    values = await run(flow(pack=4, votes=5, choices=["x", "y"]), backend, WORDS[:4])

    assert set(values.values()) == {winner}
    assert len(backend.asked) == taken
    orders = [tuple(text for _, text in ITEM.findall(prompt)) for prompt in backend.asked]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_a_tie_goes_to_the_answer_that_was_surer_and_then_to_the_first() -> None:
    ballot = Ballot([('"a"', False), ('"b"', True)])
    assert ballot.winner() == "b"
    assert Ballot([('"a"', True), ('"b"', True)]).winner() == "a"


# ---- records, and ends before the end --------------------------------------------------------------


async def test_each_row_has_its_record_and_a_resumed_run_asks_nothing_again() -> None:
    journal = MemoryJournal()
    await run(flow(pack=5), FakeBackend(packed(str.upper)), WORDS, journal)
    recorded = await journal.steps(0, 9)
    assert {path for _, path in recorded} == {"shout"} and len(recorded) == 10

    again = FakeBackend(packed(str.upper), remember=True)
    assert len(await run(flow(pack=5), again, WORDS, journal, resumed=True)) == 10
    assert again.asked == []


async def test_a_pack_goes_on_when_the_row_that_it_runs_for_is_cancelled() -> None:
    backend = FakeBackend(packed(str.upper), latency_s=1.0, remember=True)
    values: dict[int, Any] = {}
    async with open_host({"default": backend}) as host:
        programs = Programs(host, flow(pack=3).workflow)
        for row in range(3):

            def ended(value: Any, error: Exception | None, row: int = row) -> None:
                values[row] = value

            programs.arrive(row, {"word": f"word {row}"}, ended)
        await anyio.sleep(0.5)
        programs.cancel("r0")
        await anyio.sleep(5)
    assert values == {0: None, 1: "WORD 1", 2: "WORD 2"}


async def test_analyze_counts_the_calls_that_were_saved() -> None:
    analyst = Analyst()
    await run(flow(pack=5), FakeBackend(packed(str.upper)), WORDS, trace=analyst)
    (step,) = analyst.analysis().steps
    assert (step.rows, step.took.calls, step.shared) == (10, 2, {"packed": 8})


def test_explain_expects_fewer_calls_and_says_that_answers_may_change() -> None:
    graph = flow(pack=5).graph
    assert graph is not None
    stats = TableStats(100, {"word": ColumnStats(100, 40.0)})
    plan = optimize(graph, Context(stats))

    assert plan.steps[0].estimate.calls_per_row == 0.2
    assert "answers may change: up to 5 rows share a prompt" in explain_plan(plan)
    assert optimize(graph, Context(stats, without=frozenset({"pack"}))).notes == ()


# ---- texts --------------------------------------------------------------------------------------


def step(prompt: str, **more: Any) -> LLM:
    return LLM(id="s", prompt=Prompt(prompt), pack=Pack(4), **more)


def test_what_rows_have_in_common_stands_in_the_prompt_once() -> None:
    asked = step("{{ policy }}\nJudge this: {{ text }}\n\nIs it polite?")
    values = [{"policy": "Be fair.", "text": text} for text in ("Go!", "Item 1:\nplease")]
    (message,) = pack_chat(asked, [asked.prompt.render(each) for each in values], values, None)

    assert message.content.startswith(
        "Be fair.\nJudge this: \n\nItem 1:\nGo!\n\nItem 2:\nItem 1:\nplease\n\nIs it polite?\n\n"
    )


def test_a_prompt_of_code_alone_is_repeated() -> None:
    asked = step("{% if long %}{{ text }}{% endif %}!")
    values = [{"long": True, "text": "a"}, {"long": False, "text": "b"}]
    (message,) = pack_chat(asked, [asked.prompt.render(each) for each in values], values, "Hi")[1:]
    assert message.content.startswith("Item 1:\na\n\nItem 2:\n\n\n!\n\nThere are 2 items.")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"item": 1, "answer": "x"}, {"item": 2, "answer": "y"}]', ["x", "y"]),
        ('Sure: [{"item": 1, "answer": "x"}, {"item": 2, "ans', ["x", None]),
        ('[{"item": 2, "answer": "x"}, {"item": 1, "answer": "y"}]', [None, None]),
        ('[{"item": 1, "answer": "z"}, {"item": 2, "answer": 1}]', [None, None]),
        ('[{"item": true, "answer": "x"}, {"item": 2, "answer": "y"}]', [None, "y"]),
        ('{"item": 1, "answer": "x"}', [None, None]),
        ('[1, {"item": 2, "answer": "y"}]', [None, None]),
        ("[" * 100_000, [None, None]),
        ("", [None, None]),
    ],
)
def test_answers_are_read_as_far_as_they_go(text: str, found: list[str | None]) -> None:
    asked = step("{{ text }}", choices=("x", "y"))
    read = read_pack(text, asked, 2)
    assert [each and each[0] for each in read] == found


def test_the_grammar_names_each_item_and_keeps_the_answers_type() -> None:
    typed = (
        '{"type":"object","properties":{"a":{"$ref":"#/$defs/A"}},"$defs":{"A":{"type":"string"}}}'
    )
    schema = json.loads(pack_schema(step("{{ t }}", schema=typed), 3))

    assert (schema["minItems"], schema["maxItems"], len(schema["prefixItems"])) == (3, 3, 3)
    assert schema["prefixItems"][1]["properties"]["item"] == {"const": 2}
    assert schema["$defs"] == {"A": {"type": "string"}}


def test_it_reads_back_from_yaml_as_itself() -> None:
    made = flow(pack=4, votes=3, choices=["x", "y"]).workflow
    again = loads(dump(made))

    assert again.graph == made.graph
    assert again.fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pack": 1}, "pack is 1; it must be from 2 to 64"),
        ({"pack": "4"}, "pack is a whole number, not '4'"),
        ({"votes": 3}, "votes are those of a pack: give the step pack= too"),
        ({"pack": 4, "votes": 99, "choices": ["a", "b"]}, "votes is 99; it must be from 1 to 15"),
        ({"pack": 4, "votes": 3}, "votes are counted over equal answers: give it choices"),
        ({"pack": 4, "stop": ["."]}, "it has a pack and stop texts, which would cut all answers"),
    ],
)
def test_what_can_be_wrong_with_it(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidWorkflow, match=told):
        _ = flow(**settings).graph
