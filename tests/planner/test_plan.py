"""Plans: invariants, the driver, estimates, lint, and what people see of them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.planner.errors import InvariantBroken
from tenter.planner.explain import explain, explain_rules
from tenter.planner.graph import (
    LLM,
    Compute,
    Const,
    Each,
    Expr,
    Graph,
    ListOf,
    Ref,
    Sampling,
    Select,
    Step,
    ToolCall,
    Value,
    names_in,
)
from tenter.planner.lint import lint
from tenter.planner.lower import lower
from tenter.planner.mermaid import mermaid
from tenter.planner.optimize import RULES, optimize
from tenter.planner.plan import Context, Plan, RowOrder
from tenter.planner.prompt import Prompt
from tenter.planner.stats import ColumnStats, TableStats


def ask(id: str, prompt: str, **more: Any) -> LLM:
    args = tuple((name, Ref(name)) for name in Prompt(prompt).fields)
    return LLM(id=id, prompt=Prompt(prompt), args=args, **more)


TRIAGE = Graph(
    "triage",
    ("product", "ticket"),
    (
        ask("kind", "Which team?\n{{ product }}\n{{ ticket }}", choices=("bug", "billing")),
        ToolCall(id="policy", tool="policy", effect="pure"),
        ask("reply", "{{ policy }}\nAnswer this {{ kind }}: {{ ticket }}"),
    ),
    Ref("reply"),
)
STATS = TableStats(1000, {"product": ColumnStats(10, 40.0), "ticket": ColumnStats(1000, 400.0)})


# ---- invariants ---------------------------------------------------------------------------------


def backwards(plan: Plan, context: Context) -> Plan:
    return replace(plan, steps=plan.steps[::-1])


def without_the_first(plan: Plan, context: Context) -> Plan:
    return replace(plan, steps=plan.steps[1:])


def twice(plan: Plan, context: Context) -> Plan:
    return replace(plan, steps=plan.steps + plan.steps[:1])


def without_result(plan: Plan, context: Context) -> Plan:
    return replace(plan, result=Ref("nothing"))


def all_once(plan: Plan, context: Context) -> Plan:
    return replace(plan, steps=tuple(replace(step, scope="once") for step in plan.steps))


def by_no_column(plan: Plan, context: Context) -> Plan:
    return replace(plan, row_order=RowOrder(("kind",)))


def shared_prompts(plan: Plan, context: Context) -> Plan:
    return replace(plan, steps=(replace(plan.steps[0], packed=8), *plan.steps[1:]))


def another_model(plan: Plan, context: Context) -> Plan:
    return replace(plan, steps=(replace(plan.steps[0], cascaded=True), *plan.steps[1:]))


def drawn_once(plan: Plan, context: Context) -> Plan:
    policy = plan.steps[1]
    acting = replace(policy, scope="once", step=replace(policy.step, effect="once"))
    return replace(plan, steps=(plan.steps[0], acting, plan.steps[2]))


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (backwards, "step 'reply' reads 'kind' before it is made|'policy' before"),
        (without_the_first, "step 'reply' reads 'kind' before it is made"),
        (twice, "two steps are called 'kind'"),
        (without_result, "the result reads 'nothing', which no step makes"),
        (all_once, "step 'kind' runs once but reads 'product' of each row"),
        (by_no_column, "rows are ordered by 'kind', which is no input"),
        (another_model, "step 'kind' asks a model that its author did not allow"),
        (shared_prompts, "step 'kind' shares prompts, which its author did not allow"),
        (drawn_once, "step 'policy' runs once though its results may differ"),
    ],
)
def test_the_driver_names_the_rule_that_broke_a_plan(rule: Any, broken: str) -> None:
    with pytest.raises(InvariantBroken, match=broken) as caught:
        optimize(TRIAGE, rules=(*RULES, rule))

    assert caught.value.rule == rule.__name__
    assert f"rule '{rule.__name__}' broke the plan" in str(caught.value)


def test_a_body_must_be_that_of_its_step() -> None:
    each = Each(id="e", items=Ref("x"), item="i", body=(ask("a", "{{ i }}"),), result=Ref("a"))
    plan = lower(Graph("g", ("x",), (each,), Ref("e")))

    with pytest.raises(InvariantBroken, match="the body of 'e'"):
        replace(plan, steps=(replace(plan.steps[0], body=()),)).invariants()


# ---- the driver ---------------------------------------------------------------------------------


def test_observe_hears_of_every_rule() -> None:
    heard: list[tuple[str, bool]] = []
    plan = optimize(TRIAGE, observe=lambda rule, plan, changed: heard.append((rule, changed)))

    assert heard == [
        ("prune", False),
        ("consolidate", True),
        ("reorder", False),
        ("group", True),
        ("cascade", False),
        ("pack", False),
        ("order", True),
    ]
    assert [step.scope for step in plan.steps] == ["row", "once", "row"]


def test_a_plan_is_as_large_for_a_million_rows() -> None:
    large = optimize(TRIAGE, Context(replace(STATS, rows=1_000_000)))

    assert len(large.steps) == len(optimize(TRIAGE).steps)


def test_lowering_sorts() -> None:
    plan = lower(replace(TRIAGE, steps=TRIAGE.steps[::-1]))

    assert [step.id for step in plan.steps] == ["policy", "kind", "reply"]
    assert [step.depth for step in plan.steps] == [0, 0, 1]
    assert plan.graph.steps == tuple(step.step for step in plan.steps)


def test_a_prefix_begins_with_the_system_prompt() -> None:
    system = Prompt("Be {{ mood }}.")
    step = replace(ask("a", "On {{ x }} and {{ mood }}"), system=system)
    prefix = lower(Graph("g", ("mood", "x"), (step,), Ref("a"))).steps[0].prefix

    assert (prefix.text, prefix.fields) == ("Be ", ("mood", "x"))


NAMES = ("x", "y", "a", "b", "c", "d", "e")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Small graphs in which each step reads some earlier names."""
    steps: list[Step] = []
    for index, id in enumerate(NAMES[2:]):
        known = NAMES[: index + 2]
        first, second = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        steps.append(draw(st.sampled_from(_kinds(id, first, second))))
    result = draw(st.lists(st.sampled_from(NAMES), min_size=1))
    return Graph("g", ("x", "y"), tuple(steps), ListOf(tuple(map(Ref, result))))


