"""Recorded pipelines and tool-use tasks: CHESS-style text-to-SQL, and BFCL's multi-turn tasks.

Neither file has times: all programs arrive at 0. What else is assumed is in docs/replay.md.
"""

from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ..errors import InvalidInput
from .program import Pause, Program, Span, Turn, Workload, joined
from .text import open_text, row_error

# The part of a step's prompt that is the same for all requests, in tokens (the `template_tokens`
# of HexGen-Flow's simulator, 2505.05286). Candidates come from two templates, the long one first.
CANDIDATE = "generate_candidate_llama-agent"
LONG_CANDIDATE = 9158
TEMPLATES = {
    "Information Retriever": 213,
    "extract_keywords": 630,
    CANDIDATE: 5292,
    "revise": 3059,
    "unit_tester": 213,
    "generate_unit_test": 436,
    "evaluate": 261,
}
PARALLEL = frozenset({CANDIDATE, "evaluate"})
OWN_TOKENS = 128  # at the end of a prompt: what differs between a request's calls of one step


class _Step(msgspec.Struct, frozen=True, gc=False):
    step: str
    input_length: Annotated[int, Meta(ge=1, lt=1 << 31)]
    output_length: Annotated[int, Meta(ge=0, lt=1 << 31)]


class _Asked(msgspec.Struct, frozen=True):
    steps: Annotated[tuple[_Step, ...], Meta(min_length=1)] = msgspec.field(name="Text2SQLRequest")


def text2sql(path: Path | str) -> Workload:
    """text2sql/input_file_trace*.json: a program per request, in the order of the file.

    Candidates are generated side by side, and so are a candidate's evaluations; the steps of the
    other kinds follow each other. Raises InvalidInput while iterating, for a damaged file.
    """
    return Workload("text2sql", lambda: _requests(Path(path)))


def _requests(path: Path) -> Iterator[Program]:
    with open_text(path) as file:
        try:
            requests = msgspec.json.decode(file.read(), type=tuple[_Asked, ...])
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidInput(f"{path}: {error}") from None
    streams, templates = count(), dict[tuple[str, int], int]()
    for index, request in enumerate(requests):
        stages = tuple(_stages(request, streams, templates))
        yield Program(0.0, f"request-{index}", stages, "text2sql", f"user-{index}")


def _stages(
    request: _Asked, streams: Iterator[int], templates: dict[tuple[str, int], int]
) -> Iterator[tuple[Turn, ...]]:
    """A prompt is its template, what all calls of that template in the request share, its own."""
    steps = [(step, _template(request.steps, index)) for index, step in enumerate(request.steps)]
    shortest: dict[tuple[str, int], int] = {}
    for step, template in steps:
        shortest[template] = min(shortest.get(template, step.input_length), step.input_length)
    context = {template: next(streams) for template in shortest}

    def turn(step: _Step, template: tuple[str, int]) -> Turn:
        if template not in templates:
            templates[template] = next(streams)
        head = min(template[1], step.input_length)
        shared = max(shortest[template] - OWN_TOKENS, head)
        spans = (
            Span(templates[template], 0, head),
            Span(context[template], 0, shared - head),
            Span(next(streams), 0, step.input_length - shared),
        )
        return Turn(joined(spans), max(step.output_length, 1))

    for name, group in groupby(steps, lambda pair: pair[0].step):
        turns = tuple(turn(*pair) for pair in group)
        yield from [turns] if name in PARALLEL else [(one,) for one in turns]


def _template(steps: tuple[_Step, ...], index: int) -> tuple[str, int]:
    """The template of a step, by name and length; of two candidates the first has the long one."""
    name = steps[index].step
    if name == CANDIDATE and (index == 0 or steps[index - 1].step != CANDIDATE):
        return name, LONG_CANDIDATE
    return name, TEMPLATES.get(name, 0)


class _Task(msgspec.Struct, frozen=True):
    """A line of BFCL's file, as far as it is of use here."""

    id: str
    question: tuple[tuple["_Said", ...], ...]
    path: tuple[str, ...] = ()
    involved_classes: tuple[str, ...] = ()


class _Said(msgspec.Struct, frozen=True):
    content: str


def bfcl(
    path: Path | str,
    tool_s: float = 0.5,
    human_s: float = 10.0,
    class_tokens: int = 1500,
    call_tokens: int = 40,
    result_tokens: int = 120,
    answer_tokens: int = 60,
) -> Workload:
    """agents/bfcl_multi_turn_base.json.gz: a program per task, shaped by its questions and calls.

    The file has texts and names of functions, no token counts and no times: those are the
    arguments (tokens of a class's tool definitions, of a call, its result and an answer; seconds
    of a tool and of a person between two questions). A question has a token per four characters;
    the calls of a task are dealt to its questions evenly. Raises InvalidInput while iterating.
    """
    amounts = _Amounts(tool_s, human_s, class_tokens, call_tokens, result_tokens, answer_tokens)
    return Workload("bfcl", lambda: _tasks(Path(path), amounts))


class _Amounts(msgspec.Struct, frozen=True):
    tool_s: float
    human_s: float
    class_tokens: int
    call_tokens: int
    result_tokens: int
    answer_tokens: int


def _tasks(path: Path, amounts: _Amounts) -> Iterator[Program]:
    decode, streams, classes = msgspec.json.Decoder(_Task).decode, count(), dict[str, int]()
    with open_text(path) as file:
        for line, text in enumerate(file, start=1):
            try:
                task = decode(text)
                if not task.question:
                    raise ValueError("a task needs a question")
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                raise row_error(path, line, error) from None
            names = sorted(task.involved_classes)
            tools = [classes.setdefault(name, next(streams)) for name in names]
            head = tuple(Span(stream, 0, amounts.class_tokens) for stream in tools)
            stages = _dialogue(task, head, next(streams), amounts)
            yield Program(0.0, task.id, tuple((turn,) for turn in stages), "bfcl", task.id)


def _dialogue(task: _Task, head: tuple[Span, ...], own: int, amounts: _Amounts) -> Iterator[Turn]:
    """Per question its calls, each with a tool behind it, and an answer."""
    questions, tokens = len(task.question), 0
    for index, question in enumerate(task.question):
        tokens += max(sum(len(said.content) for said in question) // 4, 1)
        for call in task.path[index::questions]:
            prompt = joined((*head, Span(own, 0, tokens)))
            name, _, word = call.rpartition(".")
            yield Turn(prompt, amounts.call_tokens, Pause(amounts.tool_s, "tool", name, word))
            tokens += amounts.call_tokens + amounts.result_tokens
        last = index == questions - 1
        pause = None if last else Pause(amounts.human_s, "human")
        yield Turn(joined((*head, Span(own, 0, tokens))), amounts.answer_tokens, pause)
        tokens += amounts.answer_tokens
