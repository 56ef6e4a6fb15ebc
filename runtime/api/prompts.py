"""What a step that asks a model is made of: its templates, and how tokens are drawn."""

from typing import Any

from ...planner.errors import PromptError
from ...planner.graph import Sampling
from ...planner.prompt import Prompt
from .places import refuse


def sampling_of(
    max_tokens: Any, temperature: Any, top_k: Any, top_p: Any, stop: Any, seed: Any
) -> Sampling:
    """Sampling settings of the right types; the graph's check looks at their ranges."""
    whole = {"max_tokens": max_tokens, "top_k": top_k} | ({} if seed is None else {"seed": seed})
    for name, value in {**whole, "temperature": temperature, "top_p": top_p}.items():
        kind = int if name in whole else int | float
        if not isinstance(value, kind) or isinstance(value, bool):
            raise refuse(f"{name} is a {'whole ' if name in whole else ''}number, not {value!r}")
    texts: tuple[Any, ...] = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(text, str) for text in texts):
        raise refuse(f"stop is a text or a list of texts, not {stop!r}")
    return Sampling(
        max_tokens=max_tokens,
        temperature=float(temperature),
        top_k=top_k,
        top_p=float(top_p),
        stop=texts,
        seed=seed,
    )


def whole(name: str, value: Any) -> int:
    """A whole number; the graph's check looks at its range."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise refuse(f"{name} is a whole number, not {value!r}")
    return value


def prompt_of(source: Any, what: str) -> Prompt:
    """A template; raises InvalidWorkflow where it does not parse."""
    if not isinstance(source, str):
        raise refuse(f"the {what} of an llm step is a text, not a {type(source).__name__}")
    try:
        return Prompt.parse(source)
    except PromptError as error:
        raise refuse(f"the {what} does not parse: {error}") from None
