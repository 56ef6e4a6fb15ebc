"""The nouns that the scheduler's core keeps, and the frozen view that policies see."""

from dataclasses import dataclass, field

import msgspec

from .events import CallReady


@dataclass(slots=True)
class ProgramState:
    """A program between its arrival and its end."""

    arrival: int  # how many programs came before it
    started: bool = False
    cancelled: bool = False
    calls: set[str] = field(default_factory=set[str])
    sessions: set[str] = field(default_factory=set[str])
    attained_tokens: int = 0  # prompt tokens computed and output tokens of its finished calls


class CallState(msgspec.Struct, gc=False):
    """A call between becoming ready and its end. It waits while `worker` is None."""

    ready: CallReady
    sequence: int
    ready_at_s: float
    demand_tokens: int  # KV tokens that it may come to hold of its own
    worker: str | None = None
    aborting: bool = False
    attempts: int = 0


@dataclass(slots=True)
class WorkerState:
    """An engine replica. `kv_reserved` counts what its running calls may come to hold."""

    name: str
    model: str
    max_running: int
    kv_tokens: int
    running: set[str] = field(default_factory=set[str])
    kv_reserved: int = 0
    kv_pinned: int = 0
    prefixes: set[str] = field(default_factory=set[str])  # pinned for the whole run
    computed_tokens: int = 0  # of prompts, since it came up
    prefill_s: float = 0.0  # that they took

    def rebuild_s(self, tokens: int) -> float | None:
        """How long computing `tokens` of a prompt takes here; None until it has computed some."""
        if not self.computed_tokens or not self.prefill_s:
            return None
        return tokens * self.prefill_s / self.computed_tokens


@dataclass(slots=True)
class SessionState:
    """A session whose KV lies on `worker`; `retained` while a pin is promised."""

    program: str
    worker: str
    tokens: int
    retained: bool = False
    until_s: float | None = None  # when the worker ends the pin by itself


class CallView(msgspec.Struct, frozen=True, gc=False):
    """What an order policy may know of a waiting call and its program."""

    program_arrival: int
    program_attained_tokens: int
    sequence: int
    prompt_tokens: int
    max_tokens: int
    ready_at_s: float
