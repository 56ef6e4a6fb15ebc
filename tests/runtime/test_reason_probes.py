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


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class SlowProbes(FakeBackend):
    """A byte a second, and half a minute for a trial answer, which is never right."""

    def __init__(self, *lines: bytes) -> None:
        super().__init__()
        self.lines = list(lines)
        self.probes: list[str] = []

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        probe = request.sampling.temperature == 0.0
        if probe:
            self.probes.append(request.call)
        line = b"9}" if probe else self.lines.pop(0)
        await anyio.sleep(30 if probe else len(line))
        ids = (*line, 256)
        usage = Usage(prompt_tokens=len(request.token_ids), output_tokens=len(ids))
        yield Chunk(text=line.decode(), token_ids=ids, finish="stop", usage=usage)


async def test_a_sample_is_probed_again_where_it_still_stands() -> None:
    slow = b"x" * 100 + b"\nanswer: 6"
    backend = SlowProbes(b"answer: 4", b"so the answer: 5", slow, slow)
    ask = reason("2 + 2?", strategy="self-consistency", n=4, max_tokens=400)

    @workflow
    def solve() -> str:
        return ask()

    with anyio.fail_after(1_000):
        found = await run_workflow(solve.workflow, {}, backends={"default": backend})
    assert found == "6"
    assert len(backend.probes) == len(set(backend.probes)) > 3


def test_a_setting_that_may_be_left_out_is_a_number_where_it_is_given() -> None:
    reason("2 + 2?", strategy="vote", threshold=0.7, check_from=5)
    with pytest.raises(InvalidInput, match="threshold is of type float"):
        reason("2 + 2?", strategy="vote", threshold="high")
