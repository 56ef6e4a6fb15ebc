"""Stories: what one seed of the campaign does. Plain data, so that a story can be cut down and kept.

A job has lives: each ends with the job or with a fault, and the next one resumes it. `life` counts
them from 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

MOST_ROWS = 6
LIVES = 4  # that faults may fall into
WORDS = ("ash", "birch", "cedar", "elm")
JOBS = ("chain", "paid", "noted", "fan", "chosen", "long", "formed", "racing", "chatting")

# What can go wrong, and what of `at` and `amount` it needs.
KINDS = {
    "kill": "life {life}: the process is killed before callback {amount:g} of turn {at}",
    "power": "life {life}: the power fails before callback {amount:g} of turn {at}",
    "freeze": "life {life}: the process is frozen at turn {at} for {amount:g} s; another takes over",
    "jump": "life {life}: at turn {at} the clock has gone on by {amount:g} s",
    "drain": "life {life}: at turn {at} the job is asked to drain",
    "abort": "life {life}: at turn {at} the job is asked to abort",
    "kill before": "life {life}: the process is killed before operation {at} of the disk",
    "kill after": "life {life}: the process is killed after operation {at} of the disk",
    "power before": "life {life}: the power fails before operation {at} of the disk",
    "power after": "life {life}: the power fails after operation {at} of the disk",
    "full": "life {life}: the disk is full at its operation {at}",
    "broken": "life {life}: the disk fails at its operation {at}",
    "denied": "life {life}: the disk is read-only at its operation {at}",
    "broken after": "life {life}: operation {at} of the disk is done and reported as failed",
    "hang": "life {life}: operation {at} of the disk takes {amount:g} s",
    "death": "life {life}: worker {at} dies at {amount:g} s for a while",
    "end": "life {life}: worker {at} dies at {amount:g} s for good",
    "slow": "request {at}: its answer takes {amount:g} s",
    "lost request": "request {at}: it never arrives",
    "lost answer": "request {at}: its answer never arrives",
    "cut": "request {at}: its answer is cut off, and said to be",
    "truncated": "request {at}: its answer ends without a finish",
    "short": "request {at}: half an answer, called whole",
    "garbage": "request {at}: garbage for an answer",
    "wrong abort": "request {at}: aborted, and nobody asked for it",
    "wrong error": "request {at}: an error for an answer",
    "no usage": "request {at}: an answer without usage",
    "twice": "request {at}: the last piece of its answer comes twice",
    "refused": "request {at}: refused for good",
    "busy": "request {at}: too busy, come back in {amount:g} s",
    "gone": "request {at}: connection refused",
    "bug": "request {at}: the client raises an error of its own",
    "odd scores": "request {at}: choices scored with too few or odd numbers",
    "tool fails": "tool use {at}: it raises",
    "tool hangs": "tool use {at}: it never ends",
}
LIVELY = tuple(kind for kind, text in KINDS.items() if text.startswith("life"))
DISK = (
    "kill before",
    "kill after",
    "power before",
    "power after",
    "full",
    "broken",
    "denied",
    "broken after",
    "hang",
)
TURNS = ("kill", "power", "freeze", "jump", "drain", "abort")
WORKERS = ("death", "end")
REQUESTS = tuple(kind for kind, text in KINDS.items() if text.startswith("request"))
TOOLS = ("tool fails", "tool hangs")
AMOUNTS: dict[str, tuple[float, ...]] = {
    "kill": (0, 1, 2, 3, 5, 8),
    "power": (0, 1, 2, 3, 5, 8),
    "freeze": (5.0, 29.0, *(float(seconds) for seconds in range(31, 61))),
    "jump": (0.5, 61.0, 3600.0, 90_000.0),
    "hang": (0.7, 20.0),
    "death": (0.0, 0.1, 0.3, 0.9),
    "end": (0.0, 0.3),
    "slow": (1.5, 7.0),
    "busy": (0.5, 61.0),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: what, when (see KINDS), and how much."""

    kind: str
    at: int
    life: int = 0
    amount: float = 0.0

    def __str__(self) -> str:
        return KINDS[self.kind].format(life=self.life, at=self.at, amount=self.amount)


