"""A simulated program between its arrival and its end, and a call of it."""

from dataclasses import dataclass, field

from ..engine.state import Sequence
from ..replay import Program, Turn, new_tokens
from ..scheduler.events import CallEnded
from .result import Result


@dataclass(slots=True)
class Live:
    """A program that has arrived and has not ended."""

    name: str
    row: int
    program: Program
    session: str | None  # where the program is one conversation
    stage: int = -1
    open: int = 0  # turns of the stage that are not answered, or in the pause after it
    asked: list[Turn] = field(default_factory=list[Turn])  # of the last stage, and of this one
    failed: str = ""  # why a call of it was refused

    def ask(self, turn: Turn) -> int:
        """One more turn is asked; tokens of its prompt that no late turn had computed or drawn."""
        fresh = min((new_tokens(turn, one) for one in self.asked), default=turn.prompt_tokens)
        self.asked.append(turn)
        return fresh


@dataclass(slots=True)
class Call:
    """A call between becoming ready and its end. It waits while `worker` is empty."""

    name: str
    live: Live
    turn: Turn
    ready_s: float
    new_tokens: int  # of the prompt, that the program has not had computed before
    sequence: Sequence | None = None
    worker: str = ""

    def ended(self, now_s: float) -> CallEnded:
        """What the scheduler hears of its end: an answer, or that an engine refused it."""
        sequence = self.sequence
        if sequence is None or sequence.started_s is None or sequence.first_s is None:
            return CallEnded(
                call=self.name,
                program=self.live.name,
                step="turn",
                finish="error",
                error="the engine refused it",
            )
        return CallEnded(
            call=self.name,
            program=self.live.name,
            step="turn",
            finish="stop",
            prompt_tokens=sequence.prompt,
            cached_tokens=sequence.cached,
            output_tokens=sequence.max_output,
            queue_s=sequence.started_s - sequence.arrived_s,
            prefill_s=sequence.first_s - sequence.started_s,
            decode_s=now_s - sequence.first_s,
        )

    def add_to(self, result: Result) -> int:
        """An answered call, into the sums of `result`; how much of its prompt was computed."""
        sequence = self.sequence
        assert sequence is not None and sequence.started_s is not None
        computed = sequence.prompt - sequence.cached
        result.calls += 1
        result.prompt_tokens += sequence.prompt
        result.cached_tokens += sequence.cached
        result.output_tokens += sequence.max_output
        result.recomputed_tokens += max(0, computed - self.new_tokens)
        result.queue_s += sequence.started_s - self.ready_s
        return computed
