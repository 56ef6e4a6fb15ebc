"""Authoring in Python: prompts, tools and workflows as functions.

A plain `def` under `@workflow` is traced once into a graph; an `async def` runs as it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, cast, overload

import msgspec
from pydantic import TypeAdapter

from ...kvpolicy import DEFAULT_POLICY, named
from ...planner.graph import LLM
from ...planner.optimize import left_out
from ...tools import Effect, InvalidTool, Tool
from ...tools.python import python_tool
from ..calls import Message
from ..errors import InvalidConfig
from ..run.context import Session, current_program
from ..run.trust import Approve, Trust
from ..scheduler.limits import Limits
from ..scheduler.policies import DEFAULT_ORDER, ordered
from ..workflow import ModelSpec, Scheduling
from .agents import AgentStep, agent
from .allowed import cascade_of, free_of, pack_of
from .handles import LLMStep, ToolHandle, WorkflowHandle, check_name
from .places import Place, caller, here, refuse
from .plans import Plan, PlanStep, open_plan, plan_and_run
from .prompts import prompt_of, sampling_of, whole
from .reasons import reason
from .reduces import reduce
from .symbols import Symbol, contains, length
from .tracing import Tracer, current_tracer
from .types import adapter_of, schema_text

__all__ = [
    "AgentStep",
    "LLMStep",
    "Plan",
    "PlanStep",
    "Symbol",
    "ToolHandle",
    "WorkflowHandle",
    "agent",
    "contains",
    "each",
    "length",
    "llm",
    "open_plan",
    "plan_and_run",
    "reason",
    "reduce",
    "repeat",
    "session",
    "tool",
    "when",
    "workflow",
]


def llm(
    prompt: str,
    *,
    system: str | None = None,
    choices: Sequence[str] | None = None,
    output: Any = None,
    model: str = "default",
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    free_fields: Sequence[str] = (),
    cascade: str | Mapping[str, Any] | None = None,
    pack: int | None = None,
    votes: int = 1,
    name: str | None = None,
) -> LLMStep:
    """A call of a model; `prompt` and `system` are Jinja templates whose fields are its arguments.

    With `choices` the result is one of these texts; with `output` (a Pydantic model or another
    type) it is a value of that type; otherwise it is text. `free_fields` are fields of `prompt`
    whose order is open: a plan over a table may change it. With `cascade` (a model's name, or a
    dict with `model`, `target`, `confidence`, `sample`) a smaller model answers what it is sure of.
    `pack` rows may share a prompt, and with `votes` are asked in several orders. See
    `docs/planning.md`.
    """
    check_name(name, "an llm step")
    adapter = None if output is None or output is str else adapter_of(output, "output")
    sampling = sampling_of(max_tokens, temperature, top_k, top_p, stop, seed)
    step = LLM(
        id=name or "llm",
        prompt=prompt_of(prompt, "prompt"),
        system=None if system is None else prompt_of(system, "system"),
        model=model,
        sampling=sampling,
        choices=_choices(choices, adapter),
        schema=schema_text(adapter.json_schema()) if adapter else None,
        free_fields=free_of(free_fields),
        pack=pack_of(pack, votes),
        cascade=cascade_of(cascade),
        place=here(),
    )
    return LLMStep(step, adapter, name)


def _choices(choices: Sequence[str] | None, output: TypeAdapter[Any] | None) -> tuple[str, ...]:
    if choices is None:
        return ()
    if output is not None:
        raise refuse("an llm step has choices or an output, not both")
    texts = cast("Sequence[Any]", choices)
    if isinstance(choices, str) or not all(isinstance(each, str) for each in texts):
        raise refuse('choices is a list of texts, such as choices=["yes", "no"]')
    if len(choices) < 2:
        raise refuse("choices has two texts or more")
    return tuple(choices)


@overload
def tool(function: Callable[..., Any] | Tool, /) -> ToolHandle: ...
@overload
def tool(
    *,
    effect: Effect = "once",
    timeout_s: float | None = 60.0,
    retries: int = 0,
    max_concurrency: int | None = None,
    eta_s: float | None = None,
    memo_s: float | None = None,
    sensitive: bool = False,
    outcome: Callable[..., Any] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], ToolHandle]: ...
def tool(
    function: Callable[..., Any] | Tool | None = None,
    /,
    *,
    effect: Effect = "once",
    timeout_s: float | None = 60.0,
    retries: int = 0,
    max_concurrency: int | None = None,
    eta_s: float | None = None,
    memo_s: float | None = None,
    sensitive: bool = False,
    outcome: Callable[..., Any] | None = None,
    name: str | None = None,
) -> ToolHandle | Callable[[Callable[..., Any]], ToolHandle]:
    """Make a tool of a sync or async function, whose parameters are all annotated.

    `effect`: "pure" may be shared, memoised and retried; "idempotent" may be retried; "once" is
    never repeated. `eta_s` is a hint of how long a call takes. For `memo_s` seconds the result of
    a pure tool answers equal calls (None: for the whole run). A `sensitive` tool is not called with
    what a stranger said unless that is allowed. `outcome`, called like a tool with effect "once"
    that a crash has interrupted, returns what it came to, or None where it had no effect. A ready
    `Tool`, such as `http_tool` makes, is taken as it is.
    """
    if isinstance(function, Tool):
        return ToolHandle(function, None)
    check_name(name, "a tool")
    place, local = here(), _locals()

    def made(function: Callable[..., Any]) -> ToolHandle:
        try:
            found = python_tool(
                function,
                name=name,
                effect=effect,
                timeout_s=timeout_s,
                retries=retries,
                max_concurrency=max_concurrency,
                eta_s=eta_s,
                memo_s=memo_s,
                sensitive=sensitive,
                outcome=outcome,
                namespace=local,
            )
        except InvalidTool as error:
            raise refuse(str(error), place) from None
        return ToolHandle(found, name)

    return made if function is None else made(function)


@overload
def workflow(function: Callable[..., Any], /) -> WorkflowHandle: ...
@overload
def workflow(
    *,
    name: str | None = None,
    models: Mapping[str, Any] | None = None,
    order: str | None = None,
    retention: str | None = None,
    limits: Mapping[str, Any] | Limits | None = None,
    tenant: str | None = None,
    without: Sequence[str] = (),
    place: bool = False,
    cache: bool = False,
) -> Callable[[Callable[..., Any]], WorkflowHandle]: ...
def workflow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    models: Mapping[str, Any] | None = None,
    order: str | None = None,
    retention: str | None = None,
    limits: Mapping[str, Any] | Limits | None = None,
    tenant: str | None = None,
    without: Sequence[str] = (),
    place: bool = False,
    cache: bool = False,
) -> WorkflowHandle | Callable[[Callable[..., Any]], WorkflowHandle]:
    """Make a workflow of a function; its parameters are the inputs.

    `models` says what serves each model name: a backend's name, a dict with `backend` and its
    settings, or a ModelSpec. `order` and `retention` name policies, `limits` bounds what runs, and
    `tenant` is the input that says for whom: see `docs/scheduling.md`. `without` names rules of the
    planner to leave out, and `place` has rows over several models' workers follow a placement: see
    `docs/planning.md`. With `cache`, calls that give the same answer each time are answered from
    earlier runs: see `docs/how-to.md`.
    """
    at, local = here(), _locals()
    scheduling = _scheduling(order, retention, limits, tenant, without)
    scheduling = replace(scheduling, place=place)
    known = {key: model_spec(key, given, at) for key, given in (models or {}).items()}

    def made(function: Callable[..., Any]) -> WorkflowHandle:
        own = name or function.__name__
        return WorkflowHandle(function, own, known, local, scheduling, cache)

    return made if function is None else made(function)


def _scheduling(
    order: str | None,
    retention: str | None,
    limits: Mapping[str, Any] | Limits | None,
    tenant: str | None,
    without: Sequence[str],
) -> Scheduling:
    plain = asdict(limits) if isinstance(limits, Limits) else dict(limits or {})
    try:
        ordered(order or DEFAULT_ORDER)
        named(retention or DEFAULT_POLICY)
        Limits.read(plain)
        left_out(without)
    except (ValueError, InvalidConfig) as error:
        raise refuse(str(error)) from None
    return Scheduling(order, retention, plain, tenant, tuple(without))


def model_spec(name: str, given: Any, place: Place | None = None) -> ModelSpec:
    """What serves the model `name`."""
    match given:
        case ModelSpec():
            return given
        case str():
            return ModelSpec(name, given)
        case Mapping():
            options: dict[str, Any] = {**given}
            backend = options.pop("backend", "embedded")
            if isinstance(backend, str) and backend:
                return ModelSpec(name, backend, options)
        case _:
            pass
    raise refuse(
        f'model {name!r} is a backend\'s name or a dict such as {{"backend": "embedded"}}, '
        f"not {given!r}",
        place,
    )


def _locals() -> dict[str, Any]:
    """The names of the function that is being run, for annotations that are written as text."""
    frame = caller()
    return {} if frame is None or frame.f_code.co_name == "<module>" else dict(frame.f_locals)


def when(condition: Any, then: Any, otherwise: Any = None, *, name: str | None = None) -> Any:
    """`then` where the condition holds and `otherwise` where not; functions are called for it.

    Steps made inside these functions run only in their branch.
    """
    check_name(name, "a branch")
    tracer = _tracer("when")
    if isinstance(condition, Symbol):
        return tracer.when(condition, then, otherwise, name)
    chosen = then if condition else otherwise
    return chosen() if callable(chosen) and not isinstance(chosen, Symbol) else chosen


def each(items: Any, body: Callable[[Any], Any], *, name: str | None = None) -> Any:
    """The list of what `body` gives for each item; all items run at once."""
    check_name(name, "a loop")
    return _tracer("each").each(items, body, name)


def repeat(
    start: Any,
    body: Callable[[Any], Any],
    *,
    until: Callable[[Any], Any],
    max_iterations: int,
    on_limit: Literal["fail", "last"] = "fail",
    name: str | None = None,
) -> Any:
    """What `body` gives once `until` holds of it: a loop of at most `max_iterations`.

    `body` is given `start`, later what it gave the time before; `until` is given what it gave, and
    may ask a model itself. Where it never holds, the step fails, or with `on_limit="last"` takes
    the last value. All steps that the two make are in the loop.
    """
    check_name(name, "a loop")
    if any(isinstance(each, Symbol) or not callable(each) for each in (body, until)):
        raise refuse("repeat(start, body, until=...) takes two functions, such as lambda text: ...")
    most = whole("max_iterations", max_iterations)
    return _tracer("repeat").repeat(start, body, until, most, on_limit, name)


def _tracer(what: str) -> Tracer:
    tracer = current_tracer.get()
    if tracer is None:
        raise refuse(f"{what}(...) belongs in a plain `def` workflow; here write Python's own")
    return tracer


def session(
    system: str | None = None,
    *,
    model: str = "default",
    allow: Iterable[str] = (),
    approve: Approve | None = None,
    messages: Iterable[Message | Mapping[str, Any]] = (),
) -> Session:
    """A new chat inside an `async def` workflow; its context is kept while tools run.

    It goes on from `messages`, those of an earlier chat, as they are or as JSON made them.
    Once it has read what a tool or another stranger said, its model may call tools that have an
    effect or are sensitive only where `allow` names them, or `approve(approval)` says True; its
    answers are recorded, and a resumed run does not ask again.
    """
    program = current_program.get()
    if program is None:
        raise refuse("session(...) belongs in an `async def` workflow, while it runs")
    chat = program.session(system, model, Trust(frozenset(allow), approve))
    said = [_message(each) for each in messages]
    if not said:
        return chat
    if system is not None and said[0].role == "system":
        del said[0]
    chat.messages.extend(said)
    if any(each.role == "tool" for each in said):
        chat.trust.taint("an earlier result of a tool")
    return chat


def _message(given: Message | Mapping[str, Any]) -> Message:
    try:
        return given if isinstance(given, Message) else msgspec.convert(given, Message)
    except msgspec.ValidationError as error:
        raise refuse(
            f'messages are those of a chat, or {{"role": "user", "content": "..."}}: {error}'
        ) from None