@dataclass(frozen=True, slots=True)
class Story:
    """A job and what goes wrong around it. `rows` are the texts of its rows, equal ones perhaps."""

    job: str = "chain"
    rows: tuple[str, ...] = ("ash",)
    faults: tuple[Fault, ...] = ()
    suffix: str = ".csv"
    concurrency: int = 8
    workers: int = 1
    slots: int = 4  # calls that a worker takes at once
    streams: bool = False  # whether a worker goes on with half an answer
    disk_s: float = 0.001  # that a job of the journal's thread takes
    order: str = "fcfs"
    limit: str = ""  # what is limited, see `world.LIMITS`
    seed: int = field(default=0, compare=False)  # of what no story tells, such as torn bytes

    def __str__(self) -> str:
        job = f"job {self.job!r}, rows {', '.join(self.rows)}, output {self.suffix}"
        rest = (
            f"{self.concurrency} programs at once, {self.workers} workers with {self.slots} slots"
        )
        more = [f"order {self.order}"] if self.order != "fcfs" else []
        more += [f"limit {self.limit}"] if self.limit else []
        more += ["workers go on with half an answer"] if self.streams else []
        more += [f"a disk that takes {self.disk_s:g} s"] if self.disk_s > 0.001 else []
        faults = [f"  {fault}" for fault in self.faults] or ["  nothing goes wrong"]
        return "\n".join([f"{job}; {'; '.join([rest, *more])}", *faults])


def story_of(seed: int) -> Story:
    """The story of a seed."""
    draw = Random(seed)
    faults = [_fault(draw) for _ in range(draw.choice((1, 1, 2, 2, 3, 4, 6)))]
    return Story(
        job=draw.choice(JOBS),
        rows=tuple(draw.choice(WORDS) for _ in range(draw.choice((1, 1, 2, 2, 3, 4, MOST_ROWS)))),
        faults=tuple(sorted(faults, key=lambda fault: (fault.life, fault.kind, fault.at))),
        suffix=draw.choice((".csv", ".jsonl")),
        concurrency=draw.choice((1, 2, 8)),
        workers=draw.choice((1, 1, 2)),
        slots=draw.choice((1, 2, 4)),
        streams=draw.random() < 0.5,
        disk_s=draw.choice((0.001, 0.001, 0.3)),
        order=draw.choice(("fcfs", "fcfs", "least-attained", "deadline", "fair")),
        limit=draw.choice(("", "", "", "running", "tokens", "tenants", "budget")),
        seed=seed,
    )


def _fault(draw: Random) -> Fault:
    group = draw.choice(
        (TURNS, TURNS[:2], DISK, DISK, DISK[:4], WORKERS, REQUESTS, REQUESTS, TOOLS)
    )
    kind = draw.choice(group)
    amount = draw.choice(AMOUNTS.get(kind, (0.0,)))
    life = min(int(draw.expovariate(1.2)), LIVES - 1) if kind in LIVELY else 0
    if group is WORKERS:
        return Fault(kind, draw.randrange(2), life, amount)
    most = {TURNS: 60, TURNS[:2]: 60, DISK: 40, DISK[:4]: 40, REQUESTS: 14, TOOLS: 6}[group]
    return Fault(kind, draw.randint(1, most), life, amount)


def simpler(story: Story) -> Iterator[Story]:
    """The story with one thing less, the largest cuts first."""
    half = len(story.faults) // 2
    if half > 1:
        yield replace(story, faults=story.faults[:half])
        yield replace(story, faults=story.faults[half:])
    for place in range(len(story.faults)):
        yield replace(story, faults=story.faults[:place] + story.faults[place + 1 :])
    if len(story.rows) > 1:
        yield replace(story, rows=story.rows[: len(story.rows) // 2])
        for place in range(len(story.rows)):
            yield replace(story, rows=story.rows[:place] + story.rows[place + 1 :])
    plain = Story()
    for name in (
        "workers",
        "limit",
        "order",
        "streams",
        "disk_s",
        "suffix",
        "concurrency",
        "slots",
    ):
        if getattr(story, name) != getattr(plain, name):
            yield replace(story, **{name: getattr(plain, name)})
    if story.job != plain.job:
        yield replace(story, job=plain.job)
    yield from (
        replace(story, faults=_with(story, place, fault)) for place, fault in _milder(story)
    )


def _milder(story: Story) -> Iterator[tuple[int, Fault]]:
    for place, fault in enumerate(story.faults):
        if fault.life:
            yield place, replace(fault, life=fault.life - 1)
        smallest = AMOUNTS.get(fault.kind, (0.0,))[0]
        if fault.amount != smallest:
            yield place, replace(fault, amount=smallest)
        for at in {fault.at // 2, fault.at - 1}:
            if 0 < at < fault.at:
                yield place, replace(fault, at=at)


def _with(story: Story, place: int, fault: Fault) -> tuple[Fault, ...]:
    return (*story.faults[:place], fault, *story.faults[place + 1 :])
