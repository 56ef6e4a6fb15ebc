"""A workflow as everybody below the authoring layer sees it: typed inputs, and a graph or a program."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..planner.graph import Graph
from ..tools import Tool


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a workflow; `schema` is a JSON Schema as text ("{}": anything)."""

    name: str
    schema: str = "{}"
    required: bool = True
    default: Any = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which backend serves a model name of a workflow, and its settings.

    `backend` is a name in the registry of backends ("embedded", "sim", ...).
    """

    name: str = "default"
    backend: str = "embedded"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What a workflow's author wants of the scheduler; None leaves it to the one who runs it.

    `order` and `retention` are names of policies. `limits` is plain data for
    `scheduler.limits.Limits.read`. `tenant` is the input whose value says for whom a program runs:
    limits of tenants and the orders that are fair between them go by it. `without` are rules of the
    planner that are left out, by name. `place`: rows over several pools of workers follow a plan of
    the smallest makespan.
    """

    order: str | None = None
    retention: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tenant: str | None = None
    without: tuple[str, ...] = ()
    place: bool = False


NO_WISH = Scheduling()


@dataclass(frozen=True, slots=True)
class Workflow:
    """What the author wrote, ready to be planned (`graph`) or run as it is (`program`).

    Exactly one of `graph` and `program` is set. `convert` turns the JSON result into what the
    author's annotation promises. `identity` is a canonical text of everything that determines
    answers (templates, sampling, schemas, tool sources), for the fingerprint. With `cache`, calls
    that give the same answer each time are answered from the results of earlier runs.
    """

    name: str
    inputs: tuple[Input, ...]
    graph: Graph | None = None
    program: Callable[..., Awaitable[Any]] | None = None
    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    models: Mapping[str, ModelSpec] = field(default_factory=dict[str, ModelSpec])
    scheduling: Scheduling = NO_WISH
    cache: bool = False
    result_schema: str = "{}"
    convert: Callable[[Any], Any] | None = None
    identity: str = ""
    file: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes when the workflow may give other answers; 32 hex digits."""
        return hashlib.blake2b(self.identity.encode(), digest_size=16).hexdigest()
