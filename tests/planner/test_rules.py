"""Rules by before and after: each file of fixtures/rules has cases for the rule of its name.

A case is a graph, a line `---`, and the plan that the rule makes of it ("unchanged": the very plan
it was given). Cases are separated by a line `====`; the first comment is a case's title. In a
graph, a value is a name (`ticket.text`), an expression (`= a > 1`) or JSON data in a list or dict.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tenter.planner.explain import explain
from tenter.planner.graph import (
    LLM,
    Cascade,
    Compute,
    Const,
    DictOf,
    Each,
    Expr,
    Graph,
    ListOf,
    Pack,
    Ref,
    Sampling,
    Select,
    Step,
    ToolCall,
    Value,
)
from tenter.planner.lower import lower
from tenter.planner.optimize import RULES, optimize
from tenter.planner.plan import Context
from tenter.planner.prompt import Prompt
from tenter.planner.stats import ColumnStats, TableStats
from tenter.planner.values import check_expression

FIXTURES = Path(__file__).parents[1] / "fixtures" / "rules"
BY_NAME = {rule.__name__: rule for rule in RULES}


def cases() -> list[Any]:
    found = []
    for path in sorted(FIXTURES.glob("*.txt")):
        for text in re.split(r"^====\n", path.read_text(), flags=re.MULTILINE):
            before, after = text.split("---\n")
            title = before.splitlines()[0].lstrip("# ")
            found.append(pytest.param(path.stem, before, after, id=f"{path.stem}: {title}"))
    return found


@pytest.mark.parametrize(("rule", "before", "after"), cases())
def test_rule(rule: str, before: str, after: str) -> None:
    data = yaml.safe_load(before)
    graph, context = read_graph(data), read_context(data)
    if rule == "optimize":
        made = explain(optimize(graph, context), estimates=False)
    else:
        plan = lower(graph, context)
        found = BY_NAME[rule](plan, context)
        found.invariants()
        assert BY_NAME[rule](found, context) is found, "a second time, it finds nothing"
        made = "unchanged\n" if found is plan else explain(found, estimates=False)

    assert made == after.lstrip("\n")


def test_every_rule_has_cases() -> None:
    assert {path.stem for path in FIXTURES.glob("*.txt")} == {*BY_NAME, "optimize"}


# ---- the reader ---------------------------------------------------------------------------------


def read_graph(data: dict[str, Any]) -> Graph:
    steps = tuple(read_step(name, step) for name, step in data["steps"].items())
    return Graph("t", tuple(data["inputs"]), steps, read_value(data["result"]))


def read_context(data: dict[str, Any]) -> Context:
    stats = None
    if "rows" in data:
        columns = {name: ColumnStats(*pair) for name, pair in data.get("stats", {}).items()}
        stats = TableStats(data["rows"], columns)
    return Context(stats, frozenset(data.get("constants", ())), data.get("consolidate", True))


def read_step(name: str, data: dict[str, Any]) -> Step:
    when = read_value(data["when"]) if "when" in data else None
    args = tuple((key, read_value(value)) for key, value in data.get("args", {}).items())
    if "tool" in data:
        effect = data.get("effect", "pure")
        return ToolCall(id=name, tool=data["tool"], args=args, effect=effect, when=when)
    if "select" in data:
        condition, then, otherwise = (read_value(value) for value in data["select"])
        return Select(id=name, condition=condition, then=then, otherwise=otherwise, when=when)
    if "compute" in data:
        return Compute(id=name, value=read_value(data["compute"]), when=when)
    if "each" in data:
        body = tuple(read_step(inner, step) for inner, step in data["body"].items())
        items, result = read_value(data["each"]), read_value(data["result"])
        return Each(id=name, items=items, item="item", body=body, result=result, when=when)
    prompt = Prompt.parse(data["llm"])
    return LLM(
        id=name,
        prompt=prompt,
        args=args or tuple((field, Ref(field)) for field in prompt.fields),
        model=data.get("model", "default"),
        sampling=Sampling(**data.get("sampling", {})),
        choices=tuple(data.get("choices", ())),
        free_fields=tuple(data.get("free_fields", ())),
        pack=Pack(*data["pack"]) if "pack" in data else None,
        cascade=Cascade(*data["cascade"]) if "cascade" in data else None,
        when=when,
    )


def read_value(value: Any) -> Value:
    match value:
        case str() if value.startswith("= "):
            return Expr(value[2:], check_expression(value[2:]))
        case str() if re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)*", value):
            name, *path = value.split(".")
            return Ref(name, tuple(path))
        case list():
            return ListOf(tuple(read_value(item) for item in value))
        case dict():
            return DictOf(tuple((key, read_value(item)) for key, item in value.items()))
        case _:
            return Const(json.dumps(value))
