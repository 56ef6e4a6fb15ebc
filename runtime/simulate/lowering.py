"""Rows of a table as programs: the planned steps of a workflow become stages of turns.

Prompts are rendered and tokenised as in a run; what no input gives is stood in for. A step waits for
what it reads; steps that could run at once are turns of one stage.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Any, cast

from ...planner.cost import iterations
from ...planner.errors import PlannerError
from ...planner.graph import LLM, Repeat, ToolCall, reads, tools_of
from ...planner.plan import repeatable
from ...planner.prompt import Prompt, Static
from ...planner.sizes import DEFAULT_ITEMS
from ...planner.values import Evaluate, compile_value
from ..calls import Message, Tokenizer, ToolSpec
from ..replay import Pause, Program, Span, Turn, joined
from ..run.machine import Body, Node, compile_graph
from ..workflow import Workflow
from .folding import fold
from .standin import RESULT_TOKENS, StandIns

CHUNK = 16  # tokens; the finest page that is simulated
REMEMBERED = 100_000  # equal calls are found among so many; a run keeps as many
HALF = (1 << 31) - 1

Moment = tuple[int, float, str]
"""When a value is there: the stages before it, the seconds of tools since the last of them, and the
tool that ran last."""
START: Moment = (0, 0.0, "")


@dataclass(slots=True)
class _Row:
    """A row on its way to a program."""

    row: int
    stages: list[list[Turn]] = field(default_factory=list[list[Turn]])
    pauses: dict[int, Pause] = field(default_factory=dict[int, Pause])  # before a stage


@dataclass(slots=True)
class _Frame:
    """The names that the steps of a body see, and when each is there."""

    values: dict[str, Any]
    when: dict[str, Moment]
    start: Moment = START


@dataclass(frozen=True, slots=True)
class _Asking:
    """An LLM step, made ready once. `equal`: its answer repeats where the chat does."""

    name: str
    equal: bool
    args: tuple[tuple[str, Evaluate], ...]
    tools: tuple[ToolSpec, ...]

    @classmethod
    def of(cls, step: LLM, workflow: Workflow) -> "_Asking":
        found = [workflow.tools[name] for name in tools_of(step) if name in workflow.tools]
        tools = tuple(ToolSpec(t.name, t.description, t.parameters) for t in found)
        args = tuple((name, compile_value(value)) for name, value in step.args)
        told = (step.model, step.sampling, step.choices, step.schema, step.loop)
        return cls(repr(told), repeatable(step) or bool(step.choices), args, tools)


class Lowering:
    """Makes programs of rows; `workflow` has the graph that a plan carries out.

    `shared` counts calls that were left out because an equal one is asked before.
    """

    def __init__(
        self, workflow: Workflow, tokenizer: Tokenizer, stand_ins: StandIns, seed: int
    ) -> None:
        assert workflow.graph is not None
        self._workflow, self._body = workflow, compile_graph(workflow.graph)
        self._tokenizer, self._draw, self._seed = tokenizer, stand_ins, seed
        self._asking: dict[int, _Asking] = {}  # by the identity of the step
        self._known: OrderedDict[int, None] = OrderedDict()  # calls that were asked
        self.shared = 0

    def program(self, row: int, inputs: Mapping[str, Any], arrival_s: float) -> Program | None:
        """The program of one row; None where it asks nothing of a model."""
        made = _Row(row)
        self._walk(self._body, _Frame(dict(inputs), {}), made)
        if not made.stages:
            return None
        return Program(arrival_s, f"r{row}", tuple(_stages(made)), self._workflow.name, f"r{row}")

    def _walk(self, body: Body, frame: _Frame, made: _Row) -> Moment:
        """Go through the steps of a body; when all of them are done."""
        end = frame.start
        for node in body.nodes:
            known = [frame.when[name] for name in reads(node.step) if name in frame.when]
            at = max([frame.start, *known])
            if node.guard is not None and not self._guess(node.guard, frame, True):
                value = None
            else:
                value, at = self._step(node, frame, at, made)
            frame.values[node.id], frame.when[node.id] = value, at
            end = max(end, at)
        return end

    def _step(self, node: Node, frame: _Frame, at: Moment, made: _Row) -> tuple[Any, Moment]:
        match node.step:
            case LLM() as step:
                return self._ask(step, frame, at, made)
            case ToolCall() as step:
                return self._use(step, node, frame, at, made)
            case Repeat() as step if node.body is not None:
                return self._repeat(step, node, node.body, frame, at, made)
            case _ if node.body is not None:
                return self._each(node, node.body, frame, at, made)
            case _:
                assert node.value is not None
                return self._guess(node.value, frame, None), at

    def _guess(self, evaluate: Evaluate, frame: _Frame, otherwise: Any) -> Any:
        """A value, which a stand-in may have the wrong form for; None: some text instead."""
        try:
            return evaluate(frame.values)
        except PlannerError:
            if otherwise is not None:
                return otherwise
            return self._draw.text(RESULT_TOKENS, Random(self._seed))

    # ---- models -------------------------------------------------------------------------------

    def _ask(self, step: LLM, frame: _Frame, at: Moment, made: _Row) -> tuple[Any, Moment]:
        args = self._asking_of(step).args
        values = {name: self._guess(value, frame, None) for name, value in args}
        if step.reduce is None:
            return self._call(step, values, at, made)
        return fold(step, values, at, self._tokens, partial(self._call, made=made))

    def _asking_of(self, step: LLM) -> _Asking:
        asking = self._asking.get(id(step))
        if asking is None:
            asking = self._asking[id(step)] = _Asking.of(step, self._workflow)
        return asking

    def _tokens(self, step: LLM, values: Mapping[str, Any]) -> int:
        return len(self._tokenizer.chat(self._chat(step, values), self._asking_of(step).tools))

    def _call(
        self, step: LLM, values: Mapping[str, Any], at: Moment, made: _Row
    ) -> tuple[Any, Moment]:
        asking, chat = self._asking_of(step), self._chat(step, values)
        name, random = self._named(f"{asking.name}/{chat}", asking.equal, made)
        tokens = self._draw.output_tokens(step, random)
        value = self._draw.answer(step, tokens, random)
        if not self._first(name, asking.equal):
            self.shared += 1
            return value, at
        stage, pause_s, tool = at
        if tool and stage:
            _wait(made, stage, Pause(pause_s, "tool", tool))
        prompt = _spans(self._tokenizer.chat(chat, asking.tools))
        for turn in self._turns(step, prompt, tokens, random):
            if stage == len(made.stages):
                made.stages.append([])
            made.stages[stage].append(turn)
            stage += 1
            if turn.pause is not None:
                _wait(made, stage, turn.pause)
        return value, (stage, 0.0, "")

    def _turns(
        self, step: LLM, prompt: tuple[Span, ...], tokens: int, random: Random
    ) -> Iterator[Turn]:
        """One turn, or those of an agent: half of what it may take, on average."""
        loop = step.loop
        turns = random.randint(1, max(loop.max_turns, 1)) if loop and loop.tools else 1
        left = (loop.max_tokens if loop else None) or HALF  # tokens that it may still write
        for index in range(turns):
            turn = Turn(prompt, min(tokens, left))
            left -= turn.output_tokens
            if index == turns - 1 or left <= 0 or loop is None:
                yield turn
                return
            tool = random.choice(loop.tools)
            pause = Pause(self._draw.seconds(tool, random), "tool", tool)
            yield Turn(prompt, turn.output_tokens, pause)
            answer = turn.answer
            result = Span(answer.stream, answer.stop, answer.stop + RESULT_TOKENS)
            prompt = joined((*prompt, answer, result))
            tokens = self._draw.output_tokens(step, random)

    def _chat(self, step: LLM, values: Mapping[str, Any]) -> list[Message]:
        messages = [Message("user", self._text(step.prompt, values))]
        if step.system is not None:
            messages.insert(0, Message("system", self._text(step.system, values)))
        return messages

    def _text(self, prompt: Prompt, values: Mapping[str, Any]) -> str:
        """A prompt's text; where a stand-in does not fit its code, its own text and some more."""
        try:
            return prompt.render(values)
        except PlannerError:
            return "".join(
                part.text
                if isinstance(part, Static)
                else self._draw.text(RESULT_TOKENS, Random(self._seed))
                for part in prompt.segments
            )

    # ---- tools and lists ------------------------------------------------------------------------

    def _use(
        self, step: ToolCall, node: Node, frame: _Frame, at: Moment, made: _Row
    ) -> tuple[Any, Moment]:
        assert node.value is not None
        pure = step.effect == "pure"
        given = repr((step.tool, self._guess(node.value, frame, None)))
        name, random = self._named(given, pure, made)
        value = self._draw.text(RESULT_TOKENS, random)
        if not self._first(name, pure):
            return value, at
        return value, (at[0], at[1] + self._draw.seconds(step.tool, random), step.tool)

    def _each(
        self, node: Node, body: Body, frame: _Frame, at: Moment, made: _Row
    ) -> tuple[Any, Moment]:
        assert node.value is not None
        items: Any = self._guess(node.value, frame, None)
        if not isinstance(items, list):
            items = [items] * DEFAULT_ITEMS
        results: list[Any] = []
        end = at
        for item in cast("list[Any]", items):
            inner = _Frame({**frame.values, node.item: item}, dict(frame.when), at)
            end = max(end, self._walk(body, inner, made))
            results.append(self._guess(body.result, inner, None))
        return results, end

    def _repeat(
        self, step: Repeat, node: Node, body: Body, frame: _Frame, at: Moment, made: _Row
    ) -> tuple[Any, Moment]:
        """As often as it is expected to: what stands in for an answer says nothing of its end."""
        assert node.value is not None
        value = self._guess(node.value, frame, None)
        for _ in range(round(iterations(step))):
            inner = _Frame({**frame.values, node.item: value}, dict(frame.when), at)
            at = self._walk(body, inner, made)
            value = self._guess(body.result, inner, None)
        return value, at

    # ---- equal work -----------------------------------------------------------------------------

    def _named(self, text: str, equal: bool, made: _Row) -> tuple[int, Random]:
        """A name of some work, and what is drawn for it: the same for equal work, if it repeats."""
        own = "" if equal else f"{made.row}/{len(made.stages)}"
        digest = blake2b(f"{self._seed}/{own}/{text}".encode("utf-8", "replace"), digest_size=8)
        name = int.from_bytes(digest.digest(), "big")
        return name, Random(name)

    def _first(self, name: int, equal: bool) -> bool:
        """Whether this work is to be done: a run does equal work once."""
        if not equal:
            return True
        if name in self._known:
            self._known.move_to_end(name)
            return False
        self._known[name] = None
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return True


def _wait(made: _Row, stage: int, pause: Pause) -> None:
    """Let `stage` begin only after `pause`; of several the longest counts."""
    if stage not in made.pauses or made.pauses[stage].seconds < pause.seconds:
        made.pauses[stage] = pause


def _stages(made: _Row) -> Iterator[tuple[Turn, ...]]:
    for index, turns in enumerate(made.stages, start=1):
        last = turns[-1]
        rest = (Turn(turn.prompt, turn.output_tokens) for turn in turns[:-1])
        yield (*rest, Turn(last.prompt, last.output_tokens, made.pauses.get(index)))


def _spans(token_ids: list[int]) -> tuple[Span, ...]:
    """A prompt of which two share a beginning as far as their tokens do, chunk by chunk.

    The place of a chunk in the streams is a hash of its tokens, so nothing has to be remembered.
    """
    spans: list[Span] = []
    for start in range(0, len(token_ids), CHUNK):
        chunk = tuple(token_ids[start : start + CHUNK])
        place = hash(chunk)
        first = (place >> 31) & (HALF >> 1)
        spans.append(Span(place & HALF, first, first + len(chunk)))
    return tuple(spans)
