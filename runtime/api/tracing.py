"""Tracing: an author's function is run once with symbolic values, and its steps are collected."""

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal

from ...planner.graph import (
    LLM,
    Each,
    Graph,
    Place,
    Ref,
    Repeat,
    Select,
    Step,
    ToolCall,
    Value,
)
from ...tools import Tool
from ..errors import InvalidWorkflow, Problem, TenterError
from ..workflow import ModelSpec, Workflow
from .inline import inline, names_of
from .places import caller, here, place_of, problem, raised_at, refuse
from .source import all_of, guard, negated, usable
from .symbols import Symbol, to_value

current_tracer: ContextVar["Tracer | None"] = ContextVar("tenter_tracer", default=None)


class Tracer:
    """Collects the steps of one workflow function while it runs with symbolic values."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[str]) -> None:
        self._function = function
        self._inputs = tuple(inputs)
        self._taken = set(inputs)
        self._steps: list[Step] = []
        self._guards: tuple[Value, ...] = ()
        self.problems: list[Problem] = []
        self.tools: dict[str, Tool] = {}
        self.models: dict[str, ModelSpec] = {}

    def run(self, name: str) -> Graph:
        """The graph of the function."""
        token = current_tracer.set(self)
        try:
            result = self._called()
            if result is None:
                self.problems.append(
                    problem("the workflow returns nothing: return a result", self.place)
                )
            value = to_value(result)
        finally:
            current_tracer.reset(token)
        return Graph(name, self._inputs, tuple(self._steps), value)

    def _called(self) -> Any:
        """What the author's function returns for symbolic inputs."""
        try:
            return self._function(**{each: Symbol(Ref(each)) for each in self._inputs})
        except TenterError:
            raise
        except Exception as error:
            message = (
                f"{type(error).__name__}: {error}. A plain `def` workflow runs once, before there "
                "is any data: put the code in a @tool, or make the workflow `async def`"
            )
            place = raised_at(error) or self.place
            raise InvalidWorkflow([*self.problems, problem(message, place)]) from error

    @property
    def place(self) -> Place:
        """Where the function is written."""
        return place_of(self._function)

    # ---- names -----------------------------------------------------------------------------------

    def unique(self, base: str, number: int | None = None) -> str:
        """A name that nothing has yet: `base`, `base_2`, ...; counted names start at `number`."""
        if number is not None:
            while f"{base}{number}" in self._taken:
                number += 1
            name = f"{base}{number}"
        else:
            name, count = base, 2
            while name in self._taken or not usable(name):
                name, count = f"{base}_{count}", count + 1
        self._taken.add(name)
        return name

    def id_for(self, given: str | None, handle: Any, kind: str) -> str:
        """The id of a step: as given, else the name that the author's code has for `handle`."""
        name = given or (name_of(handle, self._function) if handle is not None else None)
        return self.unique(name) if name else self.unique(kind, 1)

    # ---- steps -----------------------------------------------------------------------------------

    def add(self, step: Step) -> Symbol:
        """Append a step under the conditions that hold here; its symbolic result."""
        self._steps.append(replace(step, when=all_of(self._guards)))
        return Symbol(Ref(step.id))

    def llm(self, step: LLM, name: str | None, handle: Any, values: Mapping[str, Any]) -> Symbol:
        """Add a call of a model."""
        args = tuple((key, to_value(value)) for key, value in values.items())
        return self.add(
            replace(step, id=self.id_for(name, handle, step.id), args=args, place=here())
        )

    def tool(self, tool: Tool, name: str | None, handle: Any, values: Mapping[str, Any]) -> Symbol:
        """Add a call of a tool."""
        self.know_tool(tool)
        args = tuple((key, to_value(value)) for key, value in values.items())
        step = ToolCall(
            id=self.id_for(name or tool.name, handle, "tool"),
            tool=tool.name,
            args=args,
            effect=tool.effect,
            place=here(),
        )
        return self.add(step)

    def know_tool(self, tool: Tool) -> None:
        """Note a tool that the graph uses."""
        known = self.tools.setdefault(tool.name, tool)
        if known != tool:
            message = f"two tools are called {tool.name!r}: give one of them another name="
            self.problems.append(problem(message))

    def workflow(self, workflow: Workflow, values: Mapping[str, Any]) -> Any:
        """Add the steps of another workflow; its symbolic result."""
        graph = workflow.graph
        if graph is None:
            raise refuse(
                f"{workflow.name!r} is an `async def` workflow, which has no graph: "
                "make this workflow `async def` too"
            )
        name = self.unique(workflow.name if usable(workflow.name) else "sub")
        prefix = f"{name}__"
        for tool in workflow.tools.values():
            self.know_tool(tool)
        models = {model: prefix + model for model in workflow.models}
        for model, spec in workflow.models.items():
            self.models[prefix + model] = replace(spec, name=prefix + model)
        bound = {key: to_value(value) for key, value in values.items()}
        steps, result = inline(graph, prefix, bound, self._guards, models)
        self._taken.update(names_of(steps))
        self._steps.extend(steps)
        return Symbol(result)

    # ---- branches and loops ----------------------------------------------------------------------

    @contextmanager
    def under(self, condition: Value) -> Generator[None]:
        """Steps added inside are skipped unless `condition` holds."""
        before = self._guards
        self._guards = (*before, guard(condition))
        try:
            yield
        finally:
            self._guards = before

    def when(self, condition: Any, then: Any, otherwise: Any, name: str | None) -> Symbol:
        """Add two branches and what joins them."""
        place, met = here(), guard(to_value(condition))
        with self.under(met):
            first = to_value(_result(then))
        with self.under(negated(met)):
            second = to_value(_result(otherwise))
        step = Select(
            id=self.id_for(name, None, "when"),
            condition=met,
            then=first,
            otherwise=second,
            place=place,
        )
        return self.add(step)

    def each(self, items: Any, body: Callable[[Any], Any], name: str | None) -> Symbol:
        """Add a loop over a list."""
        place, item = here(), self.unique(_parameter(body))
        loop = self.id_for(name, None, "each")
        with self._inside() as inside:
            result = to_value(body(Symbol(Ref(item))))
        return self.add(
            Each(
                id=loop,
                items=to_value(items),
                item=item,
                body=tuple(inside),
                result=result,
                place=place,
            )
        )

    def repeat(
        self,
        start: Any,
        body: Callable[[Any], Any],
        until: Callable[[Any], Any],
        max_iterations: int,
        on_limit: Literal["fail", "last"],
        name: str | None,
    ) -> Symbol:
        """Add a loop that goes on until a condition holds."""
        place, item = here(), self.unique(_parameter(body))
        loop = self.id_for(name, None, "repeat")
        with self._inside() as inside:
            result = to_value(body(Symbol(Ref(item))))
            met = guard(to_value(until(Symbol(result))))
        return self.add(
            Repeat(
                id=loop,
                start=to_value(start),
                item=item,
                body=tuple(inside),
                result=result,
                until=met,
                max_iterations=max_iterations,
                on_limit=on_limit,
                place=place,
            )
        )

    @contextmanager
    def _inside(self) -> Generator[list[Step]]:
        """The steps that are added in the body of a loop."""
        outside, guards = self._steps, self._guards
        inside: list[Step] = []
        self._steps, self._guards = inside, ()
        try:
            yield inside
        finally:
            self._steps, self._guards = outside, guards


def _result(branch: Any) -> Any:
    """What a branch gives: functions are called, all else is the result itself."""
    return branch() if callable(branch) and not isinstance(branch, Symbol) else branch


def _parameter(body: Callable[[Any], Any]) -> str:
    try:
        names = list(inspect.signature(body).parameters)
    except (TypeError, ValueError):
        return "item"
    return names[0] if names and usable(names[0]) else "item"


def name_of(handle: Any, function: Callable[..., Any] | None = None) -> str | None:
    """What the author's code calls `handle`: as a global, in a closure, or where it is used."""
    scopes: list[Mapping[str, Any]] = []
    if function is not None:
        scopes += [getattr(function, "__globals__", {}), closure_of(function)]
    frame = caller()
    if frame is not None:
        scopes += [frame.f_globals, frame.f_locals]
    for scope in scopes:
        for name, thing in list(scope.items()):
            if thing is handle and usable(name.strip("_")):
                return name.strip("_")
    return None


def closure_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What the free variables of `function` hold."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    found: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars if code else (), cells or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found
