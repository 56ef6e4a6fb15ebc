"""The nouns that the scheduler's core keeps, and the frozen view that policies see."""

from dataclasses import dataclass, field
from math import inf

import msgspec

from .events import CallReady
from .placement import Residency

PROBED = 0.5  # so many calls more at once may a worker get, per answer, that has turned some away
REST_GROWTH = 1 / 8  # of the time since it answers none: how long it is left alone


@dataclass(slots=True)
class ProgramState:
    """A program between its arrival and its end."""

    arrival: int  # how many programs came before it
    arrived_s: float = 0.0
    tenant: str = ""
    weight: float = 1.0  # of its tenant
    priority: int = 0
    deadline_s: float | None = None
    expected_tokens: float | None = None  # work in all, as predicted
    started: bool = False
    cancelled: bool = False
    calls: set[str] = field(default_factory=set[str])
    sessions: set[str] = field(default_factory=set[str])
    attained_tokens: int = 0  # prompt tokens computed and output tokens of its finished calls
    path_tokens: float = 0.0  # work of the longest chain of its finished calls
    finish: float = 0.0  # when its work would be done in the virtual time of its tenant
    waited_s: float = 0.0
    served_s: float = 0.0
    turns: int = 0  # finished calls of its sessions
    chains: dict[str, int] = field(default_factory=dict[str, int])  # the sequence of their first


Item = tuple[float, int, int, str]  # key, priority, sequence, call: the smallest goes first


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
    refusals: int = 0  # of them, those that a full worker turned away
    refused_s: float | None = None  # since when that was often
    promised_tokens: int = 0  # of its session, by a pin that was in force when it was dispatched
    unpinned_tokens: int = 0  # of its session, which it went on with though no pin kept them
    passed: int = 0  # calls that went while it was the first, and did not fit
    matched_tokens: int = 0  # of its prompt, believed to be held where it runs
    work_tokens: int = 0  # what it adds to its worker's
    home_until_s: float = 0.0  # until then it waits for the worker of its session
    resting: bool = False  # between two attempts
    queued: bool = False  # in its model's line
    tenant: str = ""
    priority: int = 0
    item: Item | None = None  # its place in the line
    parked: str = ""  # the limit that holds it back
    lifted: str = ""  # the limit that held it back, and holds others whose turn is after its own
    since: int = -1  # how many calls had been taken from the line when it joined
    path_tokens: float = 0.0  # its program's longest chain when it became ready
    expected_tokens: float = 0.0  # its work, as expected when it became ready
    sent_s: float = 0.0  # when it was dispatched
    member: str = ""  # the model in whose working set it is counted
    grouped: bool = False  # what its group begins with is reserved once, beside its own demand


@dataclass(slots=True)
class RunningGroup:
    """Calls of one prefix group that run on a worker: `tokens` of theirs are held once."""

    tokens: int
    calls: int = 0


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
    pins: set[str] = field(default_factory=set[str])  # sessions that are kept
    returned: set[str] = field(default_factory=set[str])  # those of them whose next call waits
    prefixes: set[str] = field(default_factory=set[str])  # pinned until they are over
    groups: dict[str, RunningGroup] = field(default_factory=dict[str, "RunningGroup"])
    joins: bool = False  # its calls share what they compute
    tiered: bool = False  # what it evicts comes back from a tier below
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
    refused_s: float | None = None  # since when it turns calls away, and answers none
    accepts: float = inf  # calls at once, as far as it has turned some away
    weighed_s: float = -1.0  # when its pins were last weighed against what waits

    share_tokens: int = field(init=False)  # of its KV tokens, what this process may fill
    share_slots: int = field(init=False)  # and how many calls of ours it may run

    def __post_init__(self) -> None:
        self.holds = Residency(self.kv_tokens)
        self.share_tokens, self.share_slots = self.kv_tokens, self.max_running

    @property
    def slots(self) -> int:
        """How many calls of ours it may run beside those of others."""
        if not self.running:
            return self.max_running
        return max(1, int(min(self.share_slots, self.max_running - self.foreign, self.accepts)))

    def refused(self, after_s: float, now_s: float) -> None:
        """It has turned a call away: it gets none for a while, and then as many as it has kept.

        The while is `after_s`, or grows while it answers none.
        """
        if self.refused_s is None:
            self.refused_s = now_s
        self.accepts = max(1.0, min(self.accepts, len(self.running) - 1.0))
        rest_s = max(after_s, (now_s - self.refused_s) * REST_GROWTH)
        self.rest_until_s = max(self.rest_until_s, now_s + rest_s)

    def answered(self) -> None:
        """It has answered a call, and may be given more at once than before."""
        self.broken = 0
        self.refused_s = None
        self.accepts += PROBED

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
    next_call: str = ""  # waits, and keeps the pin in force until it goes
    released: bool = False  # the worker was told to forget it, and has not heard of it since
    tool: str = ""
    paused_s: float = 0.0
    eta_s: float | None = None  # how long the pause is, by what its tools or their authors say
    ends_s: dict[str, float] = field(default_factory=dict[str, float])  # the same, by tool

    def expect(self, tool: str, left_s: float, now_s: float) -> None:
        """A tool of the pause will end in `left_s`; the session waits for the last one."""
        self.ends_s[tool] = now_s - self.paused_s + left_s
        self.eta_s = max(self.ends_s.values())

    def tool_over(self, tool: str, now_s: float) -> None:
        """A tool has ended, perhaps before the time that it told."""
        if self.ends_s.pop(tool, None) is not None and self.eta_s is not None:
            left_s = max(self.ends_s.values(), default=now_s - self.paused_s)
            self.eta_s = min(self.eta_s, left_s)


class CallView(msgspec.Struct, frozen=True, gc=False):
    """What an order policy may know of a waiting call and its program, when it became ready.

    Work is counted in tokens: those of a prompt that are computed, plus OUTPUT_WEIGHT for each
    token of an answer. Times are seconds on the run's clock.
    """

    now_s: float
    sequence: int  # how many calls were ready before it
    ready_at_s: float
    prompt_tokens: int
    max_tokens: int
    work_tokens: float  # of this call, expected
    remaining_tokens: float | None  # of the program from here on, where somebody predicts it
    s_per_token: float  # of work, as late calls of its model took
    program_arrival: int  # how many programs arrived before its own
    program_arrived_s: float
    program_deadline_s: float | None
    program_finish: float  # in the virtual time of its tenant
    program_attained_tokens: int  # all work done for the program
    program_path_tokens: float  # the longest chain of its calls that had ended
    program_waited_s: float  # its calls that were dispatched had waited, in sum
    program_served_s: float  # its calls that ended had run, in sum
    order_key: float | None = None  # its turn by a plan, in the place of its program's arrival


def need(call: CallReady) -> int:
    """KV tokens that a call's context may come to hold, shared ones too."""
    return call.prompt_tokens + call.max_tokens
