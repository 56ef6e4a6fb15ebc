"""Stories of a fleet: a few processes with a run each, one Redis and one set of servers for all."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from .stories import AMOUNTS, JOBS, REQUESTS, TOOLS, WORDS, Fault, Story, simpler

HAPPENS = {
    "message lost": "message {at} to Redis is lost",
    "message late": "message {at} to Redis arrives when nobody waits for its answer",
    "message unanswered": "the answer to message {at} to Redis is lost",
    "message cut": "message {at} to Redis arrives, and its connection is cut",
    "message twice": "message {at} to Redis arrives twice",
    "outage": "Redis is gone {at} tenths of a second after the start, for {amount:g} s",
    "stuck": "Redis is frozen {at} tenths of a second after the start, for {amount:g} s",
    "emptied": "Redis is restarted empty {at} tenths of a second after the start",
    "forgets": "Redis is restarted {at} tenths of a second after the start, and loses the last",
}
MESSAGES = tuple(kind for kind in HAPPENS if kind.startswith("message"))
SERVER = tuple(kind for kind in HAPPENS if kind not in MESSAGES)
LASTS_S = {"outage": (0.5, 3.0, 12.0, 40.0), "stuck": (0.5, 4.0, 7.0, 35.0)}
LIFE = ("kill", "kill", "freeze", "freeze", "drain", "abort", "jump")
FREEZES_S = (3.0, 7.0, 20.0, 31.0, 37.0, 44.0, 58.0)
MEMBERS = (2, 2, 2, 3)


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that befalls what is shared: what, when, and for how long."""

    kind: str
    at: int
    amount: float = 0.0

    def __str__(self) -> str:
        return HAPPENS[self.kind].format(at=self.at, amount=self.amount)


@dataclass(frozen=True, slots=True)
class FleetStory:
    """Processes with a job each, told as stories of one; `starts`: tenths of a second."""

    members: tuple[Story, ...] = (Story(), Story())
    starts: tuple[int, ...] = (0, 0)
    happenings: tuple[Happening, ...] = ()
    one_machine: bool = True  # so that a resumed run knows at once that its process has died
    seed: int = field(default=0, compare=False)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What goes wrong with its processes."""
        return tuple(fault for member in self.members for fault in member.faults)

    def __str__(self) -> str:
        place = "one machine" if self.one_machine else "a machine each"
        members = [
            f"process {number}, from {start / 10:g} s: {member}"
            for number, (member, start) in enumerate(zip(self.members, self.starts, strict=True))
        ]
        happenings = [f"  {each}" for each in self.happenings]
        return "\n".join([f"{len(members)} processes on {place}", *members, *happenings])


def fleet_story_of(seed: int) -> FleetStory:
    """The fleet's story of a seed."""
    draw = Random(seed)
    job, size = draw.choice(JOBS), draw.choice(MEMBERS)
    slots, workers = draw.choice((1, 2, 4)), draw.choice((1, 1, 2))
    streams = draw.random() < 0.5
    members = tuple(
        Story(
            job=job if draw.random() < 0.8 else draw.choice(JOBS),
            rows=tuple(draw.choice(WORDS) for _ in range(draw.choice((1, 2, 3, 4)))),
            faults=tuple(sorted(_faults(draw), key=lambda each: (each.life, each.kind, each.at))),
            suffix=draw.choice((".csv", ".jsonl")),
            concurrency=draw.choice((1, 2, 8)),
            workers=workers,
            slots=slots,
            streams=streams,
            order=draw.choice(("fcfs", "fcfs", "least-attained")),
            seed=seed,
        )
        for _ in range(size)
    )
    happenings = tuple(_happening(draw) for _ in range(draw.choice((0, 0, 1, 1, 2, 3))))
    starts = tuple(draw.choice((0, 0, 2, 5, 20, 65)) for _ in range(size))
    return FleetStory(members, starts, happenings, draw.random() < 0.5, seed)


def _faults(draw: Random) -> Iterator[Fault]:
    for _ in range(draw.choice((0, 0, 1, 1, 2))):
        group = draw.choice((LIFE, LIFE, LIFE, REQUESTS, TOOLS))
        kind = draw.choice(group)
        amounts = FREEZES_S if kind == "freeze" else AMOUNTS.get(kind, (0.0,))
        life = min(int(draw.expovariate(1.6)), 2) if group is LIFE else 0
        most = {LIFE: 150, REQUESTS: 8, TOOLS: 4}[group]
        yield Fault(kind, draw.randint(1, most), life, draw.choice(amounts))


def _happening(draw: Random) -> Happening:
    kind = draw.choice(draw.choice((MESSAGES, SERVER)))
    most = 150 if kind in MESSAGES else 60
    return Happening(kind, draw.randint(1, most), draw.choice(LASTS_S.get(kind, (0.0,))))


def simpler_fleet(story: FleetStory) -> Iterator[FleetStory]:
    """The story with one thing less."""
    for place in range(len(story.happenings)):
        rest = story.happenings[:place] + story.happenings[place + 1 :]
        yield replace(story, happenings=rest)
    if len(story.members) > 1:
        for place in range(len(story.members)):
            rest = story.members[:place] + story.members[place + 1 :]
            starts = story.starts[:place] + story.starts[place + 1 :]
            yield replace(story, members=rest, starts=starts)
    for place, member in enumerate(story.members):
        for less in simpler(member):
            if (less.workers, less.slots, less.streams) == (
                member.workers,
                member.slots,
                member.streams,
            ):
                members = (*story.members[:place], less, *story.members[place + 1 :])
                yield replace(story, members=members)
    if any(story.starts):
        yield replace(story, starts=(0,) * len(story.starts))
    if not story.one_machine:
        yield replace(story, one_machine=True)
    for place, each in enumerate(story.happenings):
        milder = [replace(each, at=at) for at in {each.at // 2, each.at - 1} if 0 < at < each.at]
        milder += [replace(each, amount=s) for s in LASTS_S.get(each.kind, ()) if s < each.amount]
        for less in milder:
            rest = story.happenings[place + 1 :]
            yield replace(story, happenings=(*story.happenings[:place], less, *rest))
