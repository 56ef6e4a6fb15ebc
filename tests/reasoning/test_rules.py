"""When a rule stops, where it probes, and that it is stored and read back."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.reasoning.answers import math_value
from tenter.runtime.reasoning.nouns import Finish, Probe, Probed, Think, Thought
from tenter.runtime.reasoning.recorded import Recorded, RecordedTrial, replay
from tenter.runtime.reasoning.rules import (
    DEFAULT,
    LADDER,
    NEVER,
    StopRule,
    Trial,
    Vouch,
    deer,
    dynasor,
)
from tenter.runtime.reasoning.thought import ChainOfThought

RULE = StopRule("r", 100, 10, 1.5, agree=3, cap=1.0)


def trials(*texts: str, confidence: float | None = None) -> list[Trial]:
    return [Trial(at, text, math_value(text), confidence) for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("texts", "stops"),
    [
        (["7", "7", "7"], True),
        (["7", "7"], False),
        (["7", "8", "7", "7"], False),
        (["8", "7", "7", "7"], True),
        (["7", "7", "D", "7"], True),
        (["7", "7", "7", "wait"], False),
        (["1/2", "0.5", r"\frac12"], True),
    ],
    ids=["agree", "few", "broken", "mended", "no answer between", "no answer last", "spellings"],
)
def test_a_rule_stops_when_the_answer_has_stood(texts: list[str], stops: bool) -> None:
    assert (RULE.settled(trials(*texts)) is not None) is stops


def test_a_strict_rule_counts_what_is_no_answer_as_disagreement() -> None:
    assert replace(RULE, strict=True).settled(trials("7", "7", "D", "7")) is None


def test_a_share_below_one_forgives() -> None:
    assert replace(RULE, share=0.6).settled(trials("7", "8", "7")) is not None


def test_confidence_is_asked_for_and_never_assumed() -> None:
    rule = deer(0.9)

    assert rule.settled(trials("7", confidence=0.95)) is not None
    assert rule.settled(trials("7", confidence=0.5)) is None
    assert rule.settled(trials("7")) is None


def test_probes_spread_out_as_the_thought_grows() -> None:
    places = [0]
    while places[-1] < 1_000:
        places.append(RULE.next_probe(places[-1]))

    assert places == [0, 100, 150, 220, 330, 500, 750, 1_120]
    assert dynasor(5, 64).next_probe(640) == 704


def test_full_length_neither_stops_nor_cuts() -> None:
    assert NEVER.settled(trials(*["7"] * 50)) is None
    assert NEVER.cap_tokens(1_000) == 1_000


@given(
    st.integers(1, 9_999), st.integers(1, 512), st.floats(1, 3), st.integers(0, 9), st.booleans()
)
def test_rules_survive_json(start: int, step: int, ratio: float, agree: int, strict: bool) -> None:
    vouch = Vouch("ltt", "labels", 0.02, 0.9, 300, -0.001, 0.015, 0.12)
    rule = StopRule("mine", start, step, ratio, agree, strict=strict, vouch=vouch)

    assert StopRule.from_json(rule.to_json()) == rule


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"agreee": 3}, "no 'agreee'"),
        ({"agree": "3"}, "agree is '3'"),
        ({"agree": True}, "agree is True"),
        ({"ratio": 0.5}, "ratio is 0.5"),
        ({"cap": float("nan")}, "cap is nan"),
        ({"vouch": {"method": "ltt"}}, "vouch lacks"),
        ({"vouch": 3}, "vouch must be"),
    ],
    ids=["version", "unknown", "kind", "bool", "range", "nan", "short vouch", "vouch"],
)
def test_a_stored_rule_that_is_wrong_is_refused_by_name(change: dict, said: str) -> None:
    raw = {**json.loads(DEFAULT.to_json()), **change}

    with pytest.raises(ValueError, match=said):
        StopRule.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000], ids=["empty", "list", "cut", "deep"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="stop rule must be"):
        StopRule.from_json(text)


def record(tokens: int, settles: int, *, ended: bool = True) -> Recorded:
    told = tuple(
        RecordedTrial(at, "7" if at >= settles else str(at), 4) for at in range(64, tokens, 64)
    )
    return Recorded("p", tokens, "7" if ended else "", ended, told)


def test_a_replay_counts_thought_probes_and_suffixes() -> None:
    done = replay(DEFAULT, record(9_000, 1_500), limit_tokens=16_384)

    assert (done.answer, done.stopped, done.probes) == ("7", "settled", 6)
    assert done.tokens == done.sequential_tokens + 6 * 20
    assert done.tokens < 4_000


def test_a_thought_that_its_limit_cuts_answers_with_its_last_trial() -> None:
    done = replay(NEVER, record(1_000, 900, ended=False), limit_tokens=1_000)

    assert (done.answer, done.stopped, done.tokens) == ("7", "limit", 1_024)


def test_a_short_thought_costs_what_it_cost() -> None:
    done = replay(DEFAULT, record(1_000, 100), limit_tokens=16_384)

    assert (done.stopped, done.tokens, done.probes) == ("ended", 1_000, 0)


def test_the_ladder_goes_from_careful_to_bold() -> None:
    thought = record(15_000, 700)
    tokens = [replay(rule, thought, limit_tokens=16_384).tokens for rule in LADDER]

    assert tokens == sorted(tokens, reverse=True)
    assert len({rule.name for rule in LADDER}) == len(LADDER)
    assert DEFAULT in LADDER


def shadow_run(rule: StopRule, thought: Recorded) -> ChainOfThought:
    step = ChainOfThought(1 << 30, 1_000, extract=str, rule=rule, stop=False)
    asks, position = step.begin(), 0
    while not isinstance(ask := asks[0], Finish):
        if isinstance(ask, Think):
            used = min(ask.max_tokens, thought.tokens - position)
            position += used
            ended = position == thought.tokens
            asks = step.observe(Thought(ask.request, thought.answer if ended else "", used, ended))
        else:
            assert isinstance(ask, Probe)
            told = thought.at(ask.at_tokens or position)
            assert told is not None
            asks = step.observe(Probed(ask.request, told.text, told.tokens, 20))
    return step


@pytest.mark.parametrize(("settles", "at"), [(64, 192), (2_000, 500)], ids=["settled", "cut"])
def test_a_shadow_run_thinks_to_its_end_and_notes_where_it_would_have_stopped(
    settles: int, at: int
) -> None:
    step = shadow_run(StopRule("r", 64, 64, 1.0, 3, cap=0.5), record(900, settles))

    assert [sample.answer for sample in step.finished] == ["7"]
    assert step.would_stop is not None
    assert step.would_stop.at_tokens == at


@given(st.lists(st.sampled_from("1122D"), min_size=40, max_size=40), st.integers(1, 6))
def test_probing_backwards_decides_as_probing_all_does_for_fewer_tokens(
    texts: list[str], agree: int
) -> None:
    told = tuple(RecordedTrial(64 * at, text, 4) for at, text in enumerate(texts, 1))
    thought = Recorded("p", 2_620, "9", True, told)
    lazy = StopRule("r", 128, 64, 1.15, agree, cap=1.0)

    one = replay(lazy, thought, limit_tokens=4_096)
    other = replay(replace(lazy, lazy=False), thought, limit_tokens=4_096)

    assert (one.answer, one.stopped) == (other.answer, other.stopped)
    assert one.probes <= other.probes
    assert one.tokens <= other.tokens
