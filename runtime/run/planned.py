"""A plan being carried out: rows in its order, calls with its hints, prefixes pinned and let go.

Each window of rows is planned by itself (`planner.window`). A group is named after the text that
its prompts begin with, so what two windows share is one group and stays in the cache between them.
Calls whose prompts begin with what a step has made are grouped as they come, while others of the
kind are on their way.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_plan
from hashlib import blake2b
from typing import Any, NamedTuple

from msgspec.structs import replace

from ...planner.graph import LLM, Ref, names_in, walk
from ...planner.lower import segments
from ...planner.placement import Turns
from ...planner.plan import Plan
from ...planner.prompt import Dynamic, Static
from ...planner.window import PAGE_CHARS, Group, Lead, lead_of, leads, plan_window
from ..calls import Message
from ..scheduler.loop import Answer, PlanHint, Scheduler
from .asking import Asking, Model
from .cascades import Cascades
from .freed import FreedStep
from .placing import Placing

PINNED_PROMPTS = 16  # a group with fewer prompts is over before anything could evict its prefix
REMEMBERED = 4096  # beginnings of which it is known how many tokens they are
EDGE_TOKENS = 4  # at the end of a text, which other text behind it may change
NO_MODELS: Mapping[str, Model] = {}
NO_STEPS: Mapping[str, LLM] = {}
SEEN = 8  # answers of a step, from which on their mean is what the next one is expected to be


@dataclass(slots=True, eq=False)
class _Group:
    """Calls whose prompts begin alike; `left` rows, or calls, of it have not ended."""

    name: str
    chars: int
    place: float | None  # of its first row, which gives all of them their turn
    worker: str | None = None  # that has all of them; None: each row its own
    prompts: int = 0  # that differ, as far as they are planned; 0: nobody knows
    left: int = 0
    leader: str | None = None
    tokens: int | None = None  # of what they begin with; None until a call of it is there


class Hint(NamedTuple):
    """What a call's request and the scheduler are told; `group` with its `shared_tokens`."""

    plan: PlanHint
    group: str | None = None
    shared_tokens: int = 0


