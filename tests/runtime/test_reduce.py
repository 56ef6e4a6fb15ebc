"""Reduces over lists: one call where the list fits into a prompt, else a tree of calls."""

from dataclasses import replace
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from tenter.runtime import each, explain, llm, reduce, workflow
from tenter.runtime.api import WorkflowHandle
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidWorkflow, StepFailed
from tenter.runtime.journal.base import StepRecord
from tenter.runtime.journal.memory import MemoryJournal
from tenter.runtime.run.local import open_host, run_workflow
from tenter.runtime.run.program import Programs
from tenter.runtime.spec import dump, loads
from tenter.runtime.workflow import Workflow

LINES = "Sum:{% for part in parts %} {{ part }}{% endfor %}"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def summing(**settings: Any) -> WorkflowHandle:
    total = reduce(LINES, over="parts", max_tokens=8, name="total", **settings)

    @workflow
    def flow(parts: list[str]) -> str:
        return total(parts=parts)

    return flow


def adds(prompt: str) -> str:
    return str(sum(map(int, prompt.partition(":")[2].split())))


class Slow(FakeBackend):
    """Answers the later the earlier it was asked, in a context of `context_tokens` bytes."""

    def __init__(self, context_tokens: int, **more: Any) -> None:
        super().__init__(adds, remember=True, **more)
        self.capabilities = replace(self.capabilities, context_tokens=context_tokens)

    async def generate(self, request: Any) -> Any:
        await anyio.sleep(1.0 / (1 + len(self.asked)))
        async for chunk in super().generate(request):
            yield chunk


async def run(flow: WorkflowHandle, backend: FakeBackend, **inputs: Any) -> Any:
    return await run_workflow(flow.workflow, inputs, backends={"default": backend})


async def test_a_list_that_fits_is_one_call() -> None:
    backend = Slow(1000)
    assert await run(summing(), backend, parts=["1", "2", "3"]) == "6"
    assert backend.asked == ["Sum: 1 2 3"]


async def test_a_longer_one_is_folded_and_the_folds_are_folded() -> None:
    """A prompt has at most 24 bytes here: of context 32, 8 are for the answer."""
    backend = Slow(32)
    parts = [str(n) for n in range(10, 50)]

    assert await run(summing(), backend, parts=parts) == str(sum(range(10, 50)))
    assert max(map(len, backend.asked)) <= 24
    assert len(backend.asked) == len(set(backend.asked)) == 7 + 2 + 1


async def test_what_is_folded_together_does_not_depend_on_who_answers_first() -> None:
    parts = [str(n) for n in range(10, 90)]
    slow, quick = Slow(40), FakeBackend(adds, remember=True)
    quick.capabilities = slow.capabilities

    assert await run(summing(), slow, parts=parts) == await run(summing(), quick, parts=parts)
    assert sorted(slow.asked) == sorted(quick.asked)


async def test_folds_have_a_prompt_of_their_own_where_they_want_one() -> None:
    backend = Slow(32)
    flow = summing(merge="Fold:{% for part in parts %} {{ part }}{% endfor %}")

    assert await run(flow, backend, parts=[str(n) for n in range(10, 20)]) == "145"
    assert [prompt[:5] for prompt in backend.asked] == ["Sum: ", "Sum: ", "Fold:"]


async def test_the_author_may_want_shorter_prompts_or_no_tree_at_all() -> None:
    short, flat = Slow(1000), Slow(16)
    parts = [str(n) for n in range(10, 20)]

    assert await run(summing(batch_tokens=14), short, parts=parts) == "145"
    assert max(map(len, short.asked)) <= 14
    await run(summing(tree=False), flat, parts=parts)
    assert len(flat.asked) == 1


