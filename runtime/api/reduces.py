"""Reduces: one answer of a list, as a tree of calls where the list is long."""

from typing import Any

from ...planner.graph import LLM, Reduce
from .handles import LLMStep, check_name
from .places import here, refuse
from .prompts import prompt_of, sampling_of, whole
from .types import adapter_of, schema_text


def reduce(
    prompt: str,
    *,
    over: str,
    merge: str | None = None,
    batch_tokens: int | None = None,
    tree: bool = True,
    system: str | None = None,
    output: Any = None,
    model: str = "default",
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    name: str | None = None,
) -> LLMStep:
    """A call of a model that makes one answer of the list in its field `over`.

    A list that does not fit into a prompt is folded in batches that do, and the answers are folded
    again, by `merge` (a template with the same field, which then has answers) or by the prompt
    itself. `batch_tokens` bounds a prompt where less than the model takes is wanted; `tree=False`
    makes one call, whatever the length. Used like `llm(...)`.
    """
    check_name(name, "a reduce")
    adapter = None if output is None or output is str else adapter_of(output, "output")
    step = LLM(
        id=name or "reduce",
        prompt=prompt_of(prompt, "prompt"),
        system=None if system is None else prompt_of(system, "system"),
        model=model,
        sampling=sampling_of(max_tokens, temperature, top_k, top_p, (), seed),
        schema=schema_text(adapter.json_schema()) if adapter else None,
        reduce=_reduce(over, merge, batch_tokens, tree),
        place=here(),
    )
    return LLMStep(step, adapter, name)


def _reduce(over: Any, merge: Any, batch_tokens: Any, tree: Any) -> Reduce:
    if not isinstance(over, str) or not isinstance(tree, bool):
        raise refuse("a reduce has the name of a field as over=, and tree=True or tree=False")
    folds = None if merge is None else prompt_of(merge, "merge")
    return Reduce(over, folds, batch_tokens and whole("batch_tokens", batch_tokens), tree)
