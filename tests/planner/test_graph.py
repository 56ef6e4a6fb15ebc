"""The logical graph: order, canonical text, and everything that can be wrong with it."""

from dataclasses import replace
from typing import Any

import pytest

from tenter.planner.errors import PlannerError
from tenter.planner.graph import (
    LLM,
    Compute,
    Const,
    DictOf,
    Each,
    Expr,
    Graph,
    Place,
    Ref,
    Sampling,
    Select,
    Step,
    ToolCall,
    canonical,
    sort,
    walk,
)
from tenter.planner.guards import implies
from tenter.planner.prompt import Prompt
from tenter.planner.validate import validate

GUARD = Expr("kind == 'bug'", ("kind",))


def ask(id: str, prompt: str = "Say {{ ticket }}", **more: Any) -> LLM:
    """An LLM step whose fields are fed by names of their own."""
    if "args" not in more:
        more["args"] = tuple((name, Ref(name)) for name in Prompt(prompt).fields)
    return LLM(id=id, prompt=Prompt(prompt), **more)


def graph(*steps: Step, result: str = "", inputs: tuple[str, ...] = ("ticket",)) -> Graph:
    return Graph("g", inputs, steps, Ref(result or steps[-1].id))


def errors(subject: Graph, **known: Any) -> list[str]:
    return [str(found) for found in validate(subject, **known) if found.severity == "error"]


def warnings(subject: Graph) -> list[str]:
    return [str(found) for found in validate(subject) if found.severity == "warning"]


# ---- order and text -----------------------------------------------------------------------------


def test_sort_keeps_the_authors_order_where_it_can() -> None:
    c, a, b, d = ask("c", "{{ a }}"), ask("a"), ask("b"), ask("d", "{{ c }}{{ b }}")

    assert [step.id for step in sort(graph(d, c, a, b)).steps] == ["a", "c", "b", "d"]


def test_a_sorted_graph_is_returned_as_it_is() -> None:
    subject = graph(ask("a"), ask("b", "{{ a }}"))

    assert sort(subject) is subject


def test_sort_looks_into_bodies() -> None:
    body = (ask("y", "{{ x }}"), ask("x", "{{ part }}"))
    subject = graph(Each(id="all", items=Ref("ticket"), item="part", body=body, result=Ref("y")))

    assert [step.id for step in walk(sort(subject).steps)] == ["all", "x", "y"]


def test_a_circle_cannot_be_sorted() -> None:
    with pytest.raises(PlannerError, match="wait for each other: a, b"):
        sort(graph(ask("a", "{{ b }}"), ask("b", "{{ a }}")))


def test_canonical_ignores_places_and_nothing_else() -> None:
    one = graph(ask("a", place=Place("f", 1, 2)))

    assert canonical(one) == canonical(graph(ask("a", place=Place("g", 3, 4))))
    for other in (
        graph(ask("b")),
        graph(ask("a", "Say  {{ ticket }}")),
        graph(ask("a", sampling=Sampling(top_k=1))),
        graph(ask("a", when=Const("true"))),
        replace(one, name="h"),
    ):
        assert canonical(other) != canonical(one)


def test_canonical_is_stable() -> None:
    assert canonical(Graph("é", ("x",), (), DictOf((("k", Ref("x", ("a", 0))),)))) == (
        '{"inputs":["x"],"kind":"Graph","name":"é","result":{"items":[["k",{"kind":"Ref",'
        '"name":"x","path":["a",0]}]],"kind":"DictOf"},"steps":[]}'
    )


# ---- what can be wrong --------------------------------------------------------------------------


