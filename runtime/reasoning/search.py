"""Search over the steps of a thought with a scorer: REBASE and Monte Carlo tree search."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .certainty import certaindex, leader, reward_certainty
from .nouns import Event, Failed, Finished, Scored, Thought
from .strategy import Branch, Step


def shares(rewards: Sequence[float], width: int, temperature: float) -> list[int]:
    """How many children each node gets: `width` in all, by the softmax of the rewards.

    REBASE (2408.00724, 3.1): the share is rounded, here by largest remainders so that the sum is
    exact; equals go to the earlier node.
    """
    if not rewards or width < 1:
        return [0] * len(rewards)
    top = max(rewards)
    weights = [math.exp((reward - top) / temperature) for reward in rewards]
    exact = [width * weight / math.fsum(weights) for weight in weights]
    given = [math.floor(part) for part in exact]
    by_rest = sorted(range(len(exact)), key=lambda at: (given[at] - exact[at], at))
    for at in by_rest[: width - sum(given)]:
        given[at] += 1
    return given


@dataclass(slots=True)
class _Search(Step):
    """What both searches share: a step is generated, then scored; answers vote by reward."""

    step_tokens: int = 256
    until: str = "\n\n"
    depth: int = 32
    _last: bool = field(default=False, init=False)  # the best path is thought to its end

    def __post_init__(self) -> None:
        Step.__post_init__(self)
        if self.step_tokens < 1 or self.depth < 1:
            raise ValueError("step_tokens and depth must be 1 or more")

    def settle(self, stopped: str) -> None:
        """The answer with the highest sum of rewards. Where no path has come to an end, the best
        one is thought to its end first."""
        if not self.finished and self._go_on_to_the_end():
            return
        given = [sample.answer for sample in self.finished]
        weights = [max(1e-9, self._reward(sample)) for sample in self.finished]
        found = leader(given, self.equivalence, weights)
        if found is None:
            self.finish(None, "failed")
        else:
            self.finish(found.answer, stopped, found.share)

    def _go_on_to_the_end(self) -> bool:
        scored = [b for b in self.branches.values() if b.reward is not None and not b.ended]
        if self._last or not scored:
            return False
        self._last = True
        best = max(scored, key=lambda branch: (branch.reward or 0.0, branch.tokens))
        return self.think(best.sample) is not None

    def _reward(self, sample: Finished) -> float:
        reward = self.branches[sample.sample].reward
        return 0.0 if reward is None else reward

    def _certain(self) -> float:
        return certaindex([self.key(sample.answer) for sample in self.finished])

    def mean_end(self) -> float:
        """How long a sample typically is."""
        whole = [sample.tokens for sample in self.finished]
        return sum(whole) / len(whole) if whole else float(self.limit_tokens)

    def _grow(self, parent: int | None) -> int | None:
        return self.think(max_tokens=self.step_tokens, parent=parent, until=self.until)


@dataclass(slots=True)
class Rebase(_Search):
    """Tree search by balanced rewards: each round, `width` steps are shared out over the frontier.

    A round ends when all its steps are scored; finished samples leave the frontier and take their
    place in the width with them. Stop when the certaindex of the answers and the highest reward
    both reach their thresholds, from `check_from` answers on (published: .85, .99 from 16).
    """

    width: int = 16
    temperature: float = 0.2
    certain: float | None = None
    enough: float = 0.0
    check_from: int = 16
    _frontier: list[int] = field(default_factory=list[int], init=False)
    _round: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _Search.__post_init__(self)
        if self.width < 1 or self.temperature <= 0:
            raise ValueError("width must be 1 or more, and temperature above 0")

    def start(self) -> None:
        for _ in range(self.width):
            self._grow(None)

    def heed(self, event: Event, branch: Branch) -> None:
        match event:
            case Thought():
                self.score(branch.sample)
            case Scored() if not branch.ended:
                self._frontier.append(branch.sample)
            case Scored():
                self._check()
            case Failed() | _:
                pass
        if not self.done and not self.open_requests and not self._last:
            self._expand()

    def foresee(self) -> float:
        """As many paths as are left of the width, from where the frontier stands to a typical end."""
        heads = self._frontier + [branch.sample for branch in self.thinking()]
        at = [self.branches[head].tokens for head in heads]
        mean = sum(at) / len(at) if at else 0.0
        return (self.width - len(self.finished)) * max(self.step_tokens, self.mean_end() - mean)

    def full_tokens(self) -> int:
        """What as many finished samples as its width would take, at the cost of one so far."""
        if self.stopped != "settled":
            return self.spent_tokens
        return round(self.spent_tokens * max(1.0, self.width / len(self.finished)))

    def _expand(self) -> None:
        self._round += 1
        nodes, self._frontier = self._frontier, []
        if self._round >= self.depth:
            return
        rewards = [self.branches[node].reward or 0.0 for node in nodes]
        width = self.width - len(self.finished)
        for node, count in zip(nodes, shares(rewards, width, self.temperature), strict=True):
            for _ in range(count):
                self._grow(node)

    def _check(self) -> None:
        if self.certain is None or len(self.finished) < self.check_from:
            return
        best = reward_certainty([self._reward(sample) for sample in self.finished], "max")
        if self._certain() >= self.certain and best >= self.enough:
            self.settle("settled")


@dataclass(slots=True)
class _Node:
    """A node of the tree: `children` are samples; `value` sums the rewards backed up through it."""

    parent: int | None
    level: int
    children: list[int] = field(default_factory=list[int])
    visits: int = 0
    value: float = 0.0


@dataclass(slots=True)
class Mcts(_Search):
    """Monte Carlo tree search: select by UCT, expand by a step, value by the scorer, back up.

    One path at a time; `rollouts` of them. A node is fully expanded with `branching` children.
    Stop when the certaindex of the answers and the mean reward reach their thresholds, from
    `check_from` answers on (published for GSM8K: .99, .4 from 3).
    """

    rollouts: int = 32
    branching: int = 3
    exploration: float = math.sqrt(2)
    certain: float | None = None
    enough: float = 0.0
    check_from: int = 3
    _nodes: dict[int, _Node] = field(default_factory=dict[int, _Node], init=False)
    _roots: list[int] = field(default_factory=list[int], init=False)
    _played: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _Search.__post_init__(self)
        if self.rollouts < 1 or self.branching < 1:
            raise ValueError("rollouts and branching must be 1 or more")

    def start(self) -> None:
        self._play()

    def heed(self, event: Event, branch: Branch) -> None:
        match event:
            case Thought():
                self.score(branch.sample)
                return
            case Scored():
                self._back_up(branch.sample, event.reward)
                self._check()
            case _:
                pass
        if not self.done:
            self._play()

    def foresee(self) -> float:
        """The rollouts that are left, at the mean of those so far (Dynasor, 2412.20993, 4)."""
        over = self._played - len(self.thinking())
        each = self.spent_tokens / over if over else self.step_tokens
        return (self.rollouts - over) * each

    def full_tokens(self) -> int:
        """What all rollouts would take."""
        if self.stopped != "settled":
            return self.spent_tokens
        return round(self.spent_tokens * self.rollouts / max(1, self._played))

    def _play(self) -> None:
        if self._played >= self.rollouts or self._last:
            return
        parent = self._select()
        if parent == -1:
            return
        self._played += 1
        child = self._grow(parent)
        if child is None:
            return
        level = 1 if parent is None else self._nodes[parent].level + 1
        self._nodes[child] = _Node(parent, level)
        (self._roots if parent is None else self._nodes[parent].children).append(child)

    def _select(self) -> int | None:
        """The node to expand; None for the root, -1 if the whole tree has been searched."""
        at, children = None, self._roots
        while len(children) >= self.branching:
            open_ones = [child for child in children if self._can_grow(child)]
            if not open_ones:
                return -1
            visits = sum(self._nodes[child].visits for child in children)
            at = max(open_ones, key=lambda child: self._uct(child, visits))
            children = self._nodes[at].children
        return at

    def _can_grow(self, node: int) -> bool:
        """Whether a path through this node can still be lengthened."""
        branch, here = self.branches[node], self._nodes[node]
        if branch.ended or branch.tokens >= self.limit_tokens or here.level >= self.depth:
            return False
        if not here.visits:
            return False  # its step failed or was not scored
        full = len(here.children) >= self.branching
        return not full or any(self._can_grow(child) for child in here.children)

    def _uct(self, node: int, around: int) -> float:
        here = self._nodes[node]
        mean = here.value / max(1, here.visits)
        return mean + self.exploration * math.sqrt(math.log(max(1, around)) / max(1, here.visits))

    def _back_up(self, node: int, reward: float) -> None:
        at: int | None = node
        while at is not None:
            here = self._nodes[at]
            here.visits += 1
            here.value += reward
            at = here.parent

    def _check(self) -> None:
        if self.certain is None or len(self.finished) < self.check_from:
            return
        mean = reward_certainty([self._reward(sample) for sample in self.finished])
        if self._certain() >= self.certain and mean >= self.enough:
            self.settle("settled")
