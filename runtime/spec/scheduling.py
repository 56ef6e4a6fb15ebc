"""What a workflow says of the scheduler in YAML: order, retention, limits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...kvpolicy import named
from ...planner.optimize import left_out
from ..api.places import did_you_mean
from ..errors import InvalidConfig
from ..scheduler.limits import Limits
from ..scheduler.policies import ordered
from ..workflow import Scheduling
from .check import Notes
from .keys import SCHEDULING
from .reader import Item


def read_scheduling(item: Item | None, inputs: Sequence[str], notes: Notes) -> Scheduling:
    """The settings under `scheduling`; what is wrong is noted at its place."""
    if item is None or (item.kind == "scalar" and item.scalar is None):
        return Scheduling()
    pairs = notes.table(item, SCHEDULING, "scheduling")
    checks: Mapping[str, Callable[[Any], object]] = {
        "order": ordered,
        "retention": named,
        "limits": Limits.read,
        "without": left_out,
    }
    given: dict[str, Any] = {}
    for key, value in pairs.items():
        given[key] = tuple(value.texts) if key == "without" else value.data
        try:
            if key in checks:
                checks[key](given[key])
        except (ValueError, InvalidConfig) as error:
            notes.add(str(error), value)
    tenant = given.get("tenant")
    if tenant is not None and tenant not in inputs:
        cure = did_you_mean(tenant, inputs, "the inputs")
        notes.add(f"tenant: there is no input {tenant!r}{cure}", pairs["tenant"])
    return Scheduling(**given)
