"""Workflows as plain functions: what tracing makes of them."""

from typing import Any

import pytest
from pydantic import BaseModel

from tenter.planner.graph import (
    LLM,
    Const,
    DictOf,
    Each,
    Expr,
    ListOf,
    Ref,
    Select,
    ToolCall,
)
from tenter.planner.values import evaluate
from tenter.runtime import contains, each, length, llm, tool, when, workflow
from tenter.runtime.errors import InvalidInput, InvalidWorkflow
from tenter.runtime.spec import loads


class Reply(BaseModel):
    subject: str
    body: str


kind = llm("Which team?\n{{ ticket }}", choices=["billing", "bug", "other"])
reply = llm("{{ policy }}\nAnswer {{ ticket }}", system="You are {{ tone }}.", output=Reply)


@tool(effect="pure", timeout_s=5)
async def policy_for(kind: str, language: str = "en") -> str:
    """The policy."""
    return f"{kind} {language}"


@tool
def send(text: str) -> None:
    """Send it."""


@workflow
def triage(ticket: str, tone: str = "polite") -> Reply:
    k = kind(ticket=ticket)
    return reply(tone=tone, ticket=ticket, policy=policy_for(language="de", kind=k))


def test_steps_are_named_after_their_handles_and_arguments_are_in_order() -> None:
    one, two, three = triage.graph.steps

    assert isinstance(one, LLM)
    assert isinstance(two, ToolCall)
    assert isinstance(three, LLM)
    assert (one.id, two.id, three.id) == ("kind", "policy_for", "reply")
    assert one.choices == ("billing", "bug", "other")
    assert two.args == (("language", Const('"de"')), ("kind", Ref("kind"))) or two.args == (
        ("kind", Ref("kind")),
        ("language", Const('"de"')),
    )
    assert [name for name, _ in three.args] == ["tone", "policy", "ticket"]
    assert two.effect == "pure"
    assert triage.graph.result == Ref("reply")


def test_the_workflow_has_typed_inputs_and_a_typed_result() -> None:
    flow = triage.workflow

    assert [(each.name, each.schema, each.required, each.default) for each in flow.inputs] == [
        ("ticket", '{"type":"string"}', True, None),
        ("tone", '{"type":"string"}', False, "polite"),
    ]
    assert set(flow.tools) == {"policy_for"}
    assert flow.convert is not None
    assert flow.convert({"subject": "a", "body": "b"}) == Reply(subject="a", body="b")
    assert flow.file == __file__


def test_places_are_the_authors_lines() -> None:
    start = triage.__wrapped__.__code__.co_firstlineno
    lines = [step.place.line - start for step in triage.graph.steps]

    assert lines == [2, 3, 3]
    assert all(step.place.file == __file__ for step in triage.graph.steps)
    assert triage.graph.steps[0].place.column == 9


def test_names_are_unique_and_given_names_win() -> None:
    @workflow
    def many(ticket: str) -> list[str]:
        unnamed = [llm("{{ x }}")(x=ticket), llm("{{ x }}")(x=ticket)]
        named = llm("{{ x }}", name="mine")
        local = llm("{{ x }}")
        return [
            *unnamed,
            kind(ticket=ticket),
            kind(ticket=ticket),
            named(x=ticket),
            local(x=ticket),
        ]

    ids = [step.id for step in many.graph.steps]
    assert ids == ["llm1", "llm2", "kind", "kind_2", "mine", "local"]


def test_a_step_does_not_take_the_name_of_an_input() -> None:
    @workflow
    def clash(kind: str) -> str:
        return llm("{{ x }}", name="kind")(x=kind)

    assert [step.id for step in clash.graph.steps] == ["kind_2"]


# ---- symbolic values -----------------------------------------------------------------------------


def result_of(make: Any, schema: Any = Any) -> Any:
    def body(x, y) -> Any:
        return [make(x, y), x, y]

    body.__annotations__ = {"x": schema, "y": Any}
    result = workflow(body).graph.result
    assert isinstance(result, ListOf)
    return result.items[0]


VALUES = {"x": {"a": [3, 4], "n": 7, "t": "it's", "f": False}, "y": 2}


