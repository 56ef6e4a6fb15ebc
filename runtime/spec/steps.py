"""The steps of a YAML workflow, compiled one by one into steps of a graph."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ...planner.graph import (
    LLM,
    Cascade,
    Compute,
    Const,
    Each,
    Loop,
    Pack,
    Place,
    Reasoning,
    Reduce,
    Ref,
    Repeat,
    Sampling,
    Select,
    Step,
    ToolCall,
    Value,
)
from ...tools import Tool
from ..api.agents import pure
from ..api.inline import inline
from ..api.places import did_you_mean
from ..api.reasons import scorer_problem
from ..api.source import all_of, const, guard, negated
from ..api.types import schema_text
from ..reasoning.named import DEFAULT_STRATEGY, SAMPLING, checked
from ..workflow import ModelSpec, Workflow
from .args import args_of_prompts, bound_args, parameters
from .check import Notes, scalars
from .judges import read_judge
from .keys import BLOCK, BRANCH_STEP, CASCADE, STEP_KINDS
from .reader import Item
from .types import read_type
from .values import Scope

_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "seed", "ignore_eos")
_MEANT = {
    "prompt": "llm",
    "call": "tool",
    "for": "each",
    "foreach": "each",
    "set": "value",
    "loop": "repeat",
    "while": "repeat",
}
_NULL = Const("null")

Guards = tuple[Value, ...]


@dataclass(slots=True)
class Known:
    """What the steps of a file may use. `load` compiles another file; None where that failed."""

    tools: dict[str, Tool]
    models: dict[str, ModelSpec]
    declared_tools: tuple[str, ...]
    declared_models: tuple[str, ...] | None
    load: Callable[[Item], Workflow | None]
    places: dict[str, Item] = field(default_factory=dict[str, Item])  # of steps, by id
    broken: set[str] = field(default_factory=set[str])  # steps with a problem of their own


def declared(item: Item | None) -> Iterator[tuple[str, Item]]:
    """The ids of the steps of one level, those in branches too, with their places."""
    for name, entry in (item.pairs if item is not None else {}).items():
        assert item is not None
        yield name, item.keys[name]
        for side in ("then", "else"):
            block = entry.pairs.get(side)
            if block is not None and _is_block(block):
                yield from declared(block.pairs["steps"])


def _is_block(item: Item) -> bool:
    inside = item.pairs.get("steps")
    return inside is not None and inside.kind == "map"


class Steps:
    """Compiles the steps of one level into `made`."""

    def __init__(self, scope: Scope, known: Known) -> None:
        self.scope = self._scope = scope
        self._known = known
        self._notes: Notes = scope.notes
        self.made: list[Step] = []

    def add_all(self, item: Item | None, guards: Guards = ()) -> None:
        """Compile all steps of a `steps` mapping."""
        for name, entry in (item.pairs if item is not None else {}).items():
            assert item is not None
            key = item.keys[name]
            before = len(self._notes.problems)
            self._notes.name(key, "step")
            self._note_place(name, key)
            self._add(name, key, entry, guards)
            if len(self._notes.problems) > before:
                self._known.broken.add(name)

    def _note_place(self, name: str, key: Item) -> None:
        first = self._known.places.setdefault(name, key)
        if first is not key:
            self._notes.add(f"the step {name!r} is there twice, first in line {first.line}", key)

    def _add(self, name: str, key: Item, entry: Item, guards: Guards) -> None:
        pairs = self._notes.mapping(entry, f"the step {name!r}")
        if pairs is None:
            return
        kinds = [kind for kind in STEP_KINDS if kind in pairs]
        if len(kinds) > 1:
            both = " and ".join(repr(kind) for kind in kinds)
            self._notes.add(f"the step {name!r} has {both}: make it two steps", key)
            return
        what = f"the step {name!r}"
        if kinds:
            checked = self._notes.table(entry, STEP_KINDS[kinds[0]], what)
        elif "then" in pairs or "else" in pairs:
            checked = self._notes.table(entry, BRANCH_STEP, what)
            self._branch(name, key, checked, guards)
            return
        else:
            self._unknown_kind(name, key, pairs)
            return
        if kinds[0] not in checked:
            return
        guards = (*guards, *self._when(checked))
        place = Place(self._notes.file, key.line, key.column)
        make: dict[str, Callable[[str, dict[str, Item], Place, Guards], None]] = {
            "llm": self._llm,
            "agent": self._agent,
            "reason": self._reason,
            "reduce": self._reduce,
            "tool": self._tool,
            "each": self._each,
            "repeat": self._repeat,
            "select": self._select,
            "value": self._value,
            "workflow": self._workflow,
        }
        make[kinds[0]](name, checked, place, guards)

    def _unknown_kind(self, name: str, key: Item, pairs: Mapping[str, Item]) -> None:
        wanted = ", ".join(STEP_KINDS)
        meant = (_MEANT.get(one) or one for one in pairs)
        cures = (did_you_mean(one, STEP_KINDS) for one in meant)
        cure = next((cure for cure in cures if cure.startswith("; did")), "")
        message = f"the step {name!r} has none of {wanted}, then{cure}"
        self._notes.add(message, key)

    def _when(self, pairs: Mapping[str, Item]) -> Iterator[Value]:
        if "when" in pairs:
            yield guard(self._scope.expression(pairs["when"]))

    # ---- kinds -----------------------------------------------------------------------------------

    def _llm(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        if "choices" in pairs and "output" in pairs:
            self._notes.add(f"the step {name!r} has choices and output: keep one", pairs["output"])
        step = self._asking("llm", name, pairs, place, guards)
        choices = (
            tuple(str(one.scalar) for one in pairs["choices"].items) if "choices" in pairs else ()
        )
        if step is not None:
            free = tuple(pairs["free_fields"].texts) if "free_fields" in pairs else ()
            sampling = self._sampling(pairs)
            step = replace(step, choices=choices, sampling=sampling, free_fields=free)
            cascade = self._cascade(pairs["cascade"]) if "cascade" in pairs else None
            self.made.append(replace(step, pack=self._pack(pairs), cascade=cascade))

    def _cascade(self, item: Item) -> Cascade | None:
        pairs = self._notes.table(item, CASCADE, "a cascade")
        if "model" not in pairs:
            return None
        model = str(pairs["model"].scalar)
        self._check_model(model, pairs["model"])
        return Cascade(model, **scalars(pairs, "target", "confidence", "sample"))

    def _pack(self, pairs: dict[str, Item]) -> Pack | None:
        if "pack" in pairs:
            return Pack(pairs["pack"].data, pairs["votes"].data if "votes" in pairs else 1)
        if "votes" in pairs:
            self._notes.add("votes are those of a pack: give the step `pack` too", pairs["votes"])
        return None

    def _agent(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        step = self._asking("agent", name, pairs, place, guards)
        limits = scalars(pairs, "max_turns", "max_tokens", "speculate")
        loop = Loop(
            tools=self._tools_of_agent(name, pairs),
            allow=tuple(pairs["allow"].texts) if "allow" in pairs else (),
            approve="pause" if "approve" in pairs else None,
            **limits,
        )
        loop = replace(loop, pure=pure(self._known.tools[each] for each in loop.tools))
        turn = {key: item for key, item in pairs.items() if key != "max_tokens"}
        if "turn_tokens" in pairs:
            turn["max_tokens"] = pairs["turn_tokens"]
        if step is not None:
            self.made.append(replace(step, loop=loop, sampling=self._sampling(turn)))

    def _reason(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        step = self._asking("reason", name, pairs, place, guards)
        strategy = str(pairs["strategy"].scalar) if "strategy" in pairs else DEFAULT_STRATEGY
        at = pairs.get("settings", pairs.get("strategy", pairs["reason"]))
        given: Any = pairs["settings"].data if "settings" in pairs else {}
        if not isinstance(given, dict):
            self._notes.add(f"settings is a mapping of names, not {at.spell()}", at)
            return
        tool, judge = self._scorer(name, pairs["scorer"]) if "scorer" in pairs else (None, None)
        try:
            settings = checked(strategy, cast("dict[str, Any]", given), "scorer" in pairs)
        except ValueError as error:
            self._notes.add(str(error), at)
            return
        if step is not None:
            thinking = Reasoning(strategy, settings, tool, judge)
            sampling = self._sampling(pairs, SAMPLING)
            self.made.append(replace(step, reasoning=thinking, sampling=sampling))

    def _reduce(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        step = self._asking("reduce", name, pairs, place, guards)
        if step is not None:
            self.made.append(replace(step, sampling=self._sampling(pairs)))

    def _scorer(self, name: str, item: Item) -> tuple[str | None, LLM | None]:
        """What a scorer is: the name of a tool, or a call of a model."""
        if item.kind == "map":
            judge = read_judge(item, self._scope)
            if judge is not None:
                self._check_model(judge.model, item.pairs.get("model"))
            return None, judge
        tool = self._known.tools.get(str(item.scalar))
        if tool is None:
            self._known.broken.add(name)
            declared = self._known.declared_tools
            if item.scalar not in declared:
                cure = did_you_mean(str(item.scalar), declared)
                self._notes.add(f"the tool {item.scalar!r} is not under tools{cure}", item)
            return None, None
        problem = scorer_problem(tool)
        if problem is not None:
            self._notes.add(problem, item)
        return tool.name, None

    def _tools_of_agent(self, name: str, pairs: dict[str, Item]) -> tuple[str, ...]:
        """The tools that an agent names and that there are; others are noted."""
        found: list[str] = []
        given = pairs.get("tools")
        for at in (given.items if given.kind == "list" else [given]) if given else ():
            tool = str(at.scalar)
            if tool in self._known.tools:
                found.append(tool)
                continue
            self._known.broken.add(name)
            if tool not in self._known.declared_tools:
                cure = did_you_mean(tool, self._known.declared_tools)
                self._notes.add(f"the tool {tool!r} is not under tools{cure}", at)
        return tuple(found)

    def _asking(
        self, kind: str, name: str, pairs: dict[str, Item], place: Place, guards: Guards
    ) -> LLM | None:
        """What steps that ask a model have in common; None where a prompt does not parse."""
        prompts = {
            what: prompt
            for what in (kind, "system", "merge")
            if what in pairs and (prompt := self._scope.prompt(pairs[what])) is not None
        }
        model = str(pairs["model"].scalar) if "model" in pairs else "default"
        self._check_model(model, pairs.get("model"))
        schema = read_type(pairs["output"], self._notes) if "output" in pairs else None
        args = args_of_prompts(self._scope, pairs, prompts)
        if not all(what in prompts for what in (kind, "system", "merge") if what in pairs):
            return None
        reduce = None
        if kind == "reduce" and "over" in pairs:
            settings = scalars(pairs, "batch_tokens", "tree")
            reduce = Reduce(str(pairs["over"].scalar), prompts.get("merge"), **settings)
        return LLM(
            id=name,
            prompt=prompts[kind],
            system=prompts.get("system"),
            args=args,
            model=model,
            schema=None if schema is None or schema == {"type": "string"} else schema_text(schema),
            reduce=reduce,
            when=all_of(guards),
            place=place,
        )

    def _sampling(self, pairs: dict[str, Item], base: Sampling | None = None) -> Sampling:
        found = scalars(pairs, *_SAMPLING)
        for key in ("temperature", "top_p"):
            if key in found:
                found[key] = float(found[key])
        if "stop" in pairs:
            found["stop"] = tuple(pairs["stop"].texts)
        return replace(base or Sampling(), **found)

    def _check_model(self, model: str, at: Item | None) -> None:
        known = self._known.declared_models
        if at is not None and known is not None and model not in ("default", *known):
            self._notes.add(
                f"the model {model!r} is not under models{did_you_mean(model, known)}", at
            )

    def _tool(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        called = str(pairs["tool"].scalar)
        tool = self._known.tools.get(called)
        if tool is None:
            if called not in self._known.declared_tools:
                cure = did_you_mean(called, self._known.declared_tools)
                self._notes.add(f"the tool {called!r} is not under tools{cure}", pairs["tool"])
            self._scope.look(pairs["with"].pairs.values() if "with" in pairs else ())
            self._known.broken.add(name)  # and yet a step, so that its readers are no error
            self.made.append(ToolCall(id=name, tool=called, when=all_of(guards), place=place))
            return
        args = bound_args(
            self._scope, pairs, *parameters(tool), f"the tool {called!r} has no parameter"
        )
        self.made.append(
            ToolCall(
                id=name,
                tool=called,
                args=tuple(args.items()),
                effect=tool.effect,
                when=all_of(guards),
                place=place,
            )
        )

    def _each(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        items = self._scope.expression(pairs["each"])
        item, steps, result = self._body(pairs, "item")
        if result is None:
            self._notes.add(f"the step {name!r} has neither steps nor a result", pairs["each"])
            return
        self.made.append(
            Each(
                id=name,
                items=items,
                item=item,
                body=tuple(steps.made),
                result=result,
                when=all_of(guards),
                place=place,
            )
        )

    def _repeat(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        start = self._scope.value(pairs["repeat"])
        item, steps, result = self._body(pairs, "state")
        if result is None:
            self._notes.add(f"the step {name!r} has neither steps nor a result", pairs["repeat"])
        until = guard(steps.scope.expression(pairs["until"])) if "until" in pairs else None
        if result is None or until is None or "max_iterations" not in pairs:
            return
        limits = scalars(pairs, "max_iterations", "on_limit")
        self.made.append(
            Repeat(
                id=name,
                start=start,
                item=item,
                body=tuple(steps.made),
                result=result,
                until=until,
                when=all_of(guards),
                place=place,
                **limits,
            )
        )

    def _body(self, pairs: dict[str, Item], otherwise: str) -> "tuple[str, Steps, Value | None]":
        """What a loop calls its item, its compiled steps, and what one run of them gives."""
        item = str(pairs["as"].scalar) if "as" in pairs else otherwise
        if "as" in pairs:
            self._notes.name(pairs["as"], "item")
        inside = [step for step, _ in declared(pairs.get("steps"))]
        scope = self._scope.inside(item, *inside)
        steps = Steps(scope, self._known)
        steps.add_all(pairs.get("steps"))
        if "result" in pairs:
            return item, steps, scope.value(pairs["result"])
        scope.used.update(inside[-1:])
        return item, steps, Ref(inside[-1]) if inside else None

    def _select(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        condition = guard(self._scope.expression(pairs["select"]))
        then = self._scope.value(pairs["then"]) if "then" in pairs else _NULL
        other = self._scope.value(pairs["else"]) if "else" in pairs else _NULL
        self._join(name, place, guards, condition, then, other)

    def _join(
        self, name: str, place: Place, guards: Guards, condition: Value, then: Value, other: Value
    ) -> None:
        self.made.append(
            Select(
                id=name,
                condition=condition,
                then=then,
                otherwise=other,
                when=all_of(guards),
                place=place,
            )
        )

    def _branch(self, name: str, key: Item, pairs: dict[str, Item], guards: Guards) -> None:
        if "when" not in pairs:
            return
        condition = guard(self._scope.expression(pairs["when"]))
        then = self._side(pairs.get("then"), (*guards, condition))
        other = self._side(pairs.get("else"), (*guards, negated(condition)))
        place = Place(self._notes.file, key.line, key.column)
        self._join(name, place, guards, condition, then, other)

    def _side(self, item: Item | None, guards: Guards) -> Value:
        """One branch's value; its steps are added under its condition."""
        if item is None:
            return _NULL
        if not _is_block(item):
            return self._scope.value(item)
        pairs = self._notes.table(item, BLOCK, "a branch with steps")
        self.add_all(pairs.get("steps"), guards)
        if "result" in pairs:
            return self._scope.value(pairs["result"])
        self._scope.used.update(name for name, _ in declared(pairs.get("steps")))
        return _NULL

    def _value(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        value = self._scope.value(pairs["value"])
        self.made.append(Compute(id=name, value=value, when=all_of(guards), place=place))

    def _workflow(self, name: str, pairs: dict[str, Item], place: Place, guards: Guards) -> None:
        workflow = self._known.load(pairs["workflow"])
        if workflow is None or workflow.graph is None:
            self._scope.look(pairs["with"].pairs.values() if "with" in pairs else ())
            return
        names = [each.name for each in workflow.inputs]
        required = [each.name for each in workflow.inputs if each.required]
        values = bound_args(self._scope, pairs, names, required, f"{workflow.name!r} has no input")
        if any(name not in values for name in required):
            return
        for each in workflow.inputs:
            if not each.required:
                values.setdefault(each.name, const(each.default))
        prefix = f"{name}__"
        models = self._adopt(workflow, prefix, pairs["workflow"])
        steps, result = inline(workflow.graph, prefix, values, guards, models)
        self.made.extend(steps)
        self.made.append(Compute(id=name, value=result, when=all_of(guards), place=place))

    def _adopt(self, workflow: Workflow, prefix: str, at: Item) -> dict[str, str]:
        """Take over the tools and models of a sub-workflow; its models' new names."""
        for tool in workflow.tools.values():
            if self._known.tools.setdefault(tool.name, tool) != tool:
                message = f"{workflow.name!r} has another tool {tool.name!r}: rename one of them"
                self._notes.add(message, at)
        for model, spec in workflow.models.items():
            self._known.models[prefix + model] = replace(spec, name=prefix + model)
        return {model: prefix + model for model in workflow.models}
