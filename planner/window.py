"""A window of rows: in which order they run, and which of their prompts begin alike. Pure.

What is known of a prompt before it runs is its beginning, up to the first field that a step makes.
It is compared as text: tokens are counted for what turns out to be shared, not for all rows.
The order is depth-first through the prefix tree of the step that gains the most (`prefixes.groups`);
groups are single-level, as each call belongs to one (BatchLLM, 2412.03594 §4).
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from .errors import PlannerError
from .graph import LLM, Graph, Ref, Value, names_in, walk
from .lower import segments
from .plan import CHARS_PER_TOKEN
from .prefixes import Prompts, group_prompts, single_level_groups
from .prefixes.groups import PAGE_TOKENS
from .prompt import Dynamic, Static
from .prompt import Field as PromptField
from .values import compile_value

PAGE_CHARS = round(PAGE_TOKENS * CHARS_PER_TOKEN)
MOST_TREES = 3  # steps whose prefix trees may decide the order of the rows

NONE: Mapping[str, "Sequence[Lead]"] = {}
Evaluate = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Lead:
    """How a step's prompts begin, as far as a row's inputs tell: texts and fields, in order.

    `whole`: to their end. `output_tokens`: of an answer, at most.
    """

    step: str
    parts: tuple[str | Evaluate, ...]
    whole: bool
    output_tokens: int = 0

    @property
    def varies(self) -> bool:
        """Whether it differs between rows."""
        return any(not isinstance(part, str) for part in self.parts)

    @property
    def head_chars(self) -> int:
        """The text that all of the step's prompts begin with."""
        return len(self.parts[0]) if self.parts and isinstance(self.parts[0], str) else 0

    def texts(self, inputs: Mapping[str, Any]) -> tuple[str, ...]:
        """The parts for a row; one that cannot be worked out is empty, and fails when it runs."""
        return tuple(
            part if isinstance(part, str) else _written(part, inputs) for part in self.parts
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Calls of one step whose prompts begin with `text`.

    `rows` has their rows in the order in which they run; equal prompts stand for one another, and
    `prompts` counts those that differ.
    """

    step: str
    text: str
    rows: tuple[int, ...]
    prompts: int


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """`order` has a window's rows by number, in the order to run them."""

    order: tuple[int, ...]
    groups: tuple[Group, ...] = ()


def leads(graph: Graph) -> tuple[Lead, ...]:
    """The beginnings of all prompts of a graph."""
    inputs = frozenset(graph.inputs)
    return tuple(lead_of(step, inputs) for step in walk(graph.steps) if isinstance(step, LLM))


def plan_window(
    leads: Sequence[Lead],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] = (),
    *,
    own: Mapping[str, Sequence[Lead]] = NONE,
    reorder: bool = True,
    descending: bool = False,
) -> WindowPlan:
    """The plan for a window's rows, given by their inputs.

    `columns` sort them where no prefix tree saves more. `descending`: the other way round, so that
    a window begins where the one before it ended. Without `reorder` rows stay as they are. `own`
    has, by step, the beginnings of rows that do not have those of `leads`.
    """
    trees = [_Tree.of(lead, rows, own.get(lead.step)) for lead in leads if lead.varies]
    order: Sequence[int] = range(len(rows))
    if reorder:
        order = _best_order(trees, rows, columns)
        order = order[::-1] if descending else order
    place = array("q", [0]) * len(rows)
    for index, row in enumerate(order):
        place[row] = index
    return WindowPlan(tuple(order), tuple(g for tree in trees for g in tree.groups(place)))


# ---- what is known of prompts -------------------------------------------------------------------


def lead_of(step: LLM, inputs: frozenset[str]) -> Lead:
    """The beginning of a step's prompts, where `inputs` are known."""
    args = dict(step.args)
    parts: list[str | Evaluate] = []
    whole = True
    for part in segments(step):
        found = _part(part, args, inputs)
        if found is None:
            whole = False
            break
        if isinstance(found, str) and parts and isinstance(parts[-1], str):
            found = f"{parts.pop()}{found}"
        parts.append(found)
    output = 0 if step.choices else step.sampling.max_tokens
    return Lead(step.id, tuple(parts), whole, output)


