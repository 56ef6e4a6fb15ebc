"""Sub-problems, each thought about briefly or at length by its difficulty (SCALE, 2512.00466).

One sample decomposes the problem; the scorer rates each part's difficulty from the text so far;
easy parts are answered at once, hard ones thought through, each after those before it; the last
turn gives the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .nouns import Event, Failed, Scored, Thought
from .strategy import Branch, Step

DECOMPOSE = "Split the problem into numbered sub-problems, one a line. Do not solve them.\n"
SHORT = "\n\nSub-problem: {part}\nAnswer it directly.\n"
LONG = "\n\nSub-problem: {part}\nThink step by step, check the result.\n"
ANSWER = "\n\nNow give the answer to the whole problem, in \\boxed{}.\n"


def numbered(text: str, most: int = 12) -> list[str]:
    """The sub-problems of a list with numbers or dashes; at most `most` of them."""
    lines = (line.strip() for line in text.splitlines())
    marked = [line for line in lines if line[:1].isdigit() or line[:1] in ("-", "*")]
    return [part for line in marked if (part := line.lstrip("0123456789.)-* ").strip())][:most]


@dataclass(slots=True)
class Routed(Step):
    """Decompose, rate, think each part short or long, answer. The scorer's reward of a part is its
    difficulty: at `hard` and above it is thought through."""

    hard: float = 0.5
    plan_tokens: int = 256
    short_tokens: int = 128
    long_tokens: int = 2_048
    final_tokens: int = 256
    split: Callable[[str], Sequence[str]] = numbered
    routes: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]], init=False)
    _parts: list[str] | None = field(default=None, init=False)
    _last: bool = field(default=False, init=False)

    def start(self) -> None:
        self.think(max_tokens=self.plan_tokens, instruction=DECOMPOSE)

    def heed(self, event: Event, branch: Branch) -> None:
        match event:
            case Scored():
                self._solve(branch, event.reward >= self.hard)
            case Failed() if self._parts and len(self.routes) < len(self._parts):
                self._solve(branch, hard=True)  # unrated counts as hard
            case Thought() if self._last:
                answer = self.extract(event.text)
                self.finish(answer or None, "ended" if event.ended else "limit")
            case Thought():
                self._advance(event, branch)
            case _:
                pass

    def settle(self, stopped: str) -> None:
        """Without its last turn there is no answer: what parts came to answers no more than them."""
        self.finish(None, "failed")

    def foresee(self) -> float:
        """The parts that are left, as long as those so far, and the answer."""
        if self._last:
            return self.final_tokens
        left = 1 if self._parts is None else len(self._parts) - len(self.routes)
        solved = [each.own_tokens for each in self.branches.values() if each.parent is not None]
        usual = sum(solved) / len(solved) if solved else (self.short_tokens + self.long_tokens) / 2
        return left * usual + self.final_tokens

    def full_tokens(self) -> int:
        """It does not stop early."""
        return self.spent_tokens

    def _advance(self, event: Thought, branch: Branch) -> None:
        if self._parts is None:
            self._parts = list(self.split(event.text))
        if len(self.routes) < len(self._parts) and self._room(branch, 1):
            self.score(branch.sample, self._parts[len(self.routes)])
        else:
            self._answer(branch)

    def _solve(self, branch: Branch, hard: bool) -> None:
        part = (self._parts or [""])[len(self.routes)]
        self.routes.append((part, hard))
        tokens, form = (self.long_tokens, LONG) if hard else (self.short_tokens, SHORT)
        room = self._room(branch, tokens)
        if room:
            self._turn(branch, room, form.format(part=part))
        else:
            self._answer(branch)

    def _answer(self, branch: Branch) -> None:
        self._last = True
        self._turn(branch, self.final_tokens, ANSWER)

    def _room(self, branch: Branch, tokens: int) -> int:
        """How many of `tokens` a part may have, so that the answer still finds room."""
        limit = self.limit_tokens - branch.tokens - self.final_tokens
        budget = self.afford(tokens + self.final_tokens) - self.final_tokens
        return max(0, min(tokens, limit, budget))

    def _turn(self, branch: Branch, tokens: int, instruction: str) -> None:
        """A further turn of the same context: a child, since a sample that ended is over."""
        self.think(max_tokens=tokens, parent=branch.sample, instruction=instruction)