def _kinds(id: str, first: str, second: str) -> list[Step]:
    args = (("u", Ref(first)),)
    effects = ("pure", "idempotent", "once")
    either = Expr(f"{first} == {second}", (first, second))
    return [
        LLM(id=id, prompt=Prompt("On {{ u }}"), args=args),
        LLM(id=id, prompt=Prompt("On {{ u }}"), args=args, sampling=Sampling(temperature=1.0)),
        LLM(id=id, prompt=Prompt("On it")),
        *(ToolCall(id=id, tool="t", args=args, effect=effect) for effect in effects),
        Compute(id=id, value=either),
        Select(id=id, condition=either, then=Ref(first), otherwise=Ref(second)),
        Each(
            id=id,
            items=Ref(first),
            item="i",
            body=(LLM(id=f"{id}_in", prompt=Prompt("{{ u }}"), args=(("u", Ref("i")),)),),
            result=Ref(f"{id}_in"),
        ),
    ]


def run(graph: Graph) -> tuple[Any, list[Any]]:
    """What a graph gives, symbolically, and what its tools did to the world.

    Sampled calls and acting tools give a value of their own: they are called by their id.
    """
    values: dict[str, Any] = {name: ("input", name) for name in graph.inputs}
    acts: list[Any] = []
    for step in graph.steps:
        values[step.id] = _run_step(step, values, acts)
    return _work_out(graph.result, values), acts


