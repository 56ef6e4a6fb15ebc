"""Reasoning steps: a model that thinks for as long as it pays."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...planner.graph import LLM, Reasoning
from ...tools import InvalidTool, Tool
from ...tools.python import python_tool
from ..reasoning.named import DEFAULT_STRATEGY, SAMPLING, checked
from ..reasoning.scorer import unknown_arguments
from ..run.context import HasTool, Program
from ..run.reason_scorer import fields_of
from ..run.trust import EMPTY, Toolbox
from .handles import LLMStep, check_name
from .places import here, refuse
from .prompts import prompt_of, sampling_of
from .tracing import current_tracer


def reason(
    prompt: str,
    *,
    strategy: str = DEFAULT_STRATEGY,
    scorer: "Callable[..., Any] | Tool | HasTool | LLMStep | None" = None,
    system: str | None = None,
    model: str = "default",
    max_tokens: int = SAMPLING.max_tokens,
    temperature: float = SAMPLING.temperature,
    top_k: int = 0,
    top_p: float = SAMPLING.top_p,
    seed: int | None = None,
    name: str | None = None,
    **settings: Any,
) -> "ReasonStep":
    """A step that thinks and answers with a text; used like `llm(...)`.

    `strategy` is "thought" (one chain, probed as it grows, that ends when its answer stands),
    "self-consistency" (a few samples that race until two agree), "vote", "first-finish", or one
    that asks a `scorer`: "best-of-n", "rebase" and "mcts" (searches over the steps of a thought) or
    "routed" (sub-problems, thought about briefly or at length). A scorer gives a number: a function
    or a tool of some of `question`, `thought`, `answer` and `part`, or an `llm(...)` with these
    fields and an `output` of a number, or choices of which the first is the good one.
    `max_tokens` bounds one sample. `settings` are those of the strategy, as `n`, and of all:
    `answers` ("math", "exact", "json", or a list of choices) says when two answers are the same,
    `budget_tokens` bounds all samples and probes, `pool` ("program", "run", "none") where what is
    left of it goes, `suffix` is what a probe appends to a thought so that an answer follows, `rule`
    ("default", "full", or what `tenter calibrate` printed) when a thought may end, `shadow` the
    share of programs that think to their end, to keep it honest, and `drift` what share of those
    may end with another answer. See docs/reasoning.md.
    """
    check_name(name, "a reasoning step")
    tool, judge = _asked(scorer)
    try:
        plain = checked(strategy, settings, scorer is not None)
    except ValueError as error:
        raise refuse(str(error)) from None
    thinking = Reasoning(strategy, plain, tool.name if tool else None, judge)
    step = LLM(
        id=name or "reason",
        prompt=prompt_of(prompt, "prompt"),
        system=None if system is None else prompt_of(system, "system"),
        model=model,
        sampling=sampling_of(max_tokens, temperature, top_k, top_p, (), seed),
        reasoning=thinking,
        place=here(),
    )
    return ReasonStep(step, name, Toolbox({tool.name: tool}) if tool else EMPTY)


class ReasonStep(LLMStep):
    """A reasoning step, ready to be used in workflows: called with the fields of its prompt."""

    def __init__(self, step: LLM, name: str | None, toolbox: Toolbox) -> None:
        super().__init__(step, None, name)
        self.toolbox = toolbox

    def __call__(self, **values: Any) -> Any:
        tracer = current_tracer.get()
        if tracer is not None:
            for tool in self.toolbox.tools.values():
                tracer.know_tool(tool)
        return super().__call__(**values)

    async def _result(self, program: Program, step: LLM, values: Mapping[str, Any]) -> Any:
        return await program.llm(step, values, self.toolbox)


def scorer_problem(tool: Tool) -> str | None:
    """Why a tool cannot be a scorer; None if it can."""
    if tool.effect == "once":
        return (
            f"the scorer {tool.name!r} has an effect, and is asked again when a run is resumed: "
            'make it effect="pure" or "idempotent"'
        )
    return unknown_arguments(json.loads(tool.parameters).get("required", []))


def judge_problem(judge: LLM) -> str | None:
    """Why a model cannot be a scorer; None if it can."""
    schema: dict[str, Any] = json.loads(judge.schema or "{}")
    if judge.loop is not None or judge.reasoning is not None:
        return "a scorer that is a model is one call of it: llm(...)"
    if not judge.choices and schema.get("type") not in ("number", "integer"):
        return "a scorer that is a model has choices, the good one first, or a number as its output"
    return unknown_arguments(list(fields_of(judge)))


def _asked(scorer: Any) -> tuple[Tool | None, LLM | None]:
    """What a scorer is: a tool, or a model that judges."""
    if scorer is None:
        return None, None
    if isinstance(scorer, LLMStep):
        judge = replace(scorer.step, id="scorer", args=())
        problem = judge_problem(judge)
        if problem is not None:
            raise refuse(problem)
        return None, judge
    tool = scorer if isinstance(scorer, Tool) else getattr(scorer, "tool", None)
    if not isinstance(tool, Tool):
        tool = _made(scorer)
    problem = scorer_problem(tool)
    if problem is not None:
        raise refuse(problem)
    return tool, None


def _made(function: Any) -> Tool:
    if not callable(function):
        raise refuse(f"a scorer is a function, a tool or an llm(...), not {function!r}")
    try:
        return python_tool(function, effect="pure")
    except InvalidTool as error:
        raise refuse(str(error)) from None