def test_a_good_graph_has_no_problems() -> None:
    subject = graph(
        ask("kind", choices=("bug", "other")),
        ask("fix", "Fix {{ ticket }}", when=GUARD),
        ask("check", "Check {{ fix }}", when=GUARD),
        Select(id="out", condition=GUARD, then=Ref("check"), otherwise=Ref("kind")),
        Each(
            id="all",
            items=Ref("ticket", ("parts",)),
            item="part",
            body=(ask("sum", "{{ part }} {{ kind }}"), ask("more", "{{ sum }}")),
            result=Ref("more"),
        ),
        Compute(id="end", value=DictOf((("a", Ref("out")), ("b", Ref("all"))))),
    )

    assert validate(subject, tools=(), models=("default",)) == []


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (
            graph(ask("a", "{{ tikcet }}")),
            "step 'a': reads 'tikcet', which is not defined; did you mean 'ticket'?",
        ),
        (graph(ask("a"), ask("a")), "step 'a': its id 'a' is another step already; rename one"),
        (
            graph(ask("ticket")),
            "step 'ticket': its id 'ticket' is an input already; rename one",
        ),
        (
            graph(ask("a", "{{ c }}"), ask("b", "{{ a }}"), ask("c", "{{ b }}")),
            "step 'a': steps read each other in a circle: a -> c -> b -> a; cut one read",
        ),
        (
            graph(ask("a", "{{ a }}")),
            "step 'a': steps read each other in a circle: a -> a; cut one read",
        ),
        (
            graph(ask("a", args=(("tikcet", Ref("ticket")),))),
            "step 'a': the prompt's field 'ticket' has no argument; did you mean 'tikcet'?",
        ),
        (
            graph(ask("a", "Hi", args=(("x", Ref("ticket")),))),
            "step 'a': no field of the prompt uses the argument 'x'; the prompt has no fields",
        ),
        (
            graph(ask("a", "Hi\n{{ x", args=())),
            (
                "step 'a': its prompt does not parse: line 2: unexpected end of template, expected "
                "'end of print statement'."
            ),
        ),
        (
            graph(ask("a", choices=("x",))),
            "step 'a': the only choice is 'x'; give two or more",
        ),
        (
            graph(ask("a", choices=("x", "y", "x"))),
            "step 'a': the choice 'x' is there 2 times",
        ),
        (graph(ask("a", choices=("x", " "))), "step 'a': a choice is empty; give each some text"),
        (
            graph(ask("a", choices=("x", "y"), schema="{}")),
            "step 'a': it has choices and an output model; keep one of them",
        ),
        (
            graph(ask("a", schema="{")),
            (
                "step 'a': its output schema is not JSON: Expecting property name enclosed in double "
                "quotes: line 1 column 2 (char 1)"
            ),
        ),
        (
            graph(ask("kind"), ask("fix", when=GUARD), ask("a", "{{ fix }}")),
            (
                "step 'a': reads 'fix', which is skipped unless kind == 'bug'; join the branches with "
                "a select, or give this step the same condition"
            ),
        ),
        (
            graph(Each(id="a", items=Const('"x"'), item="i", body=(), result=Ref("ticket"))),
            "step 'a': it runs over \"x\", which is not a list",
        ),
        (
            graph(Each(id="a", items=Ref("ticket"), item="i", body=(), result=Ref("j"))),
            "step 'a': its result reads 'j', which is not defined; known: i, ticket",
        ),
        (
            graph(Each(id="a", items=Ref("ticket"), item="ticket", body=(), result=Ref("ticket"))),
            "step 'a': its item 'ticket' is an input; rename it",
        ),
        (graph(ask("a"), result="b"), "the result reads 'b', not defined; known: a, ticket"),
        (
            graph(Compute(id="a", value=Expr("ticket +", ("ticket",)))),
            "step 'a': value: 'ticket +' is no expression: unexpected 'end of template'",
        ),
        (
            graph(Compute(id="a", value=Expr("ticket", ()))),
            "step 'a': value: 'ticket' also reads ticket",
        ),
        (
            graph(ask("my-step")),
            (
                "step 'my-step': the id 'my-step' cannot be used in templates; use letters, digits "
                "and _"
            ),
        ),
        (
            graph(ask("a", sampling=Sampling(max_tokens=0))),
            "step 'a': max_tokens is 0; it must be 1 or more",
        ),
        (
            graph(ask("a", sampling=Sampling(temperature=float("nan")))),
            "step 'a': temperature is nan; it must be 0 or more",
        ),
        (
            graph(ask("a", sampling=Sampling(top_p=1.5))),
            "step 'a': top_p is 1.5; it must be above 0 and at most 1",
        ),
        (
            graph(ask("a", sampling=Sampling(top_k=-1))),
            "step 'a': top_k is -1; it must be 0 (no limit) or more",
        ),
        (
            graph(ask("a", sampling=Sampling(stop=("",)))),
            "step 'a': a stop text is empty; it would stop every answer at once",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_one_problem(subject: Graph, expected: str) -> None:
    assert expected in errors(subject)


def test_all_problems_come_at_once_in_order() -> None:
    subject = graph(ask("a", "{{ nope }}", choices=("x",)), ask("b", "{{ x", args=()))

    assert [found.step for found in validate(subject)] == ["a", "a", "b", "", "a"]


def test_a_problem_has_the_steps_place() -> None:
    place = Place("flow.yaml", 3, 5)

    assert validate(graph(ask("a", "{{ nope }}", place=place)))[0].place == place


def test_unknown_tools_and_models() -> None:
    subject = graph(
        ToolCall(id="look", tool="serch", args=(("a", Ref("ticket")), ("a", Const("1")))),
        ask("a", "{{ look }}", model="bgi"),
    )

    assert errors(subject, tools=["search"], models=["big", "default"]) == [
        "step 'look': the argument 'a' is given 2 times",
        "step 'look': the tool 'serch' is not defined; did you mean 'search'?",
        "step 'a': the model 'bgi' is not defined; did you mean 'big'?",
    ]


@pytest.mark.parametrize(
    "when",
    [
        GUARD,
        Expr("kind == 'bug' and ticket", ("kind", "ticket")),
        Expr("(kind == 'bug') and (ticket)", ("kind", "ticket")),
    ],
    ids=lambda when: when.source,
)
def test_a_stricter_condition_may_read_a_skipped_step(when: Expr) -> None:
    subject = graph(ask("kind"), ask("fix", when=GUARD), ask("a", "{{ fix }}", when=when))

    assert errors(subject) == []


def test_conditions_are_compared_part_by_part() -> None:
    both = Expr("(kind == 'bug') and (ticket and kind)", ("kind", "ticket"))
    more = Expr("kind=='bug' and (ticket and kind) and x", ("kind", "ticket", "x"))
    less = Expr("kind == 'bug' and 'ticket and kind'", ("kind",))

    assert implies(more, both) and implies(both, GUARD) and implies(more, Ref("x"))
    assert not implies(GUARD, both)
    assert not implies(less, both)
    assert not implies(Expr("a or b and c", ("a", "b", "c")), Ref("c"))
    assert not implies(GUARD, Expr("(((", ()))


def test_a_body_has_the_condition_of_its_each() -> None:
    each = Each(
        id="all",
        items=Ref("fix"),
        item="part",
        body=(ask("a", "{{ fix }} {{ part }}"),),
        result=Ref("a"),
        when=GUARD,
    )

    assert errors(graph(ask("kind"), ask("fix", when=GUARD), each)) == []
    assert len(errors(graph(ask("kind"), ask("fix", when=GUARD), replace(each, when=None)))) == 2


def test_two_loops_may_call_their_items_alike() -> None:
    one = Each(id="a", items=Ref("ticket"), item="i", body=(), result=Ref("i"))

    assert errors(graph(one, replace(one, id="b"))) == []


def test_warnings() -> None:
    subject = graph(
        ask("kind"),
        ask("spare"),
        ToolCall(id="log", tool="log"),
        ask("fix", when=GUARD),
        inputs=("ticket", "extra"),
    )

    assert warnings(subject) == [
        "the result reads 'fix', which is null unless kind == 'bug'",
        "nothing reads the input 'extra'",
        "step 'spare': nothing reads its result, so it will not run",
    ]
    assert errors(subject) == []
