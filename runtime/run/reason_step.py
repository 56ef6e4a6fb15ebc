"""A reasoning step: a strategy that says what to think, and the calls that do it."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ...planner.graph import LLM
from ..calls import Message
from ..errors import StepFailed
from ..reasoning.named import allowed_of, build, pool_of, rule_of, suffix_of
from ..reasoning.nouns import Outcome
from ..reasoning.pool import Pool
from ..reasoning.rules import NEVER, StopRule
from ..reasoning.shadow import Loss, Shadow, is_shadow
from ..reasoning.strategy import Step
from ..reasoning.thought import ChainOfThought
from ..scheduler.events import Drifted, Reasoned
from .asking import Asking, seed_for
from .long_step import LongStep
from .owner import Owner
from .reason_drive import Drive
from .reason_samples import Samples
from .reason_scorer import Scorer
from .sharing import Settled
from .trust import Toolbox

if TYPE_CHECKING:
    from .host import Host


class ReasonWork(LongStep):
    """One reasoning step of one program: its pieces, and how it ends."""

    def __init__(
        self,
        host: "Host",
        owner: Owner,
        path: str,
        asking: Asking,
        chat: list[Message],
        signature: bytes | None,
        done: Settled,
        toolbox: Toolbox,
    ) -> None:
        step = asking.step
        assert step.reasoning is not None
        self._asking = asking
        self._chat = chat
        self._toolbox = toolbox
        self._strategy = step.reasoning.strategy
        self._left_rule = ""
        self._settings: Mapping[str, Any] = json.loads(step.reasoning.settings)
        super().__init__(
            host, owner, path, signature and _with_scorer(signature, step, toolbox), done
        )

    async def _act(self) -> Any:
        """The answer that the strategy decides on."""
        host, owner = self._host, self._owner
        strategy, watch = self._built()
        drive = self._drive(strategy)
        pool = self._pool()
        lent = 0

        def lend(tokens: int) -> int:
            nonlocal lent
            got = pool.lend(tokens) if pool is not None else 0
            lent += got
            return got

        strategy.lend = lend
        owner.thinking.live[self._path] = strategy
        try:
            outcome = await drive.run()
        finally:
            del owner.thinking.live[self._path]
            if pool is not None:
                pool.give(strategy.left_tokens + drive.spare_tokens)
        self._account(drive, outcome, watch, lent)
        if host.observe_thought is not None:
            host.observe_thought(owner.row, strategy, outcome)
        scorer, step = drive.scorer, self._asking.step.id
        failure = drive.failure.removeprefix(f"step {step!r}: ")
        if scorer is not None and scorer.scores == scorer.failures > 0:
            raise StepFailed(f"it never had a reward: {failure}", step)
        if outcome.answer is None:
            why = failure or f"its budget of {strategy.budget_tokens} tokens gave no answer"
            raise StepFailed(why, step)
        return outcome.answer

    def _built(self) -> tuple[Step, "_Watch | None"]:
        """The strategy at its beginning; for a step whose rule is watched, how."""
        host, owner, settings = self._host, self._owner, self._settings
        sampling = self._asking.step.sampling
        seed = sampling.seed
        if seed is None:
            seed = seed_for(host.seed, owner.row, self._path)
        share = float(settings.get("shadow", 0.0))
        watch, rule = None, None
        if self._strategy == "thought":
            asked = rule_of(settings.get("rule", "default"))
            if asked.confidence is not None and not self._asking.model.capabilities.logprobs:
                rule, self._left_rule = NEVER, asked.name  # it could never stop
            elif share:
                watch = _Watch(host, self._asking.step.id, settings)
                rule, self._left_rule = watch.rule, watch.left
        shadow = is_shadow(f"{host.run}/{owner.name}/{self._path}", share)
        suffix = self._suffix()
        tokens = sampling.max_tokens
        made = build(self._strategy, settings, tokens, seed, len(suffix), not shadow, rule)
        return made, watch

    def _drive(self, strategy: Step) -> Drive:
        asking, chat = self._asking, self._chat
        samples = Samples(asking.model.tokenizer, chat)
        drive = Drive(
            self._host, self._owner, self._path, asking, samples, strategy, self._suffix()
        )
        reasoning = asking.step.reasoning
        if reasoning is not None and (reasoning.scorer or reasoning.judge):
            drive.scorer = Scorer(
                self._host,
                self._owner,
                self._path,
                asking.step,
                chat[-1].content,
                self._toolbox,
                drive.ask,
            )
        return drive

    def _suffix(self) -> tuple[int, ...]:
        return tuple(self._asking.model.tokenizer.encode(suffix_of(self._settings)))

    def _pool(self) -> Pool | None:
        """What others left. A step without a budget of its own has none to leave, and lacks none."""
        scope = pool_of(self._settings)
        if scope == "none" or "budget_tokens" not in self._settings:
            return None
        thinking = self._host.thinking if scope == "run" else self._owner.thinking
        return thinking.pool(self._asking.model.pool)

    def _account(
        self, drive: Drive, outcome: Outcome, watch: "_Watch | None", lent_tokens: int
    ) -> None:
        strategy, scorer = drive.strategy, drive.scorer
        kept = _kept(strategy, outcome)
        rule = strategy.rule if isinstance(strategy, ChainOfThought) else None
        self._host.note(
            Reasoned(
                program=self._owner.name,
                step=self._asking.step.id,
                strategy=self._strategy,
                stopped=outcome.stopped,
                samples=len(strategy.branches),
                thought_tokens=outcome.thought_tokens + drive.lost_tokens,
                probe_tokens=outcome.probe_tokens + drive.lost_probe_tokens,
                full_tokens=strategy.full_tokens(),
                certainty=outcome.certainty,
                shadow=kept,
                rule=rule.name if rule is not None else "",
                left_rule=self._left_rule,
                scores=scorer.scores if scorer is not None else 0,
                unscored=scorer.failures if scorer is not None else 0,
                score_tokens=scorer.tokens if scorer is not None else 0,
                lent_tokens=lent_tokens,
                again_tokens=strategy.thought_again_tokens,
                probe_again_tokens=strategy.probe_again_tokens,
            )
        )
        if watch is not None and kept is not None:
            watch.observe(kept)


class _Watch:
    """The monitor of a stop rule, by which shadow runs may replace it, as seen by one program."""

    def __init__(self, host: "Host", step: str, settings: Mapping[str, Any]) -> None:
        asked = rule_of(settings.get("rule", "default"))
        self._host = host
        self._step = step
        self._shadow: Shadow = host.shadows.monitor(step, asked, allowed_of(settings, asked))
        self.rule: StopRule = self._shadow.rule
        self.left = asked.name if self.rule != asked else ""

    def observe(self, kept: bool) -> None:
        """Note a shadow run; a drift is told to those who look at the run."""
        shadow, asked = self._shadow, self._shadow.asked.to_json()
        run = Loss(self._step, asked, shadow.allowed, self.rule.name, float(not kept))
        drift = self._host.shadows.observe(run)
        if drift is not None:
            self._host.note(
                Drifted(
                    step=self._step,
                    left=drift.left.name,
                    rule=drift.rule.name,
                    runs=drift.runs,
                    loss=drift.loss,
                    allowed=drift.allowed,
                )
            )


def _with_scorer(signature: bytes, step: LLM, toolbox: Toolbox) -> bytes:
    """The signature of a step: equal ones have equal scorers."""
    name = step.reasoning.scorer if step.reasoning is not None else None
    tool = toolbox.tools.get(name or "")
    if tool is None:
        return signature
    source = f"{tool.name}\0{tool.source_hash}".encode()
    return blake2b(signature + source, digest_size=16).digest()


def _kept(strategy: Step, outcome: Outcome) -> bool | None:
    """Of a shadow run: whether its rule would have kept the answer; a rule that would not have
    stopped it would have."""
    if not isinstance(strategy, ChainOfThought) or strategy.stop or outcome.answer is None:
        return None
    would = strategy.would_stop
    if would is None or would.answer == outcome.answer:
        return True
    return would.key is not None and would.key == strategy.key(outcome.answer)
