"""Hierarchical reduces: which items are folded together, and how many calls that is expected to take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.planner.explain import explain
from tenter.planner.folds import DoesNotFit, batches, expected_calls
from tenter.planner.graph import LLM, Const, Each, Graph, Reduce, Ref, Sampling
from tenter.planner.optimize import optimize
from tenter.planner.plan import Context, Tokens
from tenter.planner.prompt import Prompt
from tenter.planner.several import prompt_limit
from tenter.planner.validate import validate


@given(st.lists(st.integers(1, 30), max_size=120), st.integers(30, 200))
def test_each_batch_is_as_long_as_fits(sizes: list[int], most: int) -> None:
    found = list(batches(len(sizes), lambda first, last: sum(sizes[first:last]) <= most))

    assert [place for first, last in found for place in range(first, last)] == [*range(len(sizes))]
    for first, last in found:
        assert sum(sizes[first:last]) <= most
        assert last == len(sizes) or sum(sizes[first : last + 1]) > most


def test_few_lengths_are_tried() -> None:
    looked = 0

    def fits(first: int, last: int) -> bool:
        nonlocal looked
        looked += 1
        return last - first <= 20

    assert len(list(batches(2000, fits))) == 100
    assert looked < 350


def test_an_item_that_is_too_long_is_named() -> None:
    with pytest.raises(DoesNotFit) as caught:
        list(batches(5, lambda first, last: last - first <= 2 and 3 not in range(first, last)))
    assert caught.value.index == 3


@pytest.mark.parametrize(
    ("items", "item", "answer", "fixed", "limit", "calls"),
    [
        (10, 50, 20, 100, 4000, (1,)),
        (1000, 50, 60, 100, 4000, (13, 1)),
        (100_000, 50, 60, 100, 4000, (1283, 20, 1)),
        (100, 50, 3000, 100, 4000, ()),  # two answers never fit together
    ],
)
def test_levels(
    items: int, item: int, answer: int, fixed: int, limit: int, calls: tuple[int, ...]
) -> None:
    assert expected_calls(items, item, answer, fixed, limit) == calls


def reduced(reduce: Reduce, prompt: str = "Sum up: {{ notes }}", **more: object) -> Graph:
    note = LLM(id="note", prompt=Prompt("Note."), sampling=Sampling(max_tokens=100))
    notes = Each(
        id="notes",
        items=Const("[" + ",".join(map(str, range(200))) + "]"),
        item="x",
        body=(note,),
        result=Ref("note"),
    )
    fields = Prompt(prompt).fields
    step = LLM(
        id="all",
        prompt=Prompt(prompt),
        args=tuple((name, Ref(name)) for name in fields),
        reduce=reduce,
        **more,  # type: ignore[arg-type]
    )
    return Graph("g", (), (notes, step), Ref("all"))


@pytest.mark.parametrize(
    ("reduce", "context_tokens", "told"),
    [
        (Reduce("notes"), None, "all items in one call"),
        (Reduce("notes"), 100_000, "all items in one call"),
        (Reduce("notes"), 1000, "output 128; 3 levels of 15, 3, 1 calls"),
        (Reduce("notes", batch_tokens=500), 100_000, "4 levels of 23, 8, 3, 1 calls"),
        (Reduce("notes", tree=False), 1000, "all items in one call"),
        (Reduce("notes"), 400, "two answers do not fit a prompt together"),
    ],
)
def test_explain_tells_the_levels(reduce: Reduce, context_tokens: int | None, told: str) -> None:
    plan = optimize(reduced(reduce), Context(tokens=Tokens(context_tokens=context_tokens)))

    assert "reduce default text(notes) over notes" in explain(plan)
    assert told in explain(plan)


def test_the_longest_prompt_leaves_room_for_the_answer() -> None:
    step = LLM(id="s", prompt=Prompt("p"), reduce=Reduce("x"), sampling=Sampling(max_tokens=100))
    assert prompt_limit(step, 1000) == 900
    assert prompt_limit(step, None) is None


@pytest.mark.parametrize(
    ("reduce", "told"),
    [
        (
            Reduce("note"),
            "reduces over 'note', which is no field of its prompt; did you mean 'notes'",
        ),
        (Reduce("notes", Prompt("{{ n }}")), "the prompt's field 'n' has no argument"),
        (Reduce("notes", Prompt("all")), "is no field of its merge; it has no fields"),
        (Reduce("notes", batch_tokens=0), "batch_tokens is 0; it must be 1 or more"),
        (Reduce("notes", batch_tokens=9, tree=False), "with tree: false there is one call"),
    ],
)
def test_what_can_be_wrong_with_it(reduce: Reduce, told: str) -> None:
    assert told in "\n".join(map(str, validate(reduced(reduce))))
