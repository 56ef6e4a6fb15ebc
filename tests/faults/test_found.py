"""Stories that broke a rule once, cut down; each is a bug that was mended."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.fleet_stories import FleetStory
from faults.runs import AnyStory, tell_any
from faults.stories import Fault, Story

FOUND: dict[str, tuple[AnyStory, ...]] = {
    "the disk is full when the name of a new journal is to last": (
        Story(faults=(Fault("full", 6),)),
    ),
    "a process that was taken over gives the other's half output its name": tuple(
        Story(faults=(Fault("freeze", turn, amount=35.0),)) for turn in (16, 18, 20)
    ),
    "a call waits for another attempt when the budget is spent, and the drain waits for it": (
        Story(
            job="chatting",
            rows=("ash", "elm", "birch", "cedar"),
            faults=(Fault("lost answer", 1),),
            limit="budget",
        ),
    ),
    "the journal fails in a resumed run while equal work is joined": (
        Story(
            job="noted",
            rows=("ash", "elm", "cedar", "elm", "birch", "cedar"),
            faults=(Fault("power", 25), Fault("broken after", 22, 1)),
            concurrency=2,
            seed=21009,
        ),
    ),
    "an answer's last piece comes twice": (
        Story(job="chatting", rows=("cedar", "elm"), faults=(Fault("twice", 3),)),
    ),
    "a process is to freeze again while another has its run": (
        Story(
            job="racing",
            rows=("ash",),
            faults=(Fault("freeze", 2, amount=5.0), Fault("freeze", 37, amount=5.0)),
            seed=34610,
        ),
        Story(
            job="chain",
            rows=("ash", "cedar"),
            faults=(
                Fault("abort", 16),
                Fault("freeze", 28, amount=5.0),
                Fault("freeze", 28, amount=5.0),
            ),
            concurrency=1,
            workers=1,
            seed=6665,
        ),
    ),
    "a process is frozen when it has recorded that its run is paused": (
        Story(
            job="racing",
            rows=("ash",),
            faults=(Fault("abort", 22), Fault("freeze", 33, amount=53.0)),
            workers=1,
            seed=70518,
        ),
    ),
    "an answer that breaks off does not tell what it took of the tokens per minute": (
        Story(
            job="chatting",
            rows=("elm", "elm", "birch"),
            faults=(Fault("denied", 14), Fault("truncated", 4)),
            workers=1,
            limit="tokens",
            seed=57219,
        ),
    ),
    "a process is frozen while it has the journal's lock": (
        Story(
            job="chain",
            rows=("birch", "birch", "cedar"),
            faults=(
                Fault("broken after", 16),
                Fault("freeze", 14, amount=38.0),
                Fault("truncated", 4),
            ),
            workers=1,
            seed=48750,
        ),
    ),
    "a process ends before its last result is stored, and another does that work again": (
        FleetStory(),
    ),
    "a turn of a chat is no Unicode, where a result cache is in use": (
        FleetStory((Story(job="chatting", faults=(Fault("garbage", 1),)),), (0,)),
    ),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str, tmp_path: Path) -> None:
    for story in FOUND[name]:
        verdict = tell_any(story, tmp_path, log=True)
        assert verdict.rule is None, "\n".join((str(story), verdict.detail, *verdict.log))
        assert verdict.fired or not story.faults, (
            "the story has changed: what went wrong in it does not any more"
        )