def _part(
    part: Static | PromptField | Dynamic, args: Mapping[str, Value], inputs: frozenset[str]
) -> str | Evaluate | None:
    """A part of a prompt by itself; None where inputs do not determine it, or code prints it."""
    match part:
        case Static(text):
            return text
        case PromptField(name, path):
            value = args.get(name, Ref(name))
            if not inputs.issuperset(names_in(value)):
                return None
            if not path:
                return compile_value(value)
            return (
                compile_value(Ref(value.name, value.path + path))
                if isinstance(value, Ref)
                else None
            )
        case Dynamic():
            return None


def _written(part: Evaluate, inputs: Mapping[str, Any]) -> str:
    try:
        return str(part(inputs))
    except PlannerError:
        return ""


# ---- orders and groups --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tree:
    """The distinct prompts of one step, and the rows of each."""

    lead: Lead
    prompts: Prompts
    rows: list[list[int]]
    prompt_of: "array[int]"

    @classmethod
    def of(
        cls, lead: Lead, rows: Sequence[Mapping[str, Any]], own: Sequence[Lead] | None = None
    ) -> "_Tree":
        known: dict[tuple[str, ...], int] = {}
        found: list[list[int]] = []
        prompt_of = array("q")
        for row, inputs in enumerate(rows):
            texts = ("".join(own[row].texts(inputs)),) if own else lead.texts(inputs)
            number = known.setdefault(texts, len(known))
            if number == len(found):
                found.append([])
            found[number].append(row)
            prompt_of.append(number)
        return cls(lead, Prompts.of_texts(known), found, prompt_of)

    def order(self) -> list[int]:
        """The rows depth-first through the prefixes."""
        expected = [float(self.lead.output_tokens)] * len(self.prompts)
        decoded = expected if self.lead.output_tokens else None
        found = group_prompts(self.prompts, PAGE_CHARS, decoded).order
        return [row for prompt in found for row in self.rows[prompt]]

    def saved_pages(self, order: Sequence[int]) -> int:
        """Pages that each row's prompt shares with that of the row before."""
        prompts = [self.prompt_of[row] for row in order]
        return sum(chars // PAGE_CHARS for chars in self.prompts.shared(prompts))

    def groups(self, place: Sequence[int]) -> Iterator[Group]:
        """Prompts that share more than all prompts of the step do."""
        found = single_level_groups(self.prompts)
        least = self.lead.head_chars // PAGE_CHARS
        for members, chars in zip(found.groups, found.shared, strict=True):
            if len(members) > 1 and chars // PAGE_CHARS > least:
                rows = [row for member in members for row in self.rows[member]]
                rows.sort(key=place.__getitem__)
                segments = (self.prompts.segments[c[members[0]]] for c in self.prompts.columns)
                text = "".join(map(str, segments))[:chars]
                yield Group(self.lead.step, text, tuple(rows), len(members))


def _best_order(
    trees: Sequence[_Tree], rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> Sequence[int]:
    """The order in which all steps together share the most with the row before."""
    original = range(len(rows))
    by_columns = sorted(original, key=lambda row: [str(rows[row].get(name)) for name in columns])
    if not trees:
        return by_columns
    alone = [(tree, tree.order()) for tree in trees]
    alone.sort(key=lambda each: -each[0].saved_pages(each[1]))
    chosen = alone[:MOST_TREES]
    tried: list[Sequence[int]] = [order for _, order in chosen]
    tried += [_within(one, first, second) for (one, first), (_, second) in permutations(chosen, 2)]
    tried += [by_columns, original] if columns else [original]
    saved = [sum(tree.saved_pages(order) for tree in trees) for order in tried]
    return tried[saved.index(max(saved))]


def _within(tree: _Tree, order: Sequence[int], inner: Sequence[int]) -> Sequence[int]:
    """The groups of `tree` in their order, and in each its rows in the order of another tree."""
    first, place = list(order), list(order)
    for index, row in enumerate(order):
        first[row] = index
    for index, row in enumerate(inner):
        place[row] = index
    for group in tree.groups(first):
        for row in group.rows:
            first[row] = first[group.rows[0]]
    return sorted(order, key=lambda row: (first[row], place[row]))
