"""What the engine counts for `explain --analyze`, and what one step did."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Sums since the engine was made. Seconds are of the engine's clock."""

    calls: int = 0  # calls that ended, in whatever way
    aborted: int = 0
    prompt_tokens: int = 0  # of calls that reached their first token
    cached_tokens: int = 0  # of those, taken from the cache or computed by another call
    prefill_tokens: int = 0  # computed, choices and repeats after a preemption included
    decode_tokens: int = 0  # computed for rows that decode
    steps: int = 0
    step_rows: int = 0  # rows summed over the steps: divided by `steps`, the batch size
    largest_batch: int = 0
    plan_s: float = 0.0
    model_s: float = 0.0
    sample_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """The size of one step, for a cost model to price."""

    prefill_tokens: int
    decode_rows: int
    context_tokens: int  # of all rows together