@pytest.mark.parametrize(
    ("make", "source", "expected"),
    [
        (lambda x, y: x.n + y, "x['n'] + y", 9),
        (lambda x, y: 1 - x.n, "1 - x['n']", -6),
        (lambda x, y: (x.n - y) * -3, "(x['n'] - y) * (-3)", -15),
        (lambda x, y: 2**-y, "2 ** (-y)", 0.25),
        (lambda x, y: -x.n // y % 4, "((-x['n']) // y) % 4", 0),
        (lambda x, y: 7 / (x.n / y), "7 / (x['n'] / y)", 2.0),
        (lambda x, y: (x.n == 7) & (y != 2), "(x['n'] == 7) and (y != 2)", False),
        (lambda x, y: ~(x.f | (y < 1)), "not (x['f'] or (y < 1))", True),
        (lambda x, y: True & (y >= 3), "true and (y >= 3)", False),
        (lambda x, y: x.t + ' "q" \\ \n\t\'', "x['t'] + ' \"q\" \\\\ \\x0a\\x09\\''", None),
        (lambda x, y: "é😀" + x.t, "'é😀' + x['t']", "é😀it's"),
        (lambda x, y: x.a[y - 1], "x['a'][y - 1]", 4),
        (lambda x, y: x.a[1:], "x['a'][1:]", [4]),
        (lambda x, y: x.a[:-1:y], "x['a'][:(-1):y]", [3]),
        (lambda x, y: (x.a + [y, None])[0], "(x['a'] + [y, none])[0]", 3),
        (lambda x, y: length(x.a) > 1.5, "(x['a'] | length) > 1.5", True),
        (lambda x, y: contains(x.a, y + 1), "(y + 1) in x['a']", True),
        (lambda x, y: contains(["a", "it's"], x.t), "x['t'] in ['a', 'it\\'s']", True),
        (lambda x, y: x == {"a": y, "b'": True}, "x == {'a': y, 'b\\'': true}", False),
    ],
)
def test_operators_become_expressions_that_mean_the_same(
    make: Any, source: str, expected: Any
) -> None:
    value = result_of(make)

    assert isinstance(value, Expr)
    assert value.source == source
    found = evaluate(value, VALUES)
    assert found == (expected if expected is not None else "it's \"q\" \\ \n\t'")


def test_attributes_and_items_become_paths() -> None:
    assert result_of(lambda x, y: x.a) == Ref("x", ("a",))
    assert result_of(lambda x, y: x["a"][0]["b c"]) == Ref("x", ("a", 0, "b c"))
    assert result_of(lambda x, y: x["_private"]) == Ref("x", ("_private",))
    assert result_of(lambda x, y: {"k": (x, 1)}) == DictOf((("k", ListOf((Ref("x"), Const("1")))),))
    assert result_of(lambda x, y: {"k": Reply(subject="s", body="b")}) == Const(
        '{"k":{"subject":"s","body":"b"}}'
    )


@pytest.mark.parametrize(
    ("use", "cure"),
    [
        (lambda x: bool(x), "use when("),
        (lambda x: 1 if x == 2 else 3, "use when("),
        (lambda x: 1 < x < 3, "use when("),
        (lambda x: not x, "use when("),
        (lambda x: list(x), "use each("),
        (lambda x: [*x], "use each("),
        (lambda x: len(x), "use length(value)"),
        (lambda x: 3 in x, "use contains(container, item)"),
        (lambda x: f"{x}", "pass it to a prompt as a field"),
        (lambda x: f"{x:>3}", "pass it to a prompt as a field"),
        (lambda x: str(x), "pass it to a prompt as a field"),
        (lambda x: "-".join(["a", *[x]]), "put the code in a @tool"),
        (lambda x: 1 / 0, "ZeroDivisionError: division by zero. A plain `def` workflow runs once"),
        (lambda x: int(x), "use arithmetic"),
        (lambda x: float(x), "use arithmetic"),
        (lambda x: [1, 2][x], "use each("),
        (lambda x: range(x), "use each("),
        (lambda x: {x: 1}, "use it as a value"),
        (lambda x: {x}, "use it as a value"),
        (lambda x: x.upper(), "put the code in a @tool"),
        (lambda x: setattr(x, "a", 1), "make a new value"),
        (lambda x: x.__setitem__("a", 1), "make a new value"),
        (lambda x: hash(x), "use it as a value"),
    ],
)
def test_what_python_cannot_do_with_a_symbolic_value(use: Any, cure: str) -> None:
    @workflow
    def broken(x: Any) -> Any:
        return [use(x), x]

    with pytest.raises(InvalidWorkflow) as caught:
        _ = broken.graph
    (problem,) = caught.value.problems
    assert cure in problem.message
    assert problem.file == __file__
    assert problem.line == use.__code__.co_firstlineno


def test_a_symbol_can_be_shown() -> None:
    shown: list[str] = []

    @workflow
    def looks(x: Any) -> Any:
        shown.append(repr(x.a == 1))
        assert not hasattr(x, "__fspath__")
        return x

    _ = looks.graph
    assert shown == ["<symbolic x['a'] == 1>"]


# ---- branches, loops, sub-workflows --------------------------------------------------------------


def test_branches_are_flattened_and_joined() -> None:
    @workflow
    def flow(ticket: str, urgent: bool) -> Any:
        k = kind(ticket=ticket)

        def of_a_bug() -> Any:
            first = policy_for("bug")
            return when(urgent, lambda: policy_for(first), first, name="inner")

        return when(k == "bug", of_a_bug, lambda: policy_for(k), name="outer")

    steps = {step.id: step for step in flow.graph.steps}
    bug = Expr("kind == 'bug'", ("kind",))
    assert list(steps) == ["kind", "policy_for", "policy_for_2", "inner", "policy_for_3", "outer"]
    assert steps["policy_for"].when == bug
    assert steps["policy_for_2"].when == Expr("(kind == 'bug') and urgent", ("kind", "urgent"))
    assert steps["policy_for_3"].when == Expr("not (kind == 'bug')", ("kind",))
    inner, outer = steps["inner"], steps["outer"]
    assert isinstance(inner, Select)
    assert isinstance(outer, Select)
    assert (inner.when, inner.condition) == (bug, Ref("urgent"))
    assert (inner.then, inner.otherwise) == (Ref("policy_for_2"), Ref("policy_for"))
    assert (outer.when, outer.condition) == (None, bug)
    assert (outer.then, outer.otherwise) == (Ref("inner"), Ref("policy_for_3"))


def test_deeply_nested_branches_may_read_what_is_outside() -> None:
    @workflow
    def flow(a: bool, b: bool, c: bool, t: str) -> Any:
        def one() -> Any:
            x = policy_for(t)

            def two() -> Any:
                y = policy_for(x)
                return when((c == True) & (t != ""), lambda: policy_for(x + y))

            return when((b == True) & (t != "x and y"), two)

        return when(a, one)

    assert len(flow.graph.steps) == 6


def test_a_known_condition_takes_its_branch_at_once() -> None:
    @workflow
    def flow(ticket: str) -> Any:
        return when(len("ab") > 2, lambda: 1 / 0, lambda: kind(ticket=ticket))

    assert [step.id for step in flow.graph.steps] == ["kind"]


def test_loops_have_a_body_of_their_own() -> None:
    @workflow
    def flow(tickets: list[str], tone: str) -> list[str]:
        def body(ticket: Any) -> Any:
            k = kind(ticket=ticket)
            return when(k == "bug", lambda: triage(ticket, tone=tone).body, k)

        return each(tickets, body)

    (loop,) = flow.graph.steps
    assert isinstance(loop, Each)
    assert (loop.id, loop.items, loop.item) == ("each1", Ref("tickets"), "ticket")
    ids = [step.id for step in loop.body]
    assert ids == ["kind", "triage__kind", "triage__policy_for", "triage__reply", "when1"]
    assert loop.body[1].when == Expr("kind == 'bug'", ("kind",))
    last = loop.body[-1]
    assert isinstance(last, Select)
    assert last.then == Ref("triage__reply", ("body",))


def test_loops_over_lists_of_values_and_inside_branches() -> None:
    @workflow
    def flow(a: str, b: str) -> Any:
        return when(
            a != b, lambda: each([a, b, "c"], lambda x: each([1], lambda x: x), name="rows")
        )

    loop = flow.graph.steps[0]
    assert isinstance(loop, Each)
    assert loop.items == ListOf((Ref("a"), Ref("b"), Const('"c"')))
    assert loop.when == Expr("a != b", ("a", "b"))
    inner = loop.body[0]
    assert isinstance(inner, Each)
    assert inner.item == "x_2"
    assert inner.when is None


def test_sub_workflows_are_inlined_with_what_they_are_given() -> None:
    @workflow
    def inner(a: str, b: Any, c: int = 3) -> Any:
        k = kind(ticket=a)
        return when(
            (k == "bug") & (b["x"] > c),
            lambda: each(b["y"], lambda item: [item, policy_for(a + item)]),
            {"k": k},
        )

    @workflow
    def outer(t: str) -> Any:
        first = inner(t, {"x": 1, "y": ["p"]})
        second = inner(a=t + "!", b={"x": length(t), "y": [t]}, c=4)
        return [first, second]

    steps = {step.id: step for step in outer.graph.steps}
    assert list(steps) == [
        *("inner__kind", "inner__each1", "inner__when1"),
        *("inner_2__kind", "inner_2__each1", "inner_2__when1"),
    ]
    select = steps["inner_2__when1"]
    assert isinstance(select, Select)
    values = {"inner_2__kind": "bug", "t": "12345", "inner_2__each1": ["yes"]}
    assert evaluate(select.condition, values) is True
    assert evaluate(select.condition, {**values, "t": "123"}) is False
    loop = steps["inner_2__each1"]
    assert isinstance(loop, Each)
    assert loop.item == "inner_2__item"
    assert loop.items == ListOf((Ref("t"),))
    assert loop.when == select.condition


def test_a_yaml_workflow_can_be_compared_with_one_in_python() -> None:
    flow = loads(
        "version: 1\nname: triage\ninputs: {ticket: string}\n"
        'steps: {kind: {llm: "Which team?\\n{{ ticket }}", choices: [billing, bug, other]}}\n'
        "output: '{{ kind }}'\n"
    )

    @workflow(name="triage")
    def same(ticket: str) -> str:
        return kind(ticket=ticket)

    assert same.graph == flow.graph
    assert same.workflow.fingerprint == flow.fingerprint


def test_models_of_a_sub_workflow_keep_their_settings() -> None:
    small = llm("{{ x }}", model="small")

    @workflow(models={"small": {"backend": "sim", "speed": 2}})
    def inner(x: str) -> str:
        return small(x=x)

    @workflow(models={"small": "other"})
    def outer(x: str) -> list[str]:
        return [inner(x), small(x=x)]

    models = outer.workflow.models
    assert {step.model for step in outer.graph.steps if isinstance(step, LLM)} == set(models)
    assert models["inner__small"].options == {"speed": 2}
    assert models["small"].backend == "other"


def test_two_tools_of_one_name() -> None:
    @tool(name="policy_for", effect="pure")
    def other(kind: str) -> str:
        return kind

    @workflow
    def broken(x: str) -> Any:
        return [policy_for(x), other(x)]

    with pytest.raises(InvalidWorkflow, match="two tools are called 'policy_for'"):
        _ = broken.graph


def test_all_problems_of_a_function_are_told_at_once() -> None:
    bad = llm("{{ x }}", max_tokens=0)

    @workflow
    def broken(ticket: str, unused: str) -> Any:
        kind(ticket=ticket)
        return [bad(x=ticket), triage(ticket).sbject]

    with pytest.raises(InvalidWorkflow) as caught:
        _ = broken.graph
    said = str(caught.value)
    assert len(caught.value.problems) == 4
    for part in (
        "nothing reads the input 'unused'",
        "max_tokens is 0",
        "no 'sbject'; did you mean",
    ):
        assert part in said


def test_a_tool_is_just_its_function_outside_of_workflows() -> None:
    calls: list[str] = []

    @tool
    def note(text: str) -> str:
        """Note a text."""
        calls.append(text)
        return text.upper()

    assert note("a") == "A"
    assert note.tool.function("b") == "B"
    assert calls == ["a", "b"]
    assert (note.__name__, note.__doc__) == ("note", "Note a text.")
    assert note.spec.name == "note"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: llm(3), "the prompt of an llm step is a text, not a int"),  # pyright: ignore
        (lambda: llm("{{ x"), "the prompt does not parse"),
        (lambda: llm("x", system="{% if %}"), "the system does not parse"),
        (lambda: llm("x", choices="ab"), "choices is a list of texts"),
        (lambda: llm("x", choices=["a"]), "choices has two texts or more"),
        (lambda: llm("x", choices=["a", "b"], output=int), "choices or an output, not both"),
        (lambda: llm("x", output=print), "is of no use to JSON"),
        (lambda: llm("x", max_tokens=1.5), "max_tokens is a whole number, not 1.5"),  # pyright: ignore
        (lambda: llm("x", temperature="hot"), "temperature is a number, not 'hot'"),  # pyright: ignore
        (lambda: llm("x", seed=True), "seed is a whole number, not True"),
        (lambda: llm("x", stop=[1]), "stop is a text or a list of texts"),  # pyright: ignore
        (lambda: llm("x", name="a b"), "the name 'a b' of an llm step cannot be used"),
        (lambda: tool(name="class"), "the name 'class' of a tool cannot be used"),
        (lambda: workflow(models={"a": 3}), "model 'a' is a backend's name or a dict"),
        (lambda: kind(ticket="x"), "a model is called outside of a workflow"),
        (lambda: when(True, 1), r"when(...) belongs in a plain `def` workflow"),
        (lambda: each([], str), r"each(...) belongs in a plain `def` workflow"),
    ],
)
def test_wrong_uses_are_named_with_their_line(make: Any, said: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        make()
    (problem,) = caught.value.problems
    assert said in problem.message
    assert (problem.file, problem.line) == (__file__, make.__code__.co_firstlineno)


def test_a_workflow_is_not_called_like_a_function() -> None:
    with pytest.raises(InvalidInput, match=r"call it as triage.run\(...\)"):
        triage("x")


def test_an_expression_that_is_too_deep() -> None:
    @workflow
    def broken(x: Any) -> Any:
        total = x
        for _ in range(3_000):
            total = total + x
        return total

    with pytest.raises(InvalidWorkflow, match="nested too deeply"):
        _ = broken.graph


def test_constants_can_be_results() -> None:
    @workflow
    def flow(x: str) -> Any:
        return {"x": x, "n": None}

    assert flow.graph.steps == ()
    assert flow.graph.result == DictOf((("x", Ref("x")), ("n", Const("null"))))
