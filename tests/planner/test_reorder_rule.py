"""The rule that puts freed fields in order, and the lint that prices a prefix."""

import pytest

from tenter.planner.errors import PlannerError
from tenter.planner.graph import LLM, Graph, Ref
from tenter.planner.lint import lint
from tenter.planner.lower import lower
from tenter.planner.optimize import left_out, optimize
from tenter.planner.plan import Context
from tenter.planner.prompt import Prompt
from tenter.planner.reorder.depend import Dependency
from tenter.planner.rules.reorder import reorder
from tenter.planner.stats import ColumnStats, TableStats
from tenter.planner.validate import validate

SOURCE = "Judge.\nId: {{ id }}\nText: {{ text }}\nShop: {{ shop }}\nCity: {{ city }}\n\nIs it good?"
NAMES = ("id", "text", "shop", "city")
STATS = TableStats(
    1000,
    {
        "id": ColumnStats(1000, 8),
        "text": ColumnStats(900, 300),
        "shop": ColumnStats(40, 60),
        "city": ColumnStats(30, 20),
    },
    dependencies=(Dependency("shop", "city"),),
)


def graph(source: str = SOURCE, free: tuple[str, ...] = NAMES) -> Graph:
    prompt = Prompt(source)
    args = tuple((name, Ref(name)) for name in prompt.fields)
    step = LLM(id="a", prompt=prompt, args=args, free_fields=free)
    return Graph("g", NAMES, (step,), Ref("a"))


def source_of(plan_step: object) -> str:
    assert isinstance(plan_step, LLM)
    return plan_step.prompt.source


def test_freed_fields_go_from_shared_to_unique_and_the_plan_says_so() -> None:
    plan = optimize(graph(), Context(STATS))

    assert source_of(plan.steps[0].step) == (
        "Judge.\nCity: {{ city }}\nShop: {{ shop }}\nText: {{ text }}\nId: {{ id }}\n\nIs it good?"
    )
    assert any("answers may change" in note for note in plan.notes)
    assert plan.steps[0].prefix.fields == ("city", "shop", "text", "id")


@pytest.mark.parametrize("free", [(), ("shop",)])
def test_what_is_not_freed_stays(free: tuple[str, ...]) -> None:
    plan = lower(graph(free=free), Context(STATS))

    assert reorder(plan, Context(STATS)) is plan


def test_a_rule_that_is_left_out_changes_nothing() -> None:
    plan = optimize(graph(), Context(STATS, without=left_out(["reorder"])))

    assert source_of(plan.steps[0].step) == SOURCE
    with pytest.raises(ValueError, match="no rule 'prune' to leave out; there is consolidate"):
        left_out(["prune"])


@pytest.mark.parametrize(
    ("free", "told"),
    [
        (("id", "shops"), "the free field 'shops' is not in the prompt; did you mean 'shop'"),
        (("id",), "fewer than two fields are free"),
    ],
)
def test_validation_tells_what_cannot_be_free(free: tuple[str, ...], told: str) -> None:
    assert any(told in str(problem) for problem in validate(graph(free=free), (), None))


def test_it_finds_nothing_twice_nor_without_statistics() -> None:
    context = Context(STATS)
    plan = reorder(lower(graph(), context), context)

    assert reorder(plan, context) is plan
    bare = lower(graph(), Context())
    assert reorder(bare, Context()) is bare


def test_fields_that_cannot_move_are_told_with_their_step() -> None:
    plan = lower(graph("{{ id }}{{ text }}", ("id", "text")), Context(STATS))

    with pytest.raises(PlannerError, match="step 'a': the free fields are parted by ''"):
        reorder(plan, Context(STATS))


def test_the_lint_prices_what_rows_would_share() -> None:
    prompt = "Judge.\n{{ id }}\n" + "Shop and city of the place, as they were told: {{ shop }}" * 3
    (warning,) = lint(graph(prompt, ()), Context(STATS))

    assert (warning.field, warning.line, warning.calls) == ("id", 2, 1000)
    assert warning.tokens_lost == pytest.approx((47 * 3 + 60 * 3) / 4 * 0.96, rel=0.05)
    assert "(line 2)" in str(warning)
    assert f"{warning.tokens_lost * 1000:,} in the run" in str(warning)
