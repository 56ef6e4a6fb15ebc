"""A reduce as a step: one call where its list fits into the prompt, else a tree of calls.

Which items are folded together depends on their lengths alone, as rendered and in the tokens of the
model (`planner.folds`), so a run that is resumed folds as before, unless its server takes other
lengths.
"""

import asyncio
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from ...planner.folds import DoesNotFit, batches
from ...planner.graph import LLM, Reduce
from ...planner.several import prompt_limit
from ..calls import Message
from ..errors import StepFailed
from .asking import Asking
from .long_step import LongStep
from .program import Waiter
from .work import LLMWork, RowCall

if TYPE_CHECKING:
    from .host import Host

OPEN_FOLDS = 1024  # of a level: later ones are asked as earlier ones end


class ReduceWork(LongStep):
    """One reduce of one program: every fold is recorded below its path."""

    def __init__(self, host: "Host", call: RowCall) -> None:
        super().__init__(host, call.owner, call.path, call.signature, call.done)
        asking, values = call.asking, call.values
        assert asking.step.reduce is not None
        self._asking = asking
        self._step: LLM = asking.step
        self._reduce: Reduce = asking.step.reduce
        self._values = values
        given = values.get(self._reduce.over)
        if not isinstance(given, list):
            what = f"{type(given).__name__}: {given!r:.100}"
            raise StepFailed(
                f"it reduces {self._reduce.over!r}, a list, and got {what}", self._step.id
            )
        self._items = cast("list[Any]", given)
        limit = prompt_limit(self._step, asking.model.capabilities.context_tokens)
        self._limit = limit or 0
        self._whole = LLMWork(host, call)
        one_call = not self._reduce.tree or not self._items
        self._fits = one_call or _fits(call.chat, asking, self._limit)

    def start(self) -> None:
        """One call where that is enough, else the tree."""
        if self._fits:
            self._whole.start()
        else:
            super().start()

    async def _act(self) -> Any:
        """The last fold."""
        fold, merge = (self._host.asking(step) for step in parts(self._step))
        items, ends, level = self._items, list(range(1, len(self._items) + 1)), 0
        while len(items) > 1 or not level:
            folded, behind = await self._level(merge if level else fold, items, ends, level)
            if level and len(folded) == len(items):
                raise self._too_long("two answers", f"level {level} of its tree")
            items, ends, level = folded, behind, level + 1
        return items[0]

    async def _level(
        self, asking: Asking, items: list[Any], ends: list[int], level: int
    ) -> tuple[list[Any], list[int]]:
        """What batches of `items` give; an answer that stands alone goes up as it is.

        `ends`: behind which item of the whole list each one ends. Folds are recorded under what
        they are of, since another server may take other batches.
        """

        def fits(first: int, last: int) -> bool:
            alone = last - first == 1 and level > 0
            return alone or _fits(asking.chat(self._with(items[first:last])), asking, self._limit)

        folds: list[asyncio.Future[Any]] = []
        paths: list[str] = []
        behind = [0]
        try:
            for first, last in batches(len(items), fits):
                behind.append(ends[last - 1])
                path = f"{self._path}[{level}][{behind[-2]}:{behind[-1]}]"
                waiter = Waiter()
                folds.append(waiter.future)
                if level and last - first == 1:
                    waiter.settle(items[first], None)
                else:
                    values = self._with(items[first:last])
                    paths.append(path)
                    self._host.answer(self._owner, path, asking, values, waiter.settle)
                if len(folds) % OPEN_FOLDS == 0:
                    await asyncio.gather(*folds)
                await asyncio.sleep(0)  # a long list is cut for seconds: others have their turn
            return await asyncio.gather(*folds), behind[1:]
        except DoesNotFit as error:
            raise self._too_long(f"item {error.index}", "a call by itself") from None
        except asyncio.CancelledError:  # the step was given up
            for path in paths:
                self._host.withdraw(self._owner, path)
            raise

    def _with(self, items: list[Any]) -> dict[str, Any]:
        return {**self._values, self._reduce.over: items}

    def _too_long(self, what: str, where: str) -> StepFailed:
        return StepFailed(
            f"{what} of {self._reduce.over!r} and the prompt around do not fit into the "
            f"{self._limit:,} tokens of {where}: shorten them, or lower max_tokens",
            self._step.id,
        )


@lru_cache(maxsize=256)
def parts(step: LLM) -> tuple[LLM, LLM]:
    """The calls of a reduce: that which folds items, and that which folds folds."""
    assert step.reduce is not None
    fold = replace(step, reduce=None)
    return fold, fold if step.reduce.merge is None else replace(fold, prompt=step.reduce.merge)


def _fits(chat: list[Message], asking: Asking, limit: int) -> bool:
    return len(asking.model.tokenizer.chat(chat)) <= limit
