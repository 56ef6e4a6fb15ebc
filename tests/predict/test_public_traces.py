"""Coverage step by step on a recorded pipeline, where the data is at hand; nothing is tuned on it."""

from collections import defaultdict
from pathlib import Path

import pytest

from tenter.runtime.predict import Learned
from tenter.runtime.replay import text2sql
from tenter.runtime.scheduler.events import CallEnded, CallReady, ProgramArrived, ProgramEnded

TRACES = sorted((Path(__file__).parents[3] / "shared" / "data" / "text2sql").glob("input_file*"))

pytestmark = pytest.mark.skipif(not TRACES, reason="the text-to-SQL traces are not here")


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_answers_of_each_step_are_covered_as_promised(path: Path, share: float) -> None:
    """Each answer is foretold before it is learned; some steps answer with one token, always."""
    learned = Learned()
    judged: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for index, program in enumerate(text2sql(path)):
        learned.observe(ProgramArrived(program="p", row=index, workflow="sql"))
        for at, turn in enumerate(program.turns):
            call, step = f"p/{at}", f"template{turn.prompt[0].stream}"
            learned.observe(
                CallReady(
                    call=call,
                    program="p",
                    step=step,
                    model="m",
                    prompt_tokens=turn.prompt_tokens,
                    max_tokens=1 << 16,
                )
            )
            left = learned.output_tokens_left("p", call, share)
            if left is not None and index >= 20:
                judged[step].append((turn.output_tokens < left, turn.output_tokens <= left))
            learned.observe(
                CallEnded(
                    call=call,
                    program="p",
                    step=step,
                    finish="stop",
                    output_tokens=turn.output_tokens,
                )
            )
        learned.observe(ProgramEnded(program="p", row=index, ok=True))

    often = {step: found for step, found in judged.items() if len(found) >= 60}
    assert len(often) >= 5
    for step, found in often.items():
        below, covered = (sum(one) / len(found) for one in zip(*found, strict=True))
        assert below <= share + 0.12 and covered >= share - 0.12, step
