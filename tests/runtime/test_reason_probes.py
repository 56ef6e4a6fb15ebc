"""Probes of a reasoning step that overlap, and settings of its strategies."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from tenter.runtime import reason, run_workflow, workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request, Usage
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import InvalidInput
from tenter.runtime.run.reason_call import told_logprobs
from tenter.runtime.scheduler.events import Reasoned
from tenter.runtime.scheduler.loop import Answer
from tenter.runtime.trace import MemoryTrace


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


PROMPT = "2 + 2?"


class SlowProbes(FakeBackend):
    """A byte a second, and half a minute for a trial answer, which is never right.

    The lines of the samples are told apart by how they begin. Called a fake.
    """

    def __init__(self, *lines: bytes) -> None:
        super().__init__()
        self.fresh = list(lines)
        self.lines = lines
        self.probes: list[str] = []
        self.asked: list[int] = []  # how far the samples had come

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        said = bytes(request.token_ids)[len(PROMPT) :]
        if request.sampling.temperature == 0.0:
            self.probes.append(request.call)
            self.asked.append(len(said.partition(b"BOX{")[0]))
            await anyio.sleep(30)
            piece, finish = b"9}", "stop"
        else:
            line = next(each for each in self.lines if each.startswith(said)) if said else None
            rest = (self.fresh.pop(0) if line is None else line)[len(said) :]
            piece = rest[: request.sampling.max_tokens]
            finish = "stop" if piece == rest else "length"
            await anyio.sleep(len(piece))
        ids = (*piece, *((256,) if finish == "stop" else ()))
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(ids))
        yield Chunk(text=piece.decode(), token_ids=ids, finish=finish, usage=usage)


async def consistent(backend: SlowProbes, trace: MemoryTrace | None = None) -> str:
    ask = reason(PROMPT, strategy="self-consistency", n=4, max_tokens=400, suffix="BOX{")

    @workflow
    def solve() -> str:
        return ask()

    with anyio.fail_after(1_000):
        return await run_workflow(solve.workflow, {}, backends={"default": backend}, trace=trace)


SLOW = (b"x" * 100 + b"\nanswer: 6", b"y" * 100 + b"\nanswer: 6")


async def test_a_sample_is_probed_again_where_it_still_stands() -> None:
    backend = SlowProbes(b"z" * 36 + b"answer: 4", b"w" * 40 + b"answer: 5", *SLOW)
    assert await consistent(backend) == "6"
    assert len(backend.probes) == len(set(backend.probes)) > 3
    assert min(backend.asked) > 30


async def test_a_sample_that_has_hardly_begun_is_not_asked() -> None:
    backend = SlowProbes(b"z" * 25 + b"answer: 4", b"w" * 26 + b"answer: 5", *SLOW)
    assert await consistent(backend) == "6"
    assert not backend.asked


async def test_a_probe_that_was_not_sent_has_cost_nothing() -> None:
    trace = MemoryTrace()
    backend = SlowProbes(*(bytes([97 + n]) * 40 + b" answer: 4" for n in range(4)))
    assert await consistent(backend, trace) == "4"
    assert not backend.probes  # all samples had ended
    (told,) = [record for _, record in trace.records if isinstance(record, Reasoned)]
    assert (told.probe_tokens, told.thought_tokens) == (0, 204)


def test_a_setting_that_may_be_left_out_is_a_number_where_it_is_given() -> None:
    reason("2 + 2?", strategy="vote", threshold=0.7, check_from=5)
    with pytest.raises(InvalidInput, match="threshold is of type float"):
        reason("2 + 2?", strategy="vote", threshold="high")


def test_the_confidence_of_a_trial_answer_is_of_its_tokens_and_its_end() -> None:
    text = "42} and so on"
    said = tuple(-float(at) for at in range(len(text)))
    answer = Answer(text, tuple(text.encode()), logprobs=said)
    assert told_logprobs(answer, FakeBackend().tokenizer) == said[:3]
    assert told_logprobs(Answer("42}", (52, 50, 125)), FakeBackend().tokenizer) == ()
