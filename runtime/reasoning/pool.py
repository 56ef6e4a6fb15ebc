"""What settled steps left of their budgets, for steps that run short (Dynasor, 2412.20993, 4)."""

from dataclasses import dataclass, field

from .strategy import Step


@dataclass(slots=True)
class Pool:
    """Tokens that nobody needs any more: no more is lent than was given.

    The first step that runs short is the first that is served, and gets what it asks for or what
    there is. What it does not use of that it gives back with its own when it settles.
    """

    tokens: int = 0

    def give(self, tokens: int) -> None:
        """Take in what a settled step has not used."""
        self.tokens += max(0, tokens)

    def lend(self, tokens: int) -> int:
        """Up to `tokens` for a step that runs short; how many it gets."""
        lent = max(0, min(tokens, self.tokens))
        self.tokens -= lent
        return lent


@dataclass(slots=True)
class Thinking:
    """What the reasoning steps of a program, or of a run, have in common.

    `live` are the steps that think, by their place; `pools` what others left, by model.
    """

    live: dict[str, Step] = field(default_factory=dict[str, Step])
    pools: dict[str, Pool] = field(default_factory=dict[str, Pool])

    def pool(self, model: str) -> Pool:
        """The pool of a model: its tokens are not worth another's."""
        return self.pools.setdefault(model, Pool())

    def forecast_tokens(self) -> int:
        """About how many tokens the steps that think will still decode."""
        return sum(step.forecast_tokens() for step in self.live.values())
