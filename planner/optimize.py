"""Runs the rules over a graph's plan, and checks the plan after each."""

from collections.abc import Callable, Iterable, Sequence

from .cost import estimate
from .errors import InvariantBroken
from .graph import Graph
from .lower import NOTHING, lower
from .plan import Context, Plan
from .rules.cascade import cascade
from .rules.consolidate import consolidate
from .rules.group import group
from .rules.order import order
from .rules.pack import pack
from .rules.prune import prune
from .rules.reorder import reorder

Rule = Callable[[Plan, Context], Plan]
Observe = Callable[[str, Plan, bool], None]

RULES: tuple[Rule, ...] = (
    prune,  # first: nothing else looks at steps that will not run
    consolidate,  # before group and order, which only care for what runs for each row
    reorder,  # before group and order, which go by the fields' places
    group,
    cascade,
    pack,  # before order, which weighs calls
    order,  # last: weighs the calls that are left
)


OPTIONAL = tuple(rule.__name__ for rule in RULES if rule is not prune)


def left_out(names: Iterable[str]) -> frozenset[str]:
    """Names of rules that may be left out. Raises ValueError for any other."""
    for name in names:
        if name not in OPTIONAL:
            known = ", ".join(OPTIONAL)
            raise ValueError(f"there is no rule {name!r} to leave out; there is {known}")
    return frozenset(names)


def optimize(
    graph: Graph,
    context: Context = NOTHING,
    observe: Observe | None = None,
    rules: Sequence[Rule] = RULES,
) -> Plan:
    """The plan for `graph`. `observe` is told each rule's name, its plan, and if it changed it.

    Raises `InvariantBroken`, which names the rule, where one has made a plan that makes no sense.
    """
    plan = lower(graph, context)
    _check(plan, "lower")
    for rule in rules:
        if rule.__name__ in context.without:
            continue
        found = rule(plan, context)
        changed = found is not plan
        if changed:
            _check(found, rule.__name__)
            found = estimate(found, context)
        plan = found
        if observe is not None:
            observe(rule.__name__, plan, changed)
    return plan


def _check(plan: Plan, rule: str) -> None:
    try:
        plan.invariants()
    except InvariantBroken as error:
        raise InvariantBroken(error.broken, rule) from None