async def test_what_cannot_be_folded_says_what_to_change() -> None:
    with pytest.raises(StepFailed, match=r"'total': item 1 of 'parts' .* the 24 tokens of a call"):
        await run(summing(), Slow(32), parts=["1", "2" * 30, "3"])
    with pytest.raises(StepFailed, match=r"'total': two answers of 'parts' .* 12 tokens of level"):
        await run(summing(), Slow(20), parts=["1111", "2222", "3333", "9999"])
    with pytest.raises(StepFailed, match="it reduces 'parts', a list, and got str: '12'"):
        await run(summing(), Slow(32), parts="12")


async def test_no_items_are_one_call_too() -> None:
    assert await run(summing(), Slow(32), parts=[]) == "0"
    assert await run(summing(), Slow(10), parts=[]) == "0"


async def resumed(backend: FakeBackend, flow: Workflow, parts: list[str], **recorded: Any) -> Any:
    """What a resumed run gives that has these records."""
    answers = list[Any]()
    async with open_host({"default": backend}, journal=MemoryJournal(), resumed=True) as host:
        ended = anyio.Event()

        def take(value: Any, error: Exception | None) -> None:
            answers.append(error or value)
            ended.set()

        Programs(host, flow).arrive(0, {"parts": parts}, take, recorded)
        await ended.wait()
    return answers[0]


async def test_each_fold_is_recorded_and_not_asked_again() -> None:
    journal = MemoryJournal()
    flow, parts = summing().workflow, [str(n) for n in range(10, 50)]
    first = Slow(32)
    await run_workflow(flow, {"parts": parts}, backends={"default": first}, journal=journal)
    recorded = await journal.steps(0, 0)
    assert {path for _, path in recorded} >= {
        "total[0][0:6]",
        "total[0][36:40]",
        "total[2][0:40]",
        "total",
    }

    folds: dict[str, StepRecord] = {
        path: record for (_, path), record in recorded.items() if path.startswith("total[0]")
    }
    second = Slow(32)
    assert await resumed(second, flow, parts, **folds) == str(sum(range(10, 50)))
    assert len(second.asked) == 3, "the upper two levels"


async def test_a_server_with_another_context_takes_no_fold_for_one_of_other_items() -> None:
    journal = MemoryJournal()
    flow, parts = summing().workflow, [str(n) for n in range(10, 50)]
    backends = {"default": Slow(32)}
    await run_workflow(flow, {"parts": parts}, backends=backends, journal=journal)
    folds = {path: record for (_, path), record in (await journal.steps(0, 0)).items()}
    del folds["total"]

    assert await resumed(Slow(44), flow, parts, **folds) == str(sum(range(10, 50)))


# ---- types and texts ----------------------------------------------------------------------------


class Note(BaseModel):
    text: str
    score: int


def test_answers_must_be_able_to_take_the_place_of_items() -> None:
    note = llm("Note: {{ x }}", output=Note)
    total = reduce(LINES, over="parts")
    merged = reduce(LINES, over="parts", merge=LINES)
    flat = reduce(LINES, over="parts", tree=False)

    for step, right in ((total, False), (merged, True), (flat, True)):

        @workflow
        def flow(xs: list[str]) -> str:
            return step(parts=each(xs, lambda x: note(x=x)))  # noqa: B023

        if right:
            assert flow.graph is not None
        else:
            with pytest.raises(InvalidWorkflow, match="each item is a mapping and an answer a sin"):
                _ = flow.graph


def test_it_reads_back_from_yaml_as_itself() -> None:
    flow = summing(merge="{{ parts }}", batch_tokens=100, system="Be brief.").workflow
    again = loads(dump(flow))

    assert again.graph == flow.graph
    assert again.fingerprint == flow.fingerprint
    assert loads(dump(summing(tree=False).workflow)).graph == summing(tree=False).graph


def test_explain_counts_its_calls() -> None:
    (step,) = explain(summing(batch_tokens=30), [{"parts": ["a text"] * 90}]).steps
    assert step.kind == "reduce"
    assert step.calls > 1
