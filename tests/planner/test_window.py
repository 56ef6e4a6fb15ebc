"""Windows of rows: the order that shares the most, and groups of prompts that begin alike."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tenter.planner.graph import LLM, Each, Graph, Ref, Step, ToolCall
from tenter.planner.prompt import Prompt
from tenter.planner.window import leads, plan_window

LONG = "x" * 200


def asks(name: str, prompt: str, **more: object) -> LLM:
    args = tuple((field, Ref(field)) for field in Prompt(prompt).fields)
    return LLM(id=name, prompt=Prompt(prompt), args=args, **more)  # type: ignore[arg-type]


def graph(*steps: Step, inputs: tuple[str, ...] = ("doc", "q")) -> Graph:
    return Graph("g", inputs, steps, Ref(steps[-1].id))


def test_rows_with_equal_beginnings_come_together_and_are_one_group() -> None:
    rows = [{"doc": f"{n % 3}{LONG}", "q": f"question {n}"} for n in range(12)]
    plan = plan_window(leads(graph(asks("a", "Read: {{ doc }}\n{{ q }}"))), rows)

    docs = [rows[row]["doc"] for row in plan.order]
    assert docs == sorted(docs) and sorted(plan.order) == list(range(12))
    assert [(group.step, group.prompts) for group in plan.groups] == [("a", 4)] * 3
    for group in plan.groups:
        assert {rows[row]["doc"] for row in group.rows} == {rows[group.rows[0]]["doc"]}
        assert list(group.rows) == sorted(group.rows, key=plan.order.index)
        assert len(group.text) >= len("Read: ") + 201


def test_what_a_step_makes_ends_what_is_known_of_a_prompt() -> None:
    tool = ToolCall(id="policy", tool="t", effect="pure")
    known = leads(graph(asks("a", "By {{ policy }}: {{ doc }}"), tool))

    assert [(lead.step, lead.whole, lead.varies) for lead in known] == [("a", False, False)]
    assert plan_window(known, [{"doc": "b"}, {"doc": "a"}]).order == (0, 1)


def test_equal_prompts_count_once_in_their_group() -> None:
    rows = [{"doc": LONG, "q": str(n % 2)} for n in range(6)]
    (group,) = plan_window(leads(graph(asks("a", "{{ doc }} {{ q }}"))), rows).groups

    assert (group.prompts, len(group.rows)) == (2, 6)


def test_text_that_all_prompts_begin_with_makes_no_group() -> None:
    rows = [{"doc": f"{n}", "q": ""} for n in range(9)]

    assert not plan_window(leads(graph(asks("a", LONG + "{{ doc }}{{ q }}"))), rows).groups


def test_the_step_with_more_to_share_decides_and_the_other_goes_within() -> None:
    steps = asks("a", "{{ doc }}\n{{ q }}"), asks("b", "{{ q }}\n{{ doc }}")
    rows = [{"doc": f"{n % 2}{LONG * 5}", "q": f"{n % 3}{LONG}"} for n in range(24)]
    plan = plan_window(leads(graph(*steps)), rows)

    pairs = [(rows[row]["doc"], rows[row]["q"]) for row in plan.order]
    changes = [sum(a[k] != b[k] for a, b in pairwise(pairs)) for k in (0, 1)]
    assert changes[0] == 1 and changes[1] <= 5


def test_a_window_may_begin_where_the_last_one_ended_and_rows_may_stay() -> None:
    rows = [{"doc": f"{n % 4}{LONG}", "q": str(n)} for n in range(16)]
    known = leads(graph(asks("a", "{{ doc }}{{ q }}")))
    there, back = (plan_window(known, rows, descending=turned).order for turned in (False, True))

    assert back == there[::-1]
    stay = plan_window(known, rows, reorder=False)
    assert stay.order == tuple(range(16)) and len(stay.groups) == 4


def test_steps_within_an_each_are_known_up_to_the_item() -> None:
    body = asks("b", "{{ doc }} {{ item }}")
    each = Each(id="e", items=Ref("q"), item="item", body=(body,), result=Ref("b"))
    (lead,) = leads(graph(each))

    assert lead.step == "b" and not lead.whole and lead.texts({"doc": "d"}) == ("d", " ")


texts = st.sampled_from(["", "a", LONG, LONG + "b"])


@given(st.lists(st.tuples(texts, texts), max_size=12), st.booleans())
def test_every_row_runs_once_and_is_in_one_group_of_a_step(
    pairs: list[tuple[str, str]], reorder: bool
) -> None:
    rows = [{"doc": doc, "q": q} for doc, q in pairs]
    known = leads(graph(asks("a", "{{ doc }}{{ q }}"), asks("b", "{{ q }}{{ doc }}")))
    plan = plan_window(known, rows, ("q",), reorder=reorder)

    assert sorted(plan.order) == list(range(len(rows)))
    for step in "ab":
        members = [row for group in plan.groups if group.step == step for row in group.rows]
        assert len(members) == len(set(members))
    for group in plan.groups:
        lead = next(lead for lead in known if lead.step == group.step)
        prompts = ["".join(lead.texts(rows[row])) for row in group.rows]
        assert all(prompt.startswith(group.text) for prompt in prompts)
