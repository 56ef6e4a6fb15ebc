"""Every strategy, driven over a model that answers concurrently."""

import anyio
import pytest
from driver import Driver, Session

from tenter.runtime.reasoning.nouns import Event, Probe, Probed, Score, Scored, Think, Thought
from tenter.runtime.reasoning.route import Routed
from tenter.runtime.reasoning.rules import StopRule
from tenter.runtime.reasoning.search import Mcts, Rebase
from tenter.runtime.reasoning.strategy import Step
from tenter.runtime.reasoning.thought import ChainOfThought
from tenter.runtime.reasoning.votes import BestOfN, FirstFinish, SelfConsistency, Vote

LENGTHS = (40, 90, 25, 60, 200, 35, 80, 50)
ROOM = {"budget_tokens": 10_000, "limit_tokens": 300}


async def counting(session: Session, ask: Think | Probe | Score) -> Event:
    """A thought of the sample's length that ends in 42; trial answers settle half way."""
    await anyio.lowlevel.checkpoint()
    match ask:
        case Score():
            return Scored(ask.request, (ask.sample % 5) / 5)
        case Probe():
            await anyio.lowlevel.checkpoint()
            at = session.tokens if ask.at_tokens is None else ask.at_tokens
            right = at >= LENGTHS[ask.sample % 8] // 2
            return Probed(ask.request, ("42" if right else str(at)) + "}", 3, 20)
        case Think():
            length = LENGTHS[ask.sample % 8]
            used = max(1, min(ask.max_tokens, length - session.tokens))
            for _ in range(used):
                await anyio.lowlevel.checkpoint()
            session.tokens += used
            ended = session.tokens >= length
            text = "\\boxed{42}" if ended else "1. a part\n2. another\n"
            return Thought(ask.request, text, used, ended)


@pytest.mark.parametrize(
    "step",
    [
        ChainOfThought(**ROOM, rule=StopRule("quick", 8, 8, 1.0, 3)),
        ChainOfThought(**ROOM),
        Vote(**ROOM),
        Vote(**ROOM, threshold=0.7),
        FirstFinish(**ROOM),
        FirstFinish(**ROOM, k=3),
        SelfConsistency(**ROOM),
        BestOfN(**ROOM),
        BestOfN(**ROOM, enough=0.6),
        Rebase(**ROOM, width=4, step_tokens=10, certain=0.85, check_from=2),
        Mcts(**ROOM, rollouts=40, step_tokens=10, certain=0.9, check_from=2),
        Routed(**ROOM),
    ],
    ids=lambda step: type(step).__name__,
)
async def test_each_strategy_answers_and_leaves_nothing_running(step: Step) -> None:
    driver = Driver(counting)

    outcome = await driver.run(step)

    assert outcome.answer == "42"
    assert not driver.running


async def test_a_settled_thought_stops_long_before_its_end() -> None:
    step = ChainOfThought(**ROOM, rule=StopRule("quick", 8, 8, 1.0, 2))

    outcome = await Driver(counting).run(step)

    assert outcome.stopped == "settled"
    assert outcome.thought_tokens == 32  # of 40; the answer stands from 20 on
    assert outcome.probe_tokens == 4 * 23  # at 16, 8, 24 and 32


async def test_first_finish_aborts_the_others() -> None:
    driver = Driver(counting)

    outcome = await driver.run(FirstFinish(**ROOM))

    assert [sample.sample for sample in outcome.finished] == [2]
    assert sum(type(ask).__name__ == "Cancel" for ask in driver.log) == 7


async def test_self_consistency_widens_only_when_nobody_agrees() -> None:
    agreeing = Driver(counting)
    await agreeing.run(SelfConsistency(**ROOM))

    async def quarrelling(session: Session, ask: Think | Probe | Score) -> Event:
        event = await counting(session, ask)
        if isinstance(event, Thought) and event.ended:
            return Thought(ask.request, f"\\boxed{{{ask.sample}}}", event.tokens, True)
        return Probed(ask.request, "7 but wait}", 3, 20) if isinstance(event, Probed) else event

    apart = Driver(quarrelling)
    await apart.run(SelfConsistency(**ROOM))

    assert len(agreeing.sessions) == 4
    assert len(apart.sessions) == 8


async def test_the_door_survives_a_backend_that_fails() -> None:
    async def broken(session: Session, ask: Think | Probe | Score) -> Event:
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("no worker")

    for step in (ChainOfThought(**ROOM), SelfConsistency(**ROOM), Rebase(**ROOM), Mcts(**ROOM)):
        outcome = await Driver(broken).run(step)

        assert (outcome.answer, outcome.stopped) == (None, "failed")
