"""Free fields of prompts, put in order row by row (`planner.reorder`), window after window.

A prompt takes one of a few orders, which the first window finds. All of a window is arranged, also
what an earlier attempt has finished, so that a resumed run writes the same prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...planner.errors import PlannerError
from ...planner.graph import LLM, Ref, names_in
from ...planner.reorder import Windows
from ...planner.reorder.search import Order
from ...planner.reorder.table import CountTokens
from ...planner.reorder.template import Freed, free_fields
from ...planner.values import compile_value


class FreedStep:
    """One step whose prompt has free fields; `variants` are the step in the orders that rows take."""

    def __init__(self, step: LLM, cut: Freed, count_tokens: CountTokens) -> None:
        args = dict(step.args)
        layout = cut.layout()
        self.step = step
        self._cut = cut
        self._head = len(layout.fields) - len(cut.names)
        self._values = [
            compile_value(args.get(field.name, Ref(field.name))) for field in layout.fields
        ]
        self._windows = Windows(layout, count_tokens)
        self._variants: dict[Order, LLM] = {}

    @classmethod
    def of(cls, step: LLM, inputs: frozenset[str], count_tokens: CountTokens) -> "FreedStep | None":
        """The step, where all that stands up to its free fields is made of inputs."""
        if len(step.free_fields) < 2:
            return None
        try:
            cut = free_fields(step.prompt, step.free_fields)
            names = [field.name for field in cut.layout().fields]
        except PlannerError:
            return None
        args = dict(step.args)
        values = [args.get(name, Ref(name)) for name in names]
        if not all(inputs.issuperset(names_in(value)) for value in values):
            return None
        return cls(step, cut, count_tokens)

    def arrange(self, rows: Sequence[Mapping[str, Any]]) -> list[LLM]:
        """For each row of the next window the step with its fields in the row's order."""
        if not rows:
            return []
        found = self._windows.arrange([[self._value(v, row) for v in self._values] for row in rows])
        return [self._variant(found.order_of(number)) for number in range(len(rows))]

    def _value(self, value: Any, row: Mapping[str, Any]) -> Any:
        try:
            return value(row)
        except PlannerError:
            return ""

    def _variant(self, order: Order) -> LLM:
        found = self._variants.get(order)
        if found is None:
            places = [place - self._head for place in order if place >= self._head]
            same = places == sorted(places)
            made = self.step if same else replace(self.step, prompt=self._cut.prompt(places))
            found = self._variants[order] = made
        return found
