"""The nouns of the room: a tool, its side-effect class, its limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Effect = Literal["pure", "idempotent", "once"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with a schema, a side-effect class and limits.

    `effect`: `pure` may be shared, memoised and retried; `idempotent` may be retried; `once` is
    never repeated without asking. `parameters` is a JSON Schema as text. `source_hash` changes
    with the code. `eta_s` is the author's hint of how long a call takes.
    """

    name: str
    description: str
    parameters: str
    function: Callable[..., Any]
    effect: Effect = "once"
    timeout_s: float | None = 60.0
    retries: int = 0
    max_concurrency: int | None = None
    eta_s: float | None = None
    source_hash: str = ""
