"""The nouns that the scheduler's core keeps, and the frozen view that policies see."""

from dataclasses import dataclass, field

import msgspec

from .events import CallReady
from .placement import Residency


@dataclass(slots=True)
class ProgramState:
    """A program between its arrival and its end."""

    arrival: int  # how many programs came before it
    started: bool = False
    cancelled: bool = False
    calls: set[str] = field(default_factory=set[str])
    sessions: set[str] = field(default_factory=set[str])
    attained_tokens: int = 0  # prompt tokens computed and output tokens of its finished calls
    turns: int = 0  # finished calls of its sessions


class CallState(msgspec.Struct, gc=False):
    """A call between becoming ready and its end. It waits while `worker` is None."""

    ready: CallReady
    sequence: int
    ready_at_s: float
    demand_tokens: int  # KV tokens that it may come to hold of its own
    worker: str | None = None
    aborting: bool = False
    losses: int = 0  # workers that died under it
    breaks: int = 0  # attempts that came to nothing
    promised_tokens: int = 0  # of its session, by a pin that was in force when it was dispatched
    matched_tokens: int = 0  # of its prompt, believed to be held where it runs
    work_tokens: int = 0  # what it adds to its worker's
    home_until_s: float = 0.0  # until then it waits for the worker of its session
    resting: bool = False  # between two attempts
    queued: bool = False  # counted in its model's line


@dataclass(slots=True)
class WorkerState:
    """An engine replica. `kv_reserved` counts what its running calls may come to hold."""

    name: str
    model: str
    max_running: int
    kv_tokens: int
    page_tokens: int = 1
    running: set[str] = field(default_factory=set[str])
    kv_reserved: int = 0
    kv_pinned: int = 0
    prefixes: set[str] = field(default_factory=set[str])  # pinned for the whole run
    computed_tokens: int = 0  # of prompts, since it came up
    prefill_s: float = 0.0  # that they took
    work_tokens: int = 0  # of its running calls (placement)
    holds: Residency = field(init=False)
    foreign: int = 0  # calls of others that it reported last
    foreign_before: int = 0  # and the time before
    crowded: bool = False  # calls wait in its own line, by its last report
    broken: int = 0  # attempts in a row that came to nothing
    suspect_until_s: float | None = None  # it is being probed until then; what runs there goes on
    rest_until_s: float = 0.0  # it asked to be left alone until then
    weighed_s: float = -1.0  # when its pins were last weighed against what waits

    def __post_init__(self) -> None:
        self.holds = Residency(self.kv_tokens)

    @property
    def slots(self) -> int:
        """How many calls of ours it may run beside those of others."""
        return max(1, self.max_running - self.foreign) if self.running else self.max_running

    @property
    def suspect(self) -> bool:
        """Whether it is being probed."""
        return self.suspect_until_s is not None

    def open(self, now_s: float) -> bool:
        """Whether it may be given one more call, memory aside."""
        running = len(self.running)
        if self.suspect_until_s is not None or running >= self.slots or now_s < self.rest_until_s:
            return False
        return not (self.crowded and running)

    def rebuild_s(self, tokens: int) -> float | None:
        """How long computing `tokens` of a prompt takes here; None until it has computed some."""
        if not self.computed_tokens or not self.prefill_s:
            return None
        return tokens * self.prefill_s / self.computed_tokens


@dataclass(slots=True)
class SessionState:
    """A session whose KV lies on `worker`; `retained` while a pin is promised.

    While a tool of its program runs, `tool` is its key and `paused_s` when it began.
    """

    program: str
    worker: str
    tokens: int
    retained: bool = False
    until_s: float | None = None  # when the worker ends the pin by itself
    told: bool = False  # the worker was asked to keep it, and may still do so
    tool: str = ""
    paused_s: float = 0.0
    eta_s: float | None = None  # that the tool gave


@dataclass(slots=True)
class Line:
    """The calls of one model that wait: a heap, and what they would come to hold together."""

    heap: list[tuple[float, int, str]] = field(
        default_factory=list[tuple[float, int, str]]
    )  # (key, sequence, call); some are gone
    calls: int = 0
    tokens: int = 0


class CallView(msgspec.Struct, frozen=True, gc=False):
    """What an order policy may know of a waiting call and its program."""

    program_arrival: int
    program_attained_tokens: int
    sequence: int
    prompt_tokens: int
    max_tokens: int
    ready_at_s: float
