"""YAML workflows that are right, and the same workflows written in Python."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from tenter.planner.graph import Compute, Const, Each, Expr, Graph, Ref, Select, ToolCall, walk
from tenter.planner.values import evaluate
from tenter.runtime import each, llm, tool, when, workflow
from tenter.runtime.errors import InvalidInput
from tenter.runtime.spec import dump, load, loads

GOOD = Path(__file__).parents[1] / "fixtures" / "good"
FILES = sorted(GOOD.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_yaml_to_yaml_and_back(path: Path) -> None:
    first = load(path)
    again = loads(dump(first), str(path))

    assert again.graph == first.graph
    assert again.inputs == first.inputs
    assert again.models == first.models
    assert again.fingerprint == first.fingerprint
    assert dump(again) == dump(first)


def graph_of(steps: str, output: str = "'{{ x }}'", inputs: str = "{t: string}") -> Graph:
    text = f"version: 1\nname: x\ninputs: {inputs}\nsteps:\n{steps}\noutput: {output}\n"
    graph = loads(text).graph
    assert graph is not None
    return graph


def test_steps_come_in_an_order_in_which_they_can_run() -> None:
    graph = load(GOOD / "triage.yaml").graph
    assert graph is not None

    assert [step.id for step in graph.steps] == ["kind", "policy", "reply", "sent"]


def test_fields_bind_to_the_names_that_they_have() -> None:
    graph = graph_of("  x: {llm: '{{ t }} {{ u }}', with: {u: '{{ t }}!'}}")

    (step,) = graph.steps
    assert step.args == (("t", Ref("t")), ("u", Expr("t ~ '!'", ("t",))))  # pyright: ignore


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("hello", Const('"hello"')),
        ("'{{ t }}'", Ref("t")),
        ("'{{ t.a[0] }}'", Ref("t", ("a", 0))),
        ("\"{{ t['a b'] }}\"", Ref("t", ("a b",))),
        ("' {{ t }} '", Expr("' ' ~ t ~ ' '", ("t",))),
        ("'{{ t | upper }}'", Expr("t | upper", ("t",))),
        ("\"{{ 'a {{ b }}' }}\"", Const('"a {{ b }}"')),
        ("'a {# a remark #}{{ t }}'", Expr("'a ' ~ t", ("t",))),
        ("[1, {a: [true, null]}]", Const('[1,{"a":[true,null]}]')),
        ("'}} %} {'", Const('"}} %} {"')),
    ],
)
def test_values(written: str, value: object) -> None:
    graph = graph_of(
        f"  x: {{value: {written}}}\n  y: {{value: '{{{{ t }}}}'}}",
        "['{{ x }}', '{{ y }}']",
        "{t: any}",
    )

    step = next(step for step in graph.steps if step.id == "x")
    assert isinstance(step, Compute)
    assert step.value == value


def test_a_branch_becomes_guarded_steps_and_a_select() -> None:
    graph = load(GOOD / "branches.yaml").graph
    assert graph is not None
    steps = {step.id: step for step in graph.steps}

    assert steps["cause"].when == Expr("kind == 'bug' and urgent", ("kind", "urgent"))
    guard = steps["fix"].when
    assert guard == Expr(
        "(kind == 'bug' and urgent) and (cause != '')", ("kind", "urgent", "cause")
    )
    for kind, urgent, cause in (("bug", True, "x"), ("bug", True, ""), ("other", True, "x")):
        held = evaluate(guard, {"kind": kind, "urgent": urgent, "cause": cause})
        assert bool(held) == (kind == "bug" and urgent and cause != "")
    answer = steps["answer"]
    assert isinstance(answer, Select)
    assert answer.then == Ref("deeper")


def test_a_sub_workflow_is_inlined_under_its_steps_name() -> None:
    graph = load(GOOD / "loops.yaml").graph
    assert graph is not None
    ids = {step.id: step for step in walk(graph.steps)}

    assert "note__short" in ids
    notes = ids["notes"]
    assert isinstance(notes, Each)
    assert [step.id for step in notes.body] == ["relevant", "note__short", "note", "result_of_one"]
    short = ids["note__short"]
    assert short.when == Expr("relevant == 'yes'", ("relevant",))
    assert short.args == (("words", Const("12")), ("text", Ref("document", ("text",))))  # pyright: ignore
    assert short.place.file.endswith("summary.yaml")


def test_places_are_lines_and_columns_of_the_file() -> None:
    graph = load(GOOD / "summary.yaml").graph
    assert graph is not None

    (step,) = graph.steps
    assert (step.place.line, step.place.column) == (7, 3)


def test_a_model_folder_is_looked_for_beside_the_file(tmp_path: Path) -> None:
    for name in ("small", "tiny"):
        (tmp_path / name).mkdir()
    (tmp_path / "flow.yaml").write_text(
        "version: 1\nname: flow\ninputs: {text: string}\n"
        "models: {default: {path: small}, b: {backend: embedded, path: tiny}, c: {path: gone}}\n"
        "steps: {a: {llm: '{{ text }}'}}\noutput: '{{ a }}'\n"
    )
    models = load(tmp_path / "flow.yaml").models
    paths = {name: spec.options["path"] for name, spec in models.items()}
    assert paths == {"default": str(tmp_path / "small"), "b": "tiny", "c": "gone"}


def test_a_decorated_tool_brings_its_own_limits(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tenter.runtime import tool\n\n"
        '@tool(effect="pure", timeout_s=3)\ndef look(x: str) -> str:\n    return x\n'
    )
    (tmp_path / "flow.yaml").write_text(
        "version: 1\nname: x\ninputs: {x: string}\n"
        "tools: {find: {python: 'mine:look', eta_s: 2}}\n"
        "steps: {a: {tool: find}}\noutput: '{{ a }}'\n"
    )
    flow = load(tmp_path / "flow.yaml")

    found = flow.tools["find"]
    assert (found.effect, found.timeout_s, found.eta_s) == ("pure", 3, 2)
    assert found.function("y") == "y"
    assert flow.graph is not None
    step = flow.graph.steps[0]
    assert isinstance(step, ToolCall)
    assert (step.effect, step.args) == ("pure", (("x", Ref("x")),))


# ---- the same in Python --------------------------------------------------------------------------


class Reply(BaseModel):
    subject: str
    body: str


class Item(BaseModel):
    name: str
    reply: Reply | None = None


kind = llm("Which team?\n\n{{ ticket }}", choices=["billing", "it's a bug", "other {{ x }}"])
reply = llm(
    "{{ policy }}\n\nAnswer this {{ kind }}:\n{{ ticket }}",
    system="Be kind {{ '{{' }}",
    output=Reply,
    max_tokens=20,
    temperature=1,
    seed=3,
    stop=["\n\n", "yes", "'"],
)


@tool(effect="pure", timeout_s=5)
def policy_for(kind: str, language: str = "en") -> str:
    return kind + language


@workflow
def answer(ticket: str, language: str = "de") -> Reply:
    k = kind(ticket=ticket)
    return reply(ticket=ticket, kind=k, policy=policy_for(kind=k, language=language))


@workflow(models={"default": {"backend": "sim", "x": 1}})
def everything(tickets: list[Item], limit: int = 3, note: str | None = None):
    def body(ticket):
        k = kind(ticket=ticket["name"])
        text = when(
            (k == "it's a bug") & ~(limit > 2 * -1),
            lambda: when(ticket.name != 'a "b" \\ c\n', lambda: answer(ticket.name).body, "no"),
            lambda: {"a": [k, None, 1.5e300, "{{ k }}"], "on": {"yes": k[0], "slice": k[1:]}},
        )
        return {"text": text, "limit": (limit + 1) * 2 - 5 % limit}

    inner = each(each(tickets, body, name="rows"), lambda one: [one.limit, note], name="pairs")
    return [inner, when(note == None, "null", "~")]


@workflow
def constants(x: str):
    return {"a": "plain", "b": [1, True, None, "null", "{% if %}", "2024-01-01", "1e3", ""], "c": x}


@pytest.mark.parametrize("flow", [answer, everything, constants], ids=lambda flow: flow.name)
def test_python_to_yaml_and_back(flow: object) -> None:
    first = flow.workflow  # pyright: ignore
    again = loads(dump(first), __file__.replace("test_spec_good.py", "flow.yaml"))

    assert again.graph == first.graph
    assert again.inputs == first.inputs
    assert again.models == first.models
    assert again.fingerprint == first.fingerprint


@workflow
async def program(ticket: str) -> str:
    return ticket


def test_only_graphs_become_yaml() -> None:
    with pytest.raises(InvalidInput, match="'program' is an `async def` workflow"):
        dump(program.workflow)


def test_a_tool_of_no_module_does_not_become_yaml() -> None:
    @tool(effect="pure")
    def local(x: str) -> str:
        return x

    @workflow
    def uses_it(x: str) -> str:
        return local(x)

    with pytest.raises(InvalidInput, match="'local' is not a function of a module"):
        dump(uses_it.workflow)
