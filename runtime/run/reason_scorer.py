"""The scorer of a reasoning step: a tool of the author's, or a model that judges.

What it answers is checked, since it steers the search. A scorer that fails, gives no number or takes
too long leaves its sample without a reward; a step whose scorer never gave one fails.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...planner.graph import LLM, Reasoning
from ...tools import Tool, ToolError
from ...tools.call import call as call_tool
from ...tools.secrets import known, redact
from ..calls import CallId, Request
from ..clock import now
from ..errors import CallFailed, StepFailed, ToolFailed
from ..journal.base import StepRecord
from ..reasoning.scorer import ARGUMENTS, chance, reward_of
from ..scheduler.events import ToolEnded, ToolStarted
from ..scheduler.loop import Answer
from .asking import Asking, check_answer, seed_for
from .codec import decode, encode, identity
from .owner import Owner
from .trust import Toolbox

if TYPE_CHECKING:
    from .host import Host

Ask = Callable[[Request, Asking], Awaitable[Answer]]  # a call of a model, aborted when cancelled


@dataclass(slots=True)
class Scorer:
    """Asks for rewards, for one step of one program. `tokens` are what models computed for them."""

    host: "Host"
    owner: Owner
    path: str
    step: LLM
    question: str
    toolbox: Toolbox
    ask: Ask
    scores: int = 0
    failures: int = 0
    tokens: int = 0

    async def score(self, sample: int, thought: str, answer: str, part: str) -> float:
        """The reward, from the journal if it was given before; StepFailed says why there is none."""
        values = dict(zip(ARGUMENTS, (self.question, thought, answer, part), strict=True))
        path = f"{self.path}.score{sample}@{identity(values)}"
        record = self.owner.recorded.get(path)
        self.scores += 1
        try:
            if record is not None:
                return reward_of(decode(record.value))
            reward = reward_of(await self._given(path, values))
        except ValueError as error:
            self.failures += 1
            raise StepFailed(str(error), self.step.id) from None
        except StepFailed:
            self.failures += 1
            raise
        self.host.journal.record(StepRecord(self.owner.row, path, encode(reward)))
        return reward

    async def _given(self, path: str, values: Mapping[str, str]) -> object:
        reasoning = self.step.reasoning or Reasoning()
        if reasoning.judge is not None:
            return await self._judged(reasoning.judge, path, values)
        tool = self.toolbox.tools.get(reasoning.scorer or "")
        if tool is None:
            names = ", ".join(sorted(self.toolbox.tools)) or "none"
            raise StepFailed(f"there is no tool {reasoning.scorer!r}; known: {names}", self.step.id)
        return await self._called(tool, path, values)

    async def _called(self, tool: Tool, path: str, values: Mapping[str, str]) -> object:
        """What a tool gives for those of the values that it has parameters for."""
        wanted = json.loads(tool.parameters).get("properties", {})
        program, step, name = self.owner.name, self.step.id, tool.name
        send, started_s = self.host.scheduler.send, now()
        send(ToolStarted(program=program, step=step, tool=name, eta_s=tool.eta_s))
        given: object = None
        error: str | None = None
        try:
            given = await call_tool(tool, {each: values[each] for each in wanted if each in values})
        except ToolError as failure:
            error = redact(str(failure), known())
        seconds = now() - started_s
        ok = error is None
        send(ToolEnded(program=program, step=step, tool=name, seconds=seconds, ok=ok, error=error))
        if error is not None:
            raise ToolFailed(f"its scorer: {error}", step)
        return given

    async def _judged(self, judge: LLM, path: str, values: Mapping[str, str]) -> object:
        """The chance of a judge's first choice, or the number that it writes."""
        asking = self.host.asking(judge)
        host, timeout_s = self.host, self.host.call_timeout_s
        request = asking.request(
            CallId(f"{self.owner.name}/{path}"),
            asking.chat({each: values[each] for each in fields_of(judge)}),
            lambda: seed_for(host.seed, self.owner.row, path),
            now() + timeout_s if timeout_s else None,
        )
        answer = await self.ask(request, asking)
        usage = answer.usage
        self.tokens += max(0, usage.prompt_tokens - usage.cached_tokens) + usage.output_tokens
        if not judge.choices:
            return asking.read(answer)
        check_answer(answer, self.step.id)
        scores = answer.choice_logprobs
        if scores is None or len(scores) != len(judge.choices):
            raise CallFailed("its scorer: the backend did not score the choices", self.step.id)
        return chance(scores)


def fields_of(judge: LLM) -> tuple[str, ...]:
    """The names that a judge's prompts read."""
    system = judge.system.fields if judge.system is not None else ()
    return tuple(dict.fromkeys((*system, *judge.prompt.fields)))
