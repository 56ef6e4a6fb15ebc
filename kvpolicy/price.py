"""What KV memory costs at the moment, read from the queue of one worker.

The price is the shadow price of the constraint that all KV fits: the delay, summed over all calls,
that one token held idle for one second causes. Where nothing waits for memory it is zero.

Take n calls that cannot be admitted for want of memory, and W tokens of memory that calls compute
in. Freed at r tokens/s, a token is in use for W / r seconds (Little). A token that is held idle for
a second therefore admits r / W tokens less, and the queue, which r tokens/s leave, falls 1 / W
seconds behind: n / W seconds of delay in all. The rate r cancels; it says only for how long the
price will last, that is until what waits has entered. Where the engine is busy with what more calls
at once do not make cheaper, r grows less than W does, and the price is lower by that elasticity. So
an engine that recomputes lost sessions all the time makes memory cheap, and fewer are lost. No
constant is fitted to anything.

The same currency counts what a session's loss costs others. The engine that computes it again for R
seconds computes nothing else meanwhile, so all calls that run or wait there lose R as well. Under a
long queue both sides grow with n, and a session of C tokens is kept while its tool is expected to
end within R * W / C seconds: the time that prefill takes to fill the whole memory once. Were only
the session's own delay counted, a long queue would make every session recompute, and so grow.
"""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Memory:
    """The KV memory of one worker and what waits for it, in tokens.

    `waiting_tokens` is what the `waiting_calls` will come to hold, without what they share with
    resident KV; calls that wait for something else than memory (slots, a session's tool) are not
    counted. `freed_tokens_per_s` and `arriving_tokens_per_s` are late means of what ending calls
    free and of what new calls ask for; None: as much arrives as is freed. `elasticity`: by how much
    the rate of work grows with memory, 1 where in proportion; that is the share of engine time that
    goes into what all calls of a step share (reading the weights), and not into prefill.
    """

    capacity_tokens: int
    running_tokens: int = 0  # held or reserved by running calls
    pinned_tokens: int = 0  # held by sessions in a pause
    waiting_tokens: int = 0
    waiting_calls: int = 0
    running_calls: int = 0
    freed_tokens_per_s: float = 0.0
    arriving_tokens_per_s: float | None = None
    elasticity: float = 1.0


@dataclass(frozen=True, slots=True)
class Price:
    """`per_token_s`: seconds of delay per token of KV and second of holding it.

    It lasts for `lasts_s`, as far as can be seen. `slowed`: the calls, the session's own included,
    that lose a second for each second that the engine spends on computing a lost session again.
    """

    per_token_s: float = 0.0
    lasts_s: float = inf
    slowed: float = 1.0


FREE = Price()


def memory_price(memory: Memory) -> Price:
    """The price of KV memory, in seconds of delay per token and second. Zero without a queue."""
    free = max(0, memory.capacity_tokens - memory.running_tokens - memory.pinned_tokens)
    unmet = memory.waiting_tokens - free
    if unmet <= 0 or memory.waiting_calls <= 0:
        return Price(slowed=1.0 + memory.running_calls)
    delayed = memory.waiting_calls * unmet / memory.waiting_tokens
    working = max(1, memory.capacity_tokens - memory.pinned_tokens)
    return Price(
        per_token_s=memory.elasticity * delayed / working,
        lasts_s=_lasts_s(unmet, memory),
        slowed=1.0 + memory.running_calls + delayed,
    )


def _lasts_s(unmet: float, memory: Memory) -> float:
    """The seconds until the unmet demand has entered; without end where as much arrives."""
    if memory.arriving_tokens_per_s is None:
        return inf
    net = memory.freed_tokens_per_s - memory.arriving_tokens_per_s
    return unmet / net if net > 0 else inf
