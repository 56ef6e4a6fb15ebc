"""Whatever a model answers, in whatever order: no strategy loses a finished sample, asks for more
than its budget, or leaves a request behind."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.runtime.reasoning.nouns import (
    Ask,
    Cancel,
    Event,
    Failed,
    Finish,
    Outcome,
    Probe,
    Probed,
    Score,
    Scored,
    Think,
    Thought,
)
from tenter.runtime.reasoning.route import Routed
from tenter.runtime.reasoning.rules import StopRule
from tenter.runtime.reasoning.search import Mcts, Rebase, shares
from tenter.runtime.reasoning.strategy import Branch, Step
from tenter.runtime.reasoning.thought import ChainOfThought
from tenter.runtime.reasoning.votes import BestOfN, FirstFinish, SelfConsistency, Vote

ANSWERS = ["1", "2", "1/2", "0.5", "", "wait, no", "\\frac{1", "D"]
MAKERS = {
    "chain": lambda **room: ChainOfThought(**room, rule=StopRule("t", 5, 5, 1.2, 2)),
    "chain-shadow": lambda **room: ChainOfThought(
        **room, rule=StopRule("t", 5, 5, 1.2, 2), stop=False
    ),
    "vote": Vote,
    "certaindex": lambda **room: Vote(**room, threshold=0.5, check_from=2),
    "first-3": lambda **room: FirstFinish(**room, k=3),
    "self-consistency": SelfConsistency,
    "best-of-n": lambda **room: BestOfN(**room, enough=0.9),
    "rebase": lambda **room: Rebase(
        **room, width=4, step_tokens=9, depth=6, certain=0.9, check_from=2
    ),
    "mcts": lambda **room: Mcts(**room, rollouts=20, step_tokens=9, certain=0.9, check_from=2),
    "routed": Routed,
}


class Referee:
    """Performs asks one at a time, in the order that `draw` picks, and keeps the books itself."""

    def __init__(self, draw, budget: int) -> None:
        self.draw, self.budget = draw, budget
        self.open: dict[int, Ask] = {}
        self.ended: set[int] = set()
        self.charged = 0
        self.outcome: Outcome | None = None

    def take(self, asks: tuple[Ask, ...]) -> None:
        for ask in asks:
            assert self.outcome is None, "something was asked for after the end"
            match ask:
                case Cancel(request):
                    del self.open[request]
                case Finish(outcome):
                    self.outcome = outcome
                case Think() | Probe() | Score():
                    assert ask.request not in self.open
                    self.open[ask.request] = ask
                    self.charged += self.price(ask)
        assert self.charged <= self.budget

    def price(self, ask: Ask) -> int:
        match ask:
            case Think():
                assert ask.sample not in self.ended, "a sample that ended was asked to go on"
                return ask.max_tokens
            case Probe():
                return ask.max_tokens + 20
            case _:
                return 0

    def answer(self) -> Event:
        request = self.draw(st.sampled_from(sorted(self.open)))
        ask = self.open.pop(request)
        if self.draw(st.integers(0, 9)) == 0:
            self.charged -= self.price(ask)
            return Failed(request, "no worker")
        match ask:
            case Think():
                return self.thought(ask)
            case Probe():
                used = self.draw(st.integers(1, ask.max_tokens))
                self.charged -= ask.max_tokens - used
                return Probed(request, self.draw(st.sampled_from(ANSWERS)) + "}", used, 20)
            case _:
                return Scored(request, self.draw(st.floats(0, 1)))

    def thought(self, ask: Think) -> Thought:
        ended = self.draw(st.integers(0, 3)) == 0
        used = self.draw(st.integers(1, ask.max_tokens)) if ended else ask.max_tokens
        self.charged -= ask.max_tokens - used
        if not ended:
            return Thought(ask.request, "1. one part\n2. another\n\n", used)
        self.ended.add(ask.sample)
        text = "\\boxed{" + self.draw(st.sampled_from(ANSWERS)) + "}"
        return Thought(ask.request, text, used, ended=True)


def play(step: Step, draw, budget: int) -> Referee:
    referee = Referee(draw, budget)
    referee.take(step.begin())
    for _ in range(2_000):
        if referee.outcome is not None:
            return referee
        assert referee.open, "the strategy waits for nothing"
        referee.take(step.observe(referee.answer()))
    raise AssertionError("the strategy does not end")


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_strategy_keeps_the_promises(name: str, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, 2_000), label="budget")
    limit = data.draw(st.integers(1, 300), label="limit")
    step = MAKERS[name](budget_tokens=budget, limit_tokens=limit)

    referee = play(step, data.draw, budget)

    assert referee.outcome is not None
    assert not referee.open
    assert {sample.sample for sample in referee.outcome.finished} == referee.ended
    assert step.done
    assert step.open_requests == ()
    assert step.observe(Thought(1, "late", 1)) == ()


class Careless(Step):
    """An author's strategy that asks at random and forgets all of it."""

    def start(self) -> None:
        for _ in range(5):
            self.think()

    def heed(self, event: Event, branch: Branch) -> None:
        if isinstance(event, Thought) and event.ended and len(self.finished) == 2:
            self.finish("7", "settled")


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_the_frame_keeps_them_for_an_author_who_does_not(data: st.DataObject) -> None:
    referee = play(Careless(budget_tokens=500, limit_tokens=100), data.draw, 500)

    assert not referee.open
    assert referee.outcome is not None


@given(
    st.lists(st.floats(0, 1), max_size=12),
    st.integers(0, 40),
    st.floats(0.01, 10),
)
def test_shares_sum_to_the_width_and_follow_the_rewards(
    rewards: list[float], width: int, temperature: float
) -> None:
    given_out = shares(rewards, width, temperature)

    assert sum(given_out) == (width if rewards else 0)
    best = max(range(len(rewards)), key=rewards.__getitem__, default=None)
    assert best is None or given_out[best] == max(given_out)


def test_a_grant_lets_a_step_that_ran_short_go_on() -> None:
    step = Vote(budget_tokens=10, limit_tokens=100, n=1)
    (ask,) = step.begin()
    assert isinstance(ask, Think)
    assert ask.max_tokens == 10

    step.grant(50)
    (more,) = step.observe(Thought(ask.request, "", 10))

    assert isinstance(more, Think)
    assert (more.sample, more.max_tokens) == (ask.sample, 50)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Vote(0, 10), "budget_tokens is 0"),
        (lambda: Vote(10, 10, n=0), "n is 0"),
        (lambda: FirstFinish(10, 10, n=2, k=3), "k is 3"),
        (lambda: SelfConsistency(10, 10, first=9), "first 9"),
        (lambda: Rebase(10, 10, temperature=0), "temperature"),
    ],
    ids=["budget", "n", "k", "first", "temperature"],
)
def test_settings_out_of_range_are_refused_by_name(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
