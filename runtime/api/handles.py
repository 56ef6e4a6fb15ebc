"""What `llm`, `@tool` and `@workflow` make: handles that are called inside workflows."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Token
from dataclasses import replace
from functools import wraps
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...planner.graph import LLM, Graph, Ref
from ...tools import Tool
from ..calls import ToolSpec
from ..errors import InvalidInput, OutputInvalid
from ..run.context import Program, current_program
from ..workflow import NO_WISH, ModelSpec, Scheduling, Workflow
from .identity import graph_identity, program_identity, tools_of
from .places import did_you_mean, place_of, refuse
from .source import usable
from .tracing import Tracer, current_tracer, name_of
from .types import Signature, bound, misfit, signature_of, to_json
from .validate import compiled


class LLMStep:
    """A call of a model, ready to be used in workflows.

    Called with the fields of its prompt: inside a plain `@workflow` it adds a step, inside an
    `async def` one it returns something to await.
    """

    def __init__(self, step: LLM, output: TypeAdapter[Any] | None, name: str | None) -> None:
        self.step = step
        merge = step.reduce.merge if step.reduce is not None else None
        fields = (*_fields(step.system), *step.prompt.fields, *_fields(merge))
        self.fields = tuple(dict.fromkeys(fields))
        self._output = output
        self._name = name
        self._asked: LLM | None = None  # as async programs ask it, made once

    def __call__(self, **values: Any) -> Any:
        ordered = self._checked(values)
        tracer = current_tracer.get()
        if tracer is not None:
            return tracer.llm(self.step, self._name, self, ordered)
        program = current_program.get()
        if program is None:
            raise refuse("a model is called outside of a workflow: call it in a @workflow function")
        return self._ask(program, self._named(), ordered)

    def _checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values in the order of the fields; each field has one and each one a field."""
        missing = [field for field in self.fields if field not in values]
        spare = [name for name in values if name not in self.fields]
        parts = [f"the field {name!r} of the prompt has no value" for name in missing]
        parts += [
            f"the prompt has no field {name!r}{did_you_mean(name, self.fields, 'its fields')}"
            for name in spare
        ]
        if parts:
            raise refuse("; ".join(parts))
        return {field: values[field] for field in self.fields}

    def _named(self) -> LLM:
        if self._asked is None:
            name = self._name or name_of(self) or self.step.id
            args = tuple((field, Ref(field)) for field in self.fields)
            self._asked = replace(self.step, id=name, args=args)
        return self._asked

    async def _ask(self, program: Program, step: LLM, values: Mapping[str, Any]) -> Any:
        plain = {key: to_json(value, f"{step.id}: {key}") for key, value in values.items()}
        result = await self._result(program, step, plain)
        if self._output is None:
            return result
        try:
            return self._output.validate_python(result)
        except ValidationError as error:
            raise OutputInvalid(misfit(error), step.id, str(result)) from None

    async def _result(self, program: Program, step: LLM, values: Mapping[str, Any]) -> Any:
        return await program.llm(step, values)


def _fields(prompt: Any) -> tuple[str, ...]:
    return prompt.fields if prompt is not None else ()


