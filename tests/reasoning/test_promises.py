"""Whatever a model answers, in whatever order: no strategy loses a finished sample, asks for more
than its budget, or leaves a request behind."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.runtime.reasoning.named import STRATEGIES
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
from tenter.runtime.reasoning.pool import Pool
from tenter.runtime.reasoning.route import Routed
from tenter.runtime.reasoning.rules import StopRule
from tenter.runtime.reasoning.search import Mcts, Rebase, shares
from tenter.runtime.reasoning.strategy import Branch, Step
from tenter.runtime.reasoning.thought import ChainOfThought
from tenter.runtime.reasoning.votes import BestOfN, FirstFinish, SelfConsistency, Vote

ANSWERS = ["1", "2", "1/2", "0.5", "", "wait, no", "\\frac{1", "D"]
REWARDS = st.floats(0, 1) | st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e9, 10**400])
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

    def __init__(self, draw, step: Step) -> None:
        self.draw, self.step = draw, step
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
        assert self.charged <= self.budget()

    def budget(self) -> int:
        """What the step may spend: its own, and what it was lent."""
        return self.step.budget_tokens

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
                text = self.draw(st.sampled_from(ANSWERS)) + "}"
                if self.draw(st.integers(0, 9)) == 0:  # more than was asked for: it is not believed
                    self.charged += ask.max_tokens - used
                    used = ask.max_tokens * 7
                return Probed(request, text, used, 20)
            case _:
                return Scored(request, self.draw(REWARDS))

    def thought(self, ask: Think) -> Thought:
        ended = self.draw(st.integers(0, 3)) == 0
        used = self.draw(st.integers(1, ask.max_tokens)) if ended else ask.max_tokens
        self.charged -= ask.max_tokens - used
        if not ended:
            return Thought(ask.request, "1. one part\n2. another\n\n", used)
        self.ended.add(ask.sample)
        text = "\\boxed{" + self.draw(st.sampled_from(ANSWERS)) + "}"
        return Thought(ask.request, text, used, ended=True)


def play(*steps: Step, draw, ended=lambda step: None) -> list[Referee]:
    """All steps to their end, side by side; any of them may be the next that hears something."""
    referees = [Referee(draw, step) for step in steps]
    for step, referee in zip(steps, referees, strict=True):
        referee.take(step.begin())
    for _ in range(2_000 * len(steps)):
        live = [referee for referee in referees if referee.outcome is None]
        if not live:
            return referees
        referee = live[0] if len(live) == 1 else draw(st.sampled_from(live))
        assert referee.open, "the strategy waits for nothing"
        step, forecast = referee.step, referee.step.forecast_tokens()
        assert 0 <= forecast <= step.budget_tokens
        referee.take(step.observe(referee.answer()))
        if referee.outcome is not None:
            assert step.forecast_tokens() == 0
            assert step.full_tokens() >= 0
            ended(step)
    raise AssertionError("the strategies do not end")


def test_every_strategy_that_a_step_may_name_has_promises_to_keep() -> None:
    made = {type(make(budget_tokens=100, limit_tokens=50)) for make in MAKERS.values()}
    assert made == set(STRATEGIES.values())


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_strategy_keeps_the_promises(name: str, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, 2_000), label="budget")
    limit = data.draw(st.integers(1, 300), label="limit")
    step = MAKERS[name](budget_tokens=budget, limit_tokens=limit)

    (referee,) = play(step, draw=data.draw)

    assert referee.outcome is not None
    assert not referee.open
    assert {sample.sample for sample in referee.outcome.finished} == referee.ended
    assert step.done
    assert step.open_requests == ()
    assert step.observe(Thought(1, "late", 1)) == ()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_steps_that_share_a_pool_spend_no_more_than_their_budgets(data: st.DataObject) -> None:
    pool, names = Pool(), data.draw(st.lists(st.sampled_from(list(MAKERS)), min_size=2, max_size=4))
    budgets = [data.draw(st.integers(1, 800)) for _ in names]
    steps = [
        MAKERS[name](budget_tokens=budget, limit_tokens=data.draw(st.integers(1, 300)))
        for name, budget in zip(names, budgets, strict=True)
    ]
    for step in steps:
        step.lend = pool.lend

    referees = play(*steps, draw=data.draw, ended=lambda step: pool.give(step.left_tokens))

    assert sum(referee.charged for referee in referees) + pool.tokens <= sum(budgets)
    for referee in referees:
        assert referee.outcome is not None
        assert {sample.sample for sample in referee.outcome.finished} == referee.ended


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
    (referee,) = play(Careless(budget_tokens=500, limit_tokens=100), draw=data.draw)

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
    if rewards:
        weights = [(reward - max(rewards)) / temperature for reward in rewards]
        best = [count for count, weight in zip(given_out, weights, strict=True) if weight > -1e-9]
        assert max(best) == max(given_out)


def test_a_grant_lets_a_step_that_ran_short_go_on() -> None:
    step = Vote(budget_tokens=10, limit_tokens=100, n=1)
    (ask,) = step.begin()
    assert isinstance(ask, Think)
    assert ask.max_tokens == 10

    step.grant(50)
    (more,) = step.observe(Thought(ask.request, "", 10))

    assert isinstance(more, Think)
    assert (more.sample, more.max_tokens) == (ask.sample, 50)


def test_a_pool_lends_what_was_given_to_who_runs_short() -> None:
    pool = Pool()
    easy, hard = FirstFinish(100, 100, n=1), Vote(30, 100, n=1)
    easy.lend = hard.lend = pool.lend
    (ask,) = easy.begin()
    easy.observe(Thought(ask.request, "\\boxed{1}", 40, ended=True))
    pool.give(easy.left_tokens)
    (ask,) = hard.begin()
    assert isinstance(ask, Think)
    assert (ask.max_tokens, pool.tokens) == (30, 60)

    (more,) = hard.observe(Thought(ask.request, "so", 30))

    assert isinstance(more, Think)
    assert (more.max_tokens, pool.tokens) == (60, 0)


def test_a_thought_borrows_only_as_far_as_it_next_asks_for_its_answer() -> None:
    pool = Pool(10_000)
    step = ChainOfThought(100, 1_000, rule=StopRule("t", 80, 10, 1.5, 2))
    step.lend = pool.lend

    (ask,) = step.begin()

    assert isinstance(ask, Think)
    assert ask.max_tokens == 120  # where two probes could first agree
    assert pool.tokens == 10_000 - (120 + 32 + 20 - 100)


def test_the_closer_a_thought_is_to_certain_the_less_it_is_expected_to_take() -> None:
    step = ChainOfThought(10_000, 8_000, rule=StopRule("t", 100, 10, 1.5, 3, lazy=False))
    (ask,) = step.begin()
    unknown = step.forecast_tokens()
    (ask,) = step.observe(Thought(ask.request, "hm", 100))
    (ask,) = step.observe(Probed(ask.request, "4}", 4, 20))
    (ask,) = step.observe(Thought(ask.request, "hm", 50))
    (ask,) = step.observe(Probed(ask.request, "4}", 4, 20))
    sure = step.forecast_tokens()
    (ask,) = step.observe(Thought(ask.request, "hm", 80))
    step.observe(Probed(ask.request, "5}", 4, 20))

    assert sure < unknown < step.forecast_tokens()


def test_a_search_expects_as_many_rollouts_as_are_left_at_their_mean() -> None:
    step = Mcts(10_000, 1_000, rollouts=5, step_tokens=50)
    (ask,) = step.begin()
    (ask,) = step.observe(Thought(ask.request, "so", 30))
    step.observe(Scored(ask.request, 0.5))

    assert step.forecast_tokens() == 4 * 30


def test_a_search_in_which_no_path_came_to_its_end_thinks_the_best_one_on() -> None:
    step = Mcts(1_000, 500, rollouts=2, step_tokens=50, depth=1, branching=2)
    (ask,) = step.begin()
    for reward in (0.2, 0.7):
        (ask,) = step.observe(Thought(ask.request, "so", 50, at_stop=True))
        (ask,) = step.observe(Scored(ask.request, reward))

    assert isinstance(ask, Think)
    assert (ask.sample, ask.until, ask.max_tokens) == (1, "", 450)
    (ask,) = step.observe(Thought(ask.request, "\\boxed{4}", 20, ended=True))
    (ask,) = step.observe(Scored(ask.request, 0.9))
    assert isinstance(ask, Finish)
    assert ask.outcome.answer == "4"


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
