"""Workflows in YAML: the same steps as in Python, compiled to the same graph."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...planner.errors import PlannerError
from ...planner.graph import Each, Graph, Repeat, Step, acts, sort, tools_of, walk
from ...planner.validate import validate
from ..api.checks import type_problems
from ..api.identity import graph_identity
from ..api.places import did_you_mean, problem
from ..api.types import schema_text
from ..api.validate import order
from ..errors import InvalidInput, InvalidWorkflow, Problem
from ..workflow import Input, ModelSpec, Workflow
from .check import Notes
from .dump import dump
from .keys import TOP
from .reader import Item, Reader, decode
from .scheduling import read_scheduling
from .steps import Known, Steps, declared
from .tools import read_tools
from .types import is_schema, read_type
from .values import Scope

__all__ = ["dump", "load", "loads"]


def load(path: str | Path) -> Workflow:
    """The workflow in a YAML file; raises InvalidWorkflow with all that is wrong."""
    return _load(Path(path), ())


def loads(text: str, file: str = "") -> Workflow:
    """The workflow in a YAML text; paths in it are relative to `file`."""
    return _compile(text, file, Path(file).parent if file else Path(), ())


def _load(path: Path, above: tuple[Path, ...]) -> Workflow:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from None
    return _compile(decode(raw, str(path)), str(path), path.parent, (*above, path.resolve()))


def _compile(text: str, file: str, folder: Path, above: tuple[Path, ...]) -> Workflow:
    reader = Reader(file)
    root = reader.read(text)
    notes = Notes(file, reader.problems)
    try:
        made = _File(root, notes, folder, above).workflow()
    except (PlannerError, RecursionError, SyntaxError, MemoryError) as error:
        reason = str(error) if isinstance(error, PlannerError) else "an expression is too deep"
        raise InvalidWorkflow([*notes.problems, Problem(reason, file)]) from None
    if notes.problems or made is None:
        raise InvalidWorkflow(sorted(set(notes.problems), key=order))
    return made


class _File:
    """One YAML file being compiled."""

    def __init__(self, root: Item, notes: Notes, folder: Path, above: tuple[Path, ...]) -> None:
        self._notes = notes
        self._folder = folder
        self._above = above
        self._top = notes.table(root, TOP, "a workflow")
        self._inputs = self._read_inputs()
        models = self._read_models()
        names = [each.name for each in self._inputs]
        self._scheduling = read_scheduling(self._top.get("scheduling"), names, notes)
        listed = self._top.get("tools")
        self._known = Known(
            tools=read_tools(listed, folder, notes),
            models=models,
            declared_tools=tuple(listed.pairs) if listed else (),
            declared_models=tuple(models) if "models" in self._top else None,
            load=self._sub,
        )

    def workflow(self) -> Workflow | None:
        """The compiled workflow; None, or problems in the notes, if it is wrong."""
        graph = self._graph()
        if graph is None or self._notes.problems:
            return None
        used = {name for step in walk(graph.steps) for name in tools_of(step)}
        workflow = Workflow(
            name=graph.name,
            inputs=self._inputs,
            graph=graph,
            tools={name: tool for name, tool in self._known.tools.items() if name in used},
            models=self._known.models,
            scheduling=self._scheduling,
            cache="cache" in self._top and self._top["cache"].scalar is True,
            file=self._notes.file,
        )
        return replace(workflow, identity=graph_identity(workflow))

    # ---- parts of the file -----------------------------------------------------------------------

    def _read_inputs(self) -> tuple[Input, ...]:
        item = self._top.get("inputs")
        found: list[Input] = []
        for name, entry in (item.pairs if item is not None else {}).items():
            assert item is not None
            self._notes.name(item.keys[name], "input")
            schema = read_type(entry, self._notes)
            if entry.kind == "map" and is_schema(entry) and "default" in schema:
                schema = dict(schema)
                default = schema.pop("default")
                found.append(Input(name, schema_text(schema), False, default))
            else:
                found.append(Input(name, schema_text(schema)))
        return tuple(found)

    def _read_models(self) -> dict[str, ModelSpec]:
        item = self._top.get("models")
        found: dict[str, ModelSpec] = {}
        for name, entry in (item.pairs if item is not None else {}).items():
            spec = self._model(name, entry)
            if spec is not None:
                found[name] = spec
        return found

    def _model(self, name: str, item: Item) -> ModelSpec | None:
        if isinstance(item.scalar, str) and item.scalar:
            return ModelSpec(name, item.scalar)
        backend = item.pairs.get("backend")
        if item.kind == "map" and backend is None:
            return ModelSpec(name, options=self._found(item.data))
        if backend is not None and isinstance(backend.scalar, str) and backend.scalar:
            options: dict[str, Any] = item.data
            del options["backend"]
            return ModelSpec(name, backend.scalar, self._found(options))
        found = item if backend is None else backend
        wanted = "a backend's name, or a mapping with `backend` and its settings"
        self._notes.add(f"the model {name!r} is {wanted}; not {found.spell()}", found)
        return None

    def _found(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` with a model folder that lies beside the file as a path to it."""
        path = options.get("path")
        if isinstance(path, str) and path != "tiny" and path and (self._folder / path).is_dir():
            return options | {"path": str(self._folder / path)}
        return options

    # ---- the graph -------------------------------------------------------------------------------

    def _graph(self) -> Graph | None:
        steps_item = self._top.get("steps")
        names = {each.name for each in self._inputs} | {name for name, _ in declared(steps_item)}
        scope = Scope(frozenset(names), self._notes, set())
        self._check_names(steps_item)
        steps = Steps(scope, self._known)
        steps.add_all(steps_item)
        if "output" not in self._top:
            return None
        result = scope.value(self._top["output"])
        name = str(self._top["name"].scalar) if "name" in self._top else ""
        inputs = tuple(each.name for each in self._inputs)
        graph = Graph(name, inputs, tuple(steps.made), result)
        self._unused(scope.used, steps.made)
        self._validate(graph)
        return graph if self._notes.problems else sort(graph)

    def _check_names(self, steps: Item | None) -> None:
        """A step may not be called like an input."""
        inputs = self._top.get("inputs")
        for name, key in declared(steps):
            if inputs is not None and name in inputs.pairs:
                self._notes.add(f"{name!r} is an input already: rename the step", key)
                self._known.broken.add(name)

    def _unused(self, used: set[str], steps: list[Step]) -> None:
        """Inputs and results that nothing reads; not told while a step is missing."""
        made = {step.id: step for step in walk(steps)}
        if not all(name in made for name in self._known.places):
            return
        inputs = self._top.get("inputs")
        for name, key in inputs.keys.items() if inputs is not None else ():
            if name not in used and name != self._scheduling.tenant:
                self._notes.add(f"nothing reads the input {name!r}: use it or remove it", key)
        for name, key in self._known.places.items():
            if name not in used and name not in self._known.broken and not _acts(made[name]):
                self._notes.add(f"nothing reads the step {name!r}: use it or remove it", key)

    def _validate(self, graph: Graph) -> None:
        """What the planner finds, unless it is said already with its exact place."""
        for found in validate(graph):
            if found.severity == "error" and found.step and found.step not in self._known.broken:
                text = f"step {found.step!r}: {found.message}"
                self._notes.problems.append(problem(text, found.place))
        try:
            ordered = sort(graph)
        except PlannerError:  # a circle, which is told already
            return
        for step, text in type_problems(ordered, self._inputs, self._known.tools):
            if step is None:
                self._notes.add(f"output: {text}", self._top["output"])
            else:
                self._notes.problems.append(problem(f"step {step.id!r}: {text}", step.place))

    # ---- other files -----------------------------------------------------------------------------

    def _sub(self, at: Item) -> Workflow | None:
        path = self._folder / str(at.scalar)
        if path.resolve() in self._above:
            circle = " -> ".join(each.name for each in (*self._above, path))
            self._notes.add(f"workflows use each other in a circle: {circle}", at)
            return None
        if not path.is_file():
            near = sorted(each.name for each in path.parent.glob("*.y*ml"))
            cure = did_you_mean(path.name, near, "there is")
            self._notes.add(f"there is no file {path}{cure}", at)
            return None
        try:
            return _load(path, self._above)
        except InvalidWorkflow as error:
            self._notes.problems.extend(error.problems)
        except InvalidInput as error:
            self._notes.add(str(error), at)
        return None


def _acts(step: Step) -> bool:
    """Whether a step may do something although nothing reads its result."""
    return isinstance(step, Each | Repeat) or acts(step)
