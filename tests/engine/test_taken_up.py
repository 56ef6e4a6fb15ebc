"""An answer that was cut off is taken up where it was: the same tokens, none drawn twice."""

from collections.abc import Callable, Iterable

import msgspec
import pytest

from tenter.runtime.calls import Chunk, Request
from tenter.runtime.engine.engine import Engine
from tenter.runtime.errors import CallFailed

MakeEngine = Callable[..., Engine]
Run = Callable[[Engine, Iterable[Request]], dict[str, Chunk]]
Ask = Callable[..., Request]

PROMPT = [40, 41, 42, 50, 60, 70, 80] * 6
SCHEMA = '{"type": "object", "properties": {"n": {"enum": ["billing", "bug"]}}, "required": ["n"]}'


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0, "seed": 5}, {"temperature": 0.9, "top_p": 0.8, "seed": 6}],
    ids=["greedy", "seeded", "nucleus"],
)
@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["text", "schema"])
def test_the_whole_answer_is_the_same_wherever_it_was_cut(
    engine: MakeEngine, run: Run, ask: Ask, settings: dict[str, float], schema: str | None
) -> None:
    request = msgspec.structs.replace(ask("a", PROMPT, max_tokens=24, **settings), schema=schema)
    whole = run(engine("qwen3"), [request])["a"]
    for cut in range(1, len(whole.token_ids), 5):
        rest = msgspec.structs.replace(request, drawn=whole.token_ids[:cut])
        again = run(engine("qwen3"), [rest])["a"]
        assert (again.text, again.token_ids) == (whole.text, whole.token_ids)
        assert again.usage is not None
        assert again.usage.output_tokens == len(whole.token_ids) - cut
        assert again.usage.prompt_tokens == len(PROMPT)


def test_a_streamed_answer_comes_in_pieces_of_the_wanted_size(engine: MakeEngine, ask: Ask) -> None:
    made = engine("qwen3")
    request = ask("a", PROMPT, max_tokens=20, ignore_eos=True)
    made.submit(msgspec.structs.replace(request, stream=True, chunk_tokens=8))
    chunks = [output.chunk for _ in range(40) for output in made.step()]
    assert [len(chunk.token_ids) for chunk in chunks] == [8, 8, 4]


def test_an_answer_that_has_ended_cannot_be_taken_up(engine: MakeEngine, ask: Ask) -> None:
    made = engine("qwen3")
    request = msgspec.structs.replace(ask("a", PROMPT, max_tokens=4), drawn=(5, 6, 7, 8))
    with pytest.raises(CallFailed, match="ends within the tokens"):
        made.submit(request)
    assert not made.busy