def _run_step(step: Step, values: dict[str, Any], acts: list[Any]) -> Any:
    match step:
        case LLM(args=args, prompt=prompt, sampling=sampling):
            given = tuple((name, _work_out(value, values)) for name, value in args)
            return ("llm", prompt, given, None if sampling.deterministic else step.id)
        case ToolCall(args=args, effect=effect):
            given = tuple((name, _work_out(value, values)) for name, value in args)
            if effect != "pure":
                acts.append((step.id, given))
            return ("tool", given, None if effect == "pure" else step.id)
        case Compute(value=value):
            return _work_out(value, values)
        case Select(condition=condition, then=then, otherwise=otherwise):
            return ("select", *(_work_out(value, values) for value in (condition, then, otherwise)))
        case Each(items=items, item=item, body=body, result=result):
            inner = {**values, item: ("item", _work_out(items, values))}
            for inside in body:
                inner[inside.id] = _run_step(inside, inner, acts)
            return ("each", _work_out(result, inner))


def _work_out(value: Value, values: dict[str, Any]) -> Any:
    match value:
        case Ref(name):
            return values[name]
        case ListOf(items):
            return tuple(_work_out(item, values) for item in items)
        case Expr():
            return ("==", *(values[name] for name in names_in(value)))
        case _:
            return value


@given(graph=graphs())
@settings(deadline=None, max_examples=200)
def test_rules_never_change_an_answer_or_an_act(graph: Graph) -> None:
    plans: list[Plan] = []
    optimize(graph, observe=lambda rule, plan, changed: plans.append(plan))

    for plan in plans:
        assert run(plan.graph) == run(graph)


@given(graph=graphs())
@settings(deadline=None)
def test_planning_is_deterministic_and_settles(graph: Graph) -> None:
    plan = optimize(graph)

    assert optimize(graph) == plan
    assert explain(optimize(graph)) == explain(plan)
    for rule in RULES:
        assert rule(plan, Context()) is plan


# ---- estimates ----------------------------------------------------------------------------------


def test_estimates_follow_the_statistics() -> None:
    plan = optimize(TRIAGE, Context(STATS))
    kind, _, reply = (step.estimate for step in plan.steps)

    # "Which team?\n" 12 + product 40 + "\n" 1 + ticket 400 characters; products repeat: 99 %
    assert kind.prompt_tokens == round(453 / 4)
    assert kind.shared_prefix_tokens == round((12 + 0.99 * 41) / 4)
    assert (kind.output_tokens, kind.calls_per_row) == (0, 1.0)
    # policy 200, computed once, and "\nAnswer this " 13, then what the ticket decides
    assert reply.shared_prefix_tokens == round(213 / 4)
    assert reply.output_tokens == 128


def test_equal_calls_are_counted_once() -> None:
    graph = Graph("g", ("product",), (ask("a", "About {{ product }}"),), Ref("a"))

    assert optimize(graph, Context(STATS)).steps[0].estimate.calls_per_row == 0.01
    assert optimize(graph, Context(STATS, consolidate=False)).steps[0].estimate.calls_per_row == 1


def test_no_more_calls_differ_than_rows_do() -> None:
    both = ask("both", "{{ product }} {{ ticket }}")
    graph = Graph("g", ("product", "ticket"), (both,), Ref("both"))
    for distinct_rows, calls_per_row in ((None, 1.0), (250, 0.25)):
        stats = replace(STATS, distinct_rows=distinct_rows)
        plan = optimize(graph, Context(stats))
        assert plan.steps[0].estimate.calls_per_row == calls_per_row


def test_an_each_counts_its_items() -> None:
    each = Each(
        id="e",
        items=Const("[1, 2, 3]"),
        item="i",
        body=(ask("a", "{{ i }} {{ x }}"),),
        result=Ref("a"),
    )
    plan = optimize(Graph("g", ("x",), (each,), Ref("e")))

    assert plan.steps[0].body[0].estimate.calls_per_row == 3


# ---- lint ---------------------------------------------------------------------------------------

LONG = "Read the rules with care. " * 10


