"""Reasoning steps: a model that thinks for as long as it pays."""

from typing import Any

from ...planner.graph import LLM, Reasoning
from ..reasoning.named import DEFAULT_STRATEGY, SAMPLING, checked
from .handles import LLMStep, check_name
from .places import here, refuse
from .prompts import prompt_of, sampling_of


def reason(
    prompt: str,
    *,
    strategy: str = DEFAULT_STRATEGY,
    system: str | None = None,
    model: str = "default",
    max_tokens: int = SAMPLING.max_tokens,
    temperature: float = SAMPLING.temperature,
    top_k: int = 0,
    top_p: float = SAMPLING.top_p,
    seed: int | None = None,
    name: str | None = None,
    **settings: Any,
) -> LLMStep:
    """A step that thinks and answers with a text; used like `llm(...)`.

    `strategy` is "thought" (one chain, probed as it grows, that ends when its answer stands),
    "self-consistency" (a few samples that race until two agree), "vote" or "first-finish".
    `max_tokens` bounds one sample. `settings` are those of the strategy, as `n`, and of all:
    `answers` ("math", "exact", "json", or a list of choices) says when two answers are the same,
    `budget_tokens` bounds all samples and probes, `suffix` is what a probe appends to a thought so
    that an answer follows, `rule` ("default", "full", or what `tenter calibrate` printed) when a
    thought may end, and `shadow` the share of programs that think to their end, to keep it honest.
    See docs/reasoning.md.
    """
    check_name(name, "a reasoning step")
    try:
        thinking = Reasoning(strategy, checked(strategy, settings))
    except ValueError as error:
        raise refuse(str(error)) from None
    step = LLM(
        id=name or "reason",
        prompt=prompt_of(prompt, "prompt"),
        system=None if system is None else prompt_of(system, "system"),
        model=model,
        sampling=sampling_of(max_tokens, temperature, top_k, top_p, (), seed),
        reasoning=thinking,
        place=here(),
    )
    return LLMStep(step, None, name)
