"""The generated data: same seed same data, true answers, evaluation questions kept apart."""

import json
import random
import re

import pytest

pytest.importorskip("torch")

from tinymodel import arithmetic
from tinymodel.mix import CLOSED_JOBS, JOBS, draw, draw_dressed, full_text
from tinymodel.scoring import final_answer, tool_result
from tinymodel.tickets import DEFAULT_TOPICS

OPEN_JOBS = sorted(set(JOBS) - CLOSED_JOBS)
STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


def test_a_seed_fixes_the_data() -> None:
    first, second, other = (random.Random(seed) for seed in (5, 5, 6))
    drawn = [[full_text(draw_dressed(r, 512)) for _ in range(50)] for r in (first, second, other)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize("job", sorted(JOBS))
def test_the_last_turn_ends_with_the_answer(job: str) -> None:
    r = random.Random(1)
    for _ in range(50):
        sample = draw(r, job)
        assert final_answer(sample.turns[-1].text) == sample.answer
        assert sample.turns[-1].spans[-1].learned


@pytest.mark.parametrize("job", OPEN_JOBS)
def test_training_and_evaluation_share_no_question(job: str) -> None:
    r = random.Random(2)
    trained = {draw(r, job).key for _ in range(300)}
    evaluated = {draw(r, job, held_out=True).key for _ in range(100)}
    assert not trained & evaluated


@pytest.mark.parametrize("job", ["arithmetic", "multiply", "word"])
def test_every_learned_step_is_true(job: str) -> None:
    r = random.Random(3)
    for _ in range(100):
        learned = "".join(span.text for span in draw(r, job).turns[-1].spans if span.learned)
        for a, op, b, result in STEP.findall(learned):
            assert arithmetic.apply(int(a), op, int(b)) == int(result)


def test_sums_are_recomputed() -> None:
    r = random.Random(4)
    for job in ("arithmetic", "reason"):
        for _ in range(100):
            sample = draw(r, job)
            total = sum(int(n) for n in re.findall(r"[-+]?\d+", sample.key.replace(" ", "")))
            assert sample.answer == str(total)


def test_verdicts_are_recomputed() -> None:
    r = random.Random(5)
    for _ in range(100):
        sample = draw(r, "verify")
        left, claim = sample.key.replace(" ", "").split("=")
        total = sum(int(n) for n in re.findall(r"[-+]?\d+", left))
        assert sample.answer == ("yes" if total == int(claim) else "no")


def test_slips_are_never_learned() -> None:
    r = random.Random(6)
    slips = 0
    for _ in range(300):
        for before, number in zip(
            (spans := draw(r, "reason").turns[-1].spans), spans[1:], strict=False
        ):
            step = re.fullmatch(r"(\d+)([-+])(\d+)=", before.text)
            if step and arithmetic.apply(int(step[1]), step[2], int(step[3])) != int(number.text):
                slips += 1
                assert not number.learned
    assert slips > 20


def test_agents_get_the_facts_that_their_answer_needs() -> None:
    r = random.Random(7)
    for _ in range(100):
        sample = draw(r, "agent_total")
        for turn, following in zip(sample.turns, sample.turns[1:], strict=False):
            call = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", turn.text)
            if call and "rror" not in following.text:
                assert tool_result(sample, call[1]) == following.text


def test_arithmetic_tools_compute_what_no_fact_covers() -> None:
    sample = draw(random.Random(8), "agent_steps")
    call = json.dumps({"name": "calculator", "arguments": {"expression": "2*3+4"}})
    assert tool_result(sample, call) == "10"
    assert tool_result(sample, '{"name": "x", "arguments": {"q": "__import__"}}').startswith(
        "error"
    )


def test_extracted_values_stand_in_the_text() -> None:
    r = random.Random(9)
    for _ in range(100):
        sample = draw(r, "extract")
        for value in json.loads(sample.answer).values():
            assert value is None or str(value) in sample.turns[0].text


def test_replies_repeat_the_policy() -> None:
    r = random.Random(10)
    for _ in range(100):
        sample = draw(r, "reply")
        written = json.loads(sample.answer)
        assert set(written) == {"subject", "body"}
        policy = written["body"].split("thank you for your message. ")[1].split(" Kind regards")[0]
        assert policy in sample.turns[0].text


def test_the_usual_routing_question_knows_five_labels() -> None:
    r = random.Random(11)
    usual = "Which team handles this ticket?\n\n"
    answers = {
        s.answer
        for s in (draw(r, "route") for _ in range(600))
        if s.turns[0].text.startswith(usual)
    }
    assert answers == {*DEFAULT_TOPICS, "other"}