@pytest.mark.parametrize(
    ("prompt", "stats", "expected"),
    [
        ("{{ ticket_id }}\n" + LONG + "{{ text }}", None, ("ticket_id", "by its name")),
        ("{{ createdDate }}" + LONG, None, ("createdDate", "by its name")),
        ("{{ text }}" + LONG, None, None),
        ("{{ candid }}" + LONG, None, None),
        (LONG + "{{ ticket_id }} {{ text }}", None, None),
        ("{{ ticket_id }} short", None, None),
        ("{{ text }}" + LONG, (1000, 990), ("text", "in nearly every row")),
        ("{{ ticket_id }}" + LONG, (1000, 3), None),
    ],
)
def test_lint(prompt: str, stats: tuple[int, int] | None, expected: tuple[str, str] | None) -> None:
    step = ask("a", prompt)
    columns = step.prompt.fields
    context = Context()
    if stats:
        found = {name: ColumnStats(stats[1], 10.0) for name in columns}
        context = Context(TableStats(stats[0], found))
    warnings = lint(Graph("g", columns, (step,), Ref("a")), context)

    assert [(one.step, one.field) for one in warnings] == ([("a", expected[0])] if expected else [])
    if expected:
        assert expected[1] in str(warnings[0])
        assert warnings[0].tokens_lost == pytest.approx(65, abs=1)


def test_a_choice_is_not_volatile() -> None:
    steps = (
        ask("kind", "Which? {{ ticket }}", choices=("a", "b")),
        ask("reply", "{{ kind }}" + LONG + "{{ ticket }}"),
    )

    assert lint(Graph("g", ("ticket",), steps, Ref("reply")), Context(STATS)) == ()


# ---- what people see ----------------------------------------------------------------------------


def test_explain_shows_the_plan_after_each_rule() -> None:
    text = explain_rules(TRIAGE, Context(STATS))

    assert [line for line in text.splitlines() if line.startswith(("==", "unchanged"))] == [
        "== lower",
        "== prune",
        "unchanged",
        "== consolidate",
        "== reorder",
        "unchanged",
        "== group",
        "== cascade",
        "unchanged",
        "== pack",
        "unchanged",
        "== order",
    ]
    assert text.endswith(
        "== order\n"
        "plan triage: 3 steps, 1 once\n"
        "  inputs: product, ticket\n"
        "  rows: sorted by product\n"
        "  row  kind = llm default choice(product, ticket) [shared] [group kind]\n"
        "         ~ prompt 113 tokens, 13 of them shared; output 0; 1 calls per row\n"
        "  once policy = tool policy() pure\n"
        "  row  reply = llm default text(policy, kind, ticket) [shared]\n"
        "         ~ prompt 155 tokens, 53 of them shared; output 128; 1 calls per row\n"
        "  result: reply\n"
    )


def test_mermaid() -> None:
    guard = Expr("kind == 'bug'", ("kind",))
    each = Each(id="e", items=Ref("out"), item="i", body=(ask("a", "{{ i }}"),), result=Ref("a"))
    select = Select(id="out", condition=guard, then=Ref("fix"), otherwise=Ref("kind"))
    steps = (ask("kind", "{{ x }}"), ask("fix", "{{ x }}", when=guard), select, each)

    assert mermaid(Graph("g", ("x",), steps, Ref("e"))) == (
        "flowchart TD\n"
        '  i0(["x"])\n'
        '  n1["kind: llm default, text"]\n'
        '  n2["fix: llm default, text"]\n'
        '  n3{{"out: kind == #39;bug#39;?"}}\n'
        '  subgraph n4 ["e: each i"]\n'
        '    n4_item(["i"])\n'
        '    n6["a: llm default, text"]\n'
        "  end\n"
        '  result(["result"])\n'
        "  i0 --> n1\n"
        '  n1 -. "kind == #39;bug#39;" .-> n2\n'
        "  i0 --> n2\n"
        "  n1 --> n3\n"
        "  n2 --> n3\n"
        "  n4_item --> n6\n"
        "  n3 --> n4\n"
        "  n4 --> result\n"
    )


@pytest.mark.parametrize("name", ['"]; click x "javascript:1"', "<script>", "a\nb --> c", "end`%%"])
def test_labels_cannot_break_out(name: str) -> None:
    text = mermaid(Graph("g", (name,), (), Const("1")))
    label = text.splitlines()[1]

    assert len(text.splitlines()) == 3
    assert label.startswith('  i0(["') and label.endswith('"])')
    assert not set(label[7:-3]) & set("\"<>`%()[]{}|'&")
