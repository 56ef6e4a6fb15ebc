"""A model as a scorer of a reasoning step, as YAML has it."""

from ...planner.graph import LLM, Sampling
from ..api.reasons import judge_problem
from ..api.types import schema_text
from .check import scalars
from .keys import SCORER
from .reader import Item
from .types import read_type
from .values import Scope


def read_judge(item: Item, scope: Scope) -> LLM | None:
    """The call of a model that a scorer is; None, and a note, where it cannot be one."""
    notes = scope.notes
    pairs = notes.table(item, SCORER, "a scorer")
    prompts = {what: scope.prompt(pairs[what]) for what in ("llm", "system") if what in pairs}
    prompt = prompts.get("llm")
    if prompt is None or None in prompts.values():
        return None
    schema = read_type(pairs["output"], notes) if "output" in pairs else None
    choices = pairs["choices"].items if "choices" in pairs else []
    judge = LLM(
        id="scorer",
        prompt=prompt,
        system=prompts.get("system"),
        model=str(pairs["model"].scalar) if "model" in pairs else "default",
        choices=tuple(str(one.scalar) for one in choices),
        schema=None if schema is None else schema_text(schema),
        sampling=Sampling(**scalars(pairs, "max_tokens")),
    )
    problem = judge_problem(judge)
    if problem is not None:
        notes.add(problem, item)
    return judge