class Planned:
    """Carries out `plan` for the calls that go to `scheduler`.

    `order`: rows go in the order of their prefixes, not as they come. `group`: calls that begin
    alike go together, and what many of them share is pinned as long as calls of it may come. With
    `models`, each row has the free fields of its prompts in an order of its own. The workers of
    each of `pools` share a window's rows out, so that each prefix is computed on one of them, or,
    with `turns`, do what that placement says. The samples of `cascades` run first.
    """

    def __init__(
        self,
        plan: Plan,
        scheduler: Scheduler,
        *,
        order: bool = True,
        group: bool = True,
        models: Mapping[str, Model] = NO_MODELS,
        pools: Iterable[str] = (),
        turns: Turns | None = None,
        cascades: Cascades | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._placing = Placing(scheduler.workers_of, pools if order else (), turns)
        self._cascades = cascades
        self._columns = plan.row_order.columns
        self._order = order
        self._leads = leads(plan.graph)
        steps = [step for step in walk(plan.graph.steps) if isinstance(step, LLM)]
        alone = {
            step.id
            for step in steps
            if step.loop is None and step.reasoning is None and step.reduce is None
        }
        self._grouped = alone if group else set[str]()
        whole = {lead.step for lead in self._leads if lead.whole}
        self._made = {
            step.id: _beginning(step, frozenset(plan.inputs))
            for step in steps
            if step.id in self._grouped - whole
        }
        self._inputs = frozenset(plan.inputs)
        self._freed = [
            freed
            for step in steps
            if step.model in models and step.id in alone
            if (freed := FreedStep.of(step, self._inputs, _counter(models[step.model])))
        ]
        self._arranged: dict[int, dict[str, LLM]] = {}  # the window that is about to be planned
        self._variants: dict[int, dict[str, LLM]] = {}
        self._windows = 0
        self._groups: dict[str, _Group] = {}
        self._of_row: dict[int, dict[str, _Group]] = {}
        self._passing: dict[str, _Group] = {}  # groups of calls that are on their way
        self._of_call: dict[str, _Group] = {}
        self._tokens: OrderedDict[str, int] = OrderedDict()
        self._outputs: dict[str, tuple[int, float]] = {}  # per step: answers seen, their mean

    # ---- rows -----------------------------------------------------------------------------------

    def arrange(self, rows: Sequence[int], inputs: Sequence[Mapping[str, Any]]) -> None:
        """Put free fields in order for all rows of the next window, whichever will be run."""
        if self._cascades is not None:
            self._cascades.begin(rows)
        self._arranged = {}
        for freed in self._freed:
            for row, step in zip(rows, freed.arrange(inputs), strict=True):
                self._arranged.setdefault(row, {})[step.id] = step

    def variant(self, row: int, step: LLM) -> LLM:
        """The step as a row has it."""
        return self._variants.get(row, NO_STEPS).get(step.id, step) if self._freed else step

    def window(self, rows: Sequence[int], inputs: Sequence[Mapping[str, Any]]) -> list[int]:
        """The order of the next window's rows, given by number with their inputs: indices."""
        self._variants.update((row, self._arranged[row]) for row in rows if row in self._arranged)
        self._arranged = {}
        found = plan_window(
            self._leads,
            inputs,
            self._columns,
            own=self._own_leads(rows),
            reorder=self._order,
            descending=self._windows % 2 == 1,
        )
        self._windows += 1
        found = self._placing.share_out(rows, found, self._leads, inputs)
        if self._cascades is not None:
            found = replace_plan(found, order=tuple(self._cascades.window(rows, found.order)))
        self._placing.add(rows, found.order)
        for group in found.groups:
            if group.step in self._grouped:
                self._add(group, rows)
        return list(found.order)

    def _own_leads(self, rows: Sequence[int]) -> dict[str, list[Lead]]:
        known: dict[int, Lead] = {}  # by the identity of a variant
        found: dict[str, list[Lead]] = {freed.step.id: [] for freed in self._freed}
        for name, mine in found.items():
            for row in rows:
                step = self._variants[row][name]
                if id(step) not in known:
                    known[id(step)] = lead_of(step, self._inputs)
                mine.append(known[id(step)])
        return found

    def _add(self, group: Group, rows: Sequence[int]) -> None:
        name, first = _name(group.step, group.text), rows[group.rows[0]]
        place = self._placing.key(first, group.step)
        worker = self._placing.home([rows[index] for index in group.rows], group.step)
        known = self._groups.setdefault(name, _Group(name, len(group.text), place, worker))
        known.prompts += group.prompts
        known.left += len(group.rows)
        for index in group.rows:
            self._of_row.setdefault(rows[index], {})[group.step] = known

    def ended(self, row: int) -> None:
        """A row's program has ended: no more calls of it will come."""
        if self._cascades is not None:
            self._cascades.ended(row)
        self._placing.ended(row)
        self._variants.pop(row, None)
        for group in self._of_row.pop(row, {}).values():
            group.left -= 1
            if not group.left:
                del self._groups[group.name]
                if group.tokens:
                    self._scheduler.end_prefix(group.name)

    # ---- calls ----------------------------------------------------------------------------------

    def hint(
        self,
        row: int,
        call: str,
        asking: Asking,
        chat: Sequence[Message],
        values: Mapping[str, Any],
    ) -> Hint:
        """What the plan says of a call that is about to be asked."""
        step = asking.step.id
        group = self._of_row.get(row, {}).get(step)
        if group is None and step in self._made:
            group = self._pass(row, call, step, values)
        place = self._placing.key(row, step) if self._order else None
        worker = group.worker if group is not None else None
        if worker is None and (group is not None or self._placing.follows):
            worker = self._placing.worker(row, step, asking.model.pool)
        alone = PlanHint(order_key=place, worker=worker, expected_tokens=self._expected(step))
        if group is None:
            return Hint(alone)
        if group.tokens is None:
            group.tokens = self._shared(group, asking, chat)
            if group.tokens and group.prompts >= PINNED_PROMPTS:
                prefix = tuple(asking.model.tokenizer.chat(list(chat))[: group.tokens])
                self._scheduler.share_prefix(group.name, asking.model.pool, prefix, worker)
        if not group.tokens:
            return Hint(alone)
        group.leader = group.leader or call
        plan = replace(alone, leader=group.leader, order_key=group.place)
        return Hint(plan, group.name, group.tokens)

    def answered(self, call: str, step: str, answer: Answer) -> None:
        """A call has ended; its length tells what those of its step are like."""
        if answer.error is None:
            seen, mean = self._outputs.get(step, (0, 0.0))
            far = answer.usage.output_tokens - mean
            self._outputs[step] = (seen + 1, mean + far / min(seen + 1, 64))
        group = self._of_call.pop(call, None)
        if group is None:
            return
        group.left -= 1
        if not group.left:
            del self._passing[group.name]
            if group.tokens:
                self._scheduler.end_prefix(group.name)

    def _expected(self, step: str) -> float | None:
        seen, mean = self._outputs.get(step, (0, 0.0))
        return mean if seen >= SEEN else None

    def _pass(self, row: int, call: str, step: str, values: Mapping[str, Any]) -> _Group | None:
        """The group of a call whose prompt begins with what a step has made."""
        begin = self._made[step]
        text = begin(values) if begin is not None else ""
        if len(text) < PAGE_CHARS:
            return None
        name = _name(step, text)
        group = self._passing.get(name)
        if group is None:
            place = self._placing.key(row, step)
            group = self._passing[name] = _Group(name, len(text), place)
        group.left += 1
        self._of_call[call] = group
        if group.left == 1 and name not in self._tokens:
            return None  # it may stay the only one
        return group

    def _shared(self, group: _Group, asking: Asking, chat: Sequence[Message]) -> int:
        """The tokens of what a group begins with: of whole pages, and none that may change."""
        known = self._tokens.get(group.name)
        if known is not None:
            self._tokens.move_to_end(group.name)
            return known
        tokenizer, page = asking.model.tokenizer, asking.model.capabilities.page_tokens
        whole, cut = (tokenizer.chat(part) for part in (list(chat), _cut(chat, group.chars)))
        same = next(
            (
                index
                for index, pair in enumerate(zip(whole, cut, strict=False))
                if len(set(pair)) > 1
            ),
            min(len(whole), len(cut)),
        )
        found = max(0, same - EDGE_TOKENS) // page * page
        self._tokens[group.name] = found
        if len(self._tokens) > REMEMBERED:
            self._tokens.popitem(last=False)
        return found


def _counter(model: Model) -> Callable[[Sequence[str]], list[int]]:
    encode = model.tokenizer.encode
    return lambda texts: [len(encode(text)) for text in texts]


def _name(step: str, text: str) -> str:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"group/{step}/{digest}"


def _cut(chat: Sequence[Message], chars: int) -> list[Message]:
    """The first `chars` characters of what a chat says."""
    found: list[Message] = []
    for message in chat:
        found.append(Message(message.role, message.content[:chars]))
        chars -= len(message.content)
        if chars <= 0:
            break
    return found


def _beginning(step: LLM, inputs: frozenset[str]) -> Callable[[Mapping[str, Any]], str] | None:
    """A step's prompt up to its first field that is no input, that field included.

    A function of the values of its fields; None where code stands there.
    """
    args = dict(step.args)
    parts: list[str | tuple[str, tuple[str | int, ...]]] = []
    for part in segments(step):
        match part:
            case Static(text):
                parts.append(text)
            case Dynamic():
                return None
            case _:
                parts.append((part.name, part.path))
                if not inputs.issuperset(names_in(args.get(part.name, Ref(part.name)))):
                    return lambda values: "".join(_printed(part, values) for part in parts)
    return None


def _printed(part: str | tuple[str, tuple[str | int, ...]], values: Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    value: Any = values.get(part[0])
    for key in part[1]:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return ""
    return str(value)
