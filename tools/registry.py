"""The nouns of the room: a tool, its side-effect class, its limits, and what can go wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Effect = Literal["pure", "idempotent", "once"]
EFFECTS: tuple[Effect, ...] = ("pure", "idempotent", "once")

Validate = Callable[[Mapping[str, Any]], dict[str, Any]]
Identity = Callable[[Mapping[str, Any]], Any]
Touches = Callable[[Mapping[str, Any]], "Touched | None"]


class ToolError(Exception):
    """A tool raised, or `tool` was used wrongly; `cause` is what it raised, if it did."""

    def __init__(self, tool: str, message: str, cause: BaseException | None = None) -> None:
        self.tool = tool
        self.message = message
        self.cause = cause
        super().__init__(f"tool {tool!r}: {message}")


class InvalidTool(ToolError):
    """A function cannot be made a tool."""


class InvalidArguments(ToolError):
    """The arguments do not fit the tool's schema; the tool was not called."""


class NoEffect(Exception):
    """Raised by a tool that has done nothing yet: one with effect `once` may be called again."""


class InvalidResult(ToolError):
    """What the tool returned cannot be written as JSON."""


class ToolTimeout(ToolError):
    """The tool did not end in its time."""


@dataclass(frozen=True, slots=True)
class Touched:
    """The tables that a call reads and writes, as "database#table"; "#*": all of a database."""

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with a schema, a side-effect class and limits.

    `effect`: `pure` may be shared, memoised and retried; `idempotent` may be retried; `once` is
    never repeated without asking. `parameters` is a JSON Schema as text. `source_hash` changes
    with the code. `eta_s` is the author's hint of how long a call takes. `validate` turns JSON
    arguments into what `function` expects; without it they are handed on as they are. `origin` is
    where the function is found, as "module:function", or what describes the tool in YAML, as JSON.
    A `sensitive` tool, as one with effect
    `once`, is not called with what a tool, a page or a row said unless the author allows it.
    `memo_s`: for how long the result of a pure call answers equal ones within a run (None: for the
    whole run); `identity` turns arguments into what is compared for that. `touches` tells what a
    call reads and writes (None: that cannot be told): one that only reads is shared with its equals
    in flight though it is not pure, and no longer once something is written to what it reads.
    `outcome` is for one with effect `once`, of which a crash left nobody to tell whether it had its
    effect: called with the same arguments and the same key, it returns what that call came to, or
    None where it had no effect, and is to be made.
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
    validate: Validate | None = field(default=None, compare=False, repr=False)
    origin: str = ""
    sensitive: bool = False
    memo_s: float | None = None
    identity: Identity | None = field(default=None, compare=False, repr=False)
    touches: Touches | None = field(default=None, compare=False, repr=False)
    outcome: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if problem := _limit_problem(self):
            raise InvalidTool(self.name, problem)


def _limit_problem(tool: Tool) -> str | None:
    """What is wrong with the limits of `tool`, if anything is."""
    if tool.effect not in EFFECTS:
        return f"effect is one of {', '.join(EFFECTS)}, not {tool.effect!r}"
    if tool.timeout_s is not None and not tool.timeout_s > 0:
        return f"timeout_s is above 0, or None for no limit; not {tool.timeout_s}"
    if tool.retries < 0:
        return f"retries is 0 or more, not {tool.retries}"
    if tool.retries and tool.effect == "once":
        return 'a tool with effect "once" is never repeated: set retries=0, or effect="idempotent"'
    shared = tool.effect == "pure" or (tool.effect == "idempotent" and tool.touches is not None)
    if tool.memo_s is not None and not (shared and tool.memo_s >= 0):
        return 'memo_s is for tools with effect "pure" and for reads by SQL, and 0 or more seconds'
    if tool.outcome is not None and tool.effect != "once":
        return 'outcome is for tools with effect "once": others are asked again'
    if tool.max_concurrency is not None and tool.max_concurrency < 1:
        return f"max_concurrency is 1 or more, not {tool.max_concurrency}"
    return None