class ToolHandle:
    """A tool made from a function. Outside of workflows it is the function."""

    def __init__(self, tool: Tool, name: str | None) -> None:
        self._function = tool.function
        self._name = name
        self._python = _signature(tool)
        self.tool = replace(tool, function=outside(tool.function))
        self.__doc__ = tool.function.__doc__
        self.__name__ = tool.name
        self.__wrapped__ = tool.function

    @property
    def spec(self) -> ToolSpec:
        """The tool as a model sees it."""
        return ToolSpec(self.tool.name, self.tool.description, self.tool.parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracer, program = current_tracer.get(), current_program.get()
        if tracer is None and program is None:
            return self._function(*args, **kwargs)
        values = self._bound(args, kwargs)
        if tracer is not None:
            return tracer.tool(self.tool, self._name, self, values)
        assert program is not None
        return self._use(program, values)

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            what = f"tool {self.tool.name!r}"
            return dict(bound(self._python, args, kwargs, what, "parameter").arguments)
        except InvalidInput as error:
            raise refuse(str(error)) from None

    async def _use(self, program: Program, values: Mapping[str, Any]) -> Any:
        name = self.tool.name
        plain = {key: to_json(value, f"{name}: {key}") for key, value in values.items()}
        return await program.use(self.tool, plain, self._name or name)


def outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` run as if there were no program, so that it may call other tools directly."""
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            token: Token[Program | None] = current_program.set(None)
            try:
                return await function(*args, **kwargs)
            finally:
                current_program.reset(token)

        return run_async

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        token: Token[Program | None] = current_program.set(None)
        try:
            return function(*args, **kwargs)
        finally:
            current_program.reset(token)

    return run


def _signature(tool: Tool) -> inspect.Signature:
    """How a tool is called: as its function is, or as its schema says where that takes anything."""
    python = inspect.signature(tool.function)
    kinds = {each.kind for each in python.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return python
    schema = json.loads(tool.parameters)
    required = schema.get("required", ())
    names = sorted(schema.get("properties", {}), key=lambda name: name not in required)
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if name in required else None,
            )
            for name in names
            if name.isidentifier()
        ]
    )


class WorkflowHandle:
    """A workflow made from a function; it compiles when it is first looked at."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        models: Mapping[str, ModelSpec],
        local: Mapping[str, Any],
        scheduling: Scheduling = NO_WISH,
        cache: bool = False,
    ) -> None:
        self._function = function
        self._cache = cache
        self._local = local
        self._scheduling = scheduling
        self._models = models
        self._signature: Signature | None = None
        self._workflow: Workflow | None = None
        self.name = name
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function

    @property
    def signature(self) -> Signature:
        """The inputs and the result."""
        if self._signature is None:
            self._signature = signature_of(self._function, self._local)
        return self._signature

    @property
    def workflow(self) -> Workflow:
        """The compiled workflow; raises InvalidWorkflow with all that is wrong."""
        if self._workflow is None:
            is_async = inspect.iscoroutinefunction(self._function)
            self._workflow = self._program() if is_async else self._trace()
        return self._workflow

    @property
    def graph(self) -> Graph:
        """The graph of a plain `def` workflow."""
        if self.workflow.graph is None:
            raise InvalidInput(f"{self.name!r} is an `async def` workflow, which has no graph")
        return self.workflow.graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracer, program = current_tracer.get(), current_program.get()
        if tracer is None and program is None:
            raise InvalidInput(f"call it as {self.__name__}.run(...), or inside another workflow")
        try:
            values = self.signature.bind(self.name, args, kwargs)
        except InvalidInput as error:
            raise refuse(str(error)) from None
        if tracer is not None:
            return self._inline(tracer, values)
        assert program is not None
        return self._within(program, values)

    def _inline(self, tracer: Tracer, values: Mapping[str, Any]) -> Any:
        token = current_tracer.set(None)  # its own function is traced apart
        try:
            workflow = self.workflow
        finally:
            current_tracer.reset(token)
        return tracer.workflow(workflow, values)

    async def _within(self, program: Program, values: Mapping[str, Any]) -> Any:
        plain = {key: to_json(value, f"{self.name}: {key}") for key, value in values.items()}
        return self.converted(await program.workflow(self.workflow, plain))

    def run(self, options: Mapping[str, Any] | None = None, /, **inputs: Any) -> Any:
        """Run the workflow for one input and wait for its result; `options` as `arun`'s."""
        return asyncio.run(self.arun(options, **inputs))

    async def arun(self, options: Mapping[str, Any] | None = None, /, **inputs: Any) -> Any:
        """Run the workflow for one input.

        `options` are those of `run_workflow`. With `run`, the name of a run, they are those of
        `run_recorded`: it is recorded, and goes on where it stopped when it is called again.
        """
        given, plain = dict(options or {}), self.plain(inputs)
        run = given.pop("run", None)
        if run is not None:
            from ..run.recorded import run_recorded

            return self.converted(await run_recorded(self.workflow, plain, run, **given))
        from ..run.local import run_workflow

        return self.converted(await run_workflow(self.workflow, plain, **given))

    def plain(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs as JSON; raises InvalidInput where they do not fit."""
        values = self.signature.bind(self.name, (), inputs)
        self.signature.check(self.name, values)
        return {key: to_json(value, f"{self.name}: {key}") for key, value in values.items()}

    def converted(self, value: Any) -> Any:
        """A JSON result as what the author's annotation promises."""
        adapter = self.signature.result
        if adapter is None:
            return value
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            message = f"the result of {self.name!r}: {misfit(error)}"
            raise OutputInvalid(message, output=str(value)) from None

    def _trace(self) -> Workflow:
        signature = self.signature
        tracer = Tracer(self._function, [each.name for each in signature.inputs])
        graph = compiled(
            tracer.run(self.name), tracer, signature.inputs, self._models, self._scheduling.tenant
        )
        models = {**tracer.models, **self._models}
        result = signature.result
        workflow = Workflow(
            name=self.name,
            inputs=signature.inputs,
            graph=graph,
            tools=tracer.tools,
            models=models,
            scheduling=self._planned(signature),
            cache=self._cache,
            result_schema=signature.result_schema,
            convert=self.converted if result else None,
            file=place_of(self._function).file,
        )
        return replace(workflow, identity=graph_identity(workflow))

    def _program(self) -> Workflow:
        signature = self.signature
        result = signature.result
        tools = tools_of(self._function)
        return Workflow(
            name=self.name,
            inputs=signature.inputs,
            program=self._runner(),
            tools=tools,
            models=self._models,
            scheduling=self._planned(signature),
            cache=self._cache,
            result_schema=signature.result_schema,
            convert=self.converted if result else None,
            identity=program_identity(self.name, self._function, signature.inputs),
            file=place_of(self._function).file,
        )

    def _planned(self, signature: Signature) -> Scheduling:
        tenant, names = self._scheduling.tenant, [each.name for each in signature.inputs]
        if tenant is not None and tenant not in names:
            cure = did_you_mean(tenant, names, "the inputs")
            raise refuse(f"tenant: there is no input {tenant!r}{cure}", place_of(self._function))
        return self._scheduling

    def _runner(self) -> Callable[..., Awaitable[Any]]:
        """The function from JSON inputs to a JSON result."""

        @wraps(self._function)
        async def program(**values: Any) -> Any:
            arguments = self.signature.check(self.name, values)
            value = to_json(await self._function(**arguments), f"the result of {self.name!r}")
            self.converted(value)  # raises what does not fit
            return value

        return program


def check_name(name: str | None, what: str) -> None:
    """Refuses a `name=` that templates could not read."""
    if name is not None and not usable(name):
        raise refuse(f"the name {name!r} of {what} cannot be used in templates: use letters and _")
