"""What the scheduler is told (events) and what it decides (commands).

Both go into the trace as they are, so that a trace replays into the core. Names of programs,
calls, sessions and workers are short strings; times are seconds on the run's clock.
"""

from typing import Any, Literal

from ..calls import FinishReason
from ..trace import Record

# ---- events ------------------------------------------------------------------------------------


class ProgramArrived(Record, frozen=True):
    """A program (one row, one agent) wants to run.

    `weight` is the share that its tenant is to get beside others. `expected_tokens` is a prediction
    of the work of the whole program, in the unit of `CallReady.remaining_tokens`.
    """

    program: str
    row: int
    workflow: str
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0  # among calls with equal keys the smaller one goes first
    deadline_s: float | None = None  # on the run's clock: when it is wanted; it only orders
    expected_tokens: float | None = None


class ProgramEnded(Record, frozen=True):
    """A program is over; its sessions are released. A stopped one will be taken up again."""

    program: str
    row: int
    ok: bool
    error: str | None = None
    stopped: bool = False


class CallReady(Record, frozen=True):
    """A call has its inputs and may be dispatched.

    What a plan would have, the scheduler may do otherwise: `leader` is the call that computes the
    prefix of `group` for the others (perhaps this one), `order_key` its turn in place of that of
    its program, `worker` where it is to run.
    `expected_tokens` and `remaining_tokens` are predictions: the length of its answer, and the work
    that its program still takes, this call included: prompt tokens to compute, plus OUTPUT_WEIGHT
    (8) for each output token.
    Calls of one `chain` come one behind the other, the next as soon as one was cut at its limit:
    all have the turn of the first, and the room that one leaves is the next one's before others'.
    """

    call: str
    program: str
    step: str
    model: str
    prompt_tokens: int
    max_tokens: int
    session: str | None = None
    shared_tokens: int = 0  # of the prompt, expected in the cache (the plan's hint)
    deadline_s: float | None = None  # on the run's clock: not answered by then, it is aborted
    group: str | None = None  # the prefix or the gang that it belongs to
    gang: int = 0  # so many calls of its group enter one worker together, or none of them
    blocks: tuple[int, ...] = ()  # of its prompt (placement), where there is a choice of workers
    expected_tokens: float | None = None
    remaining_tokens: float | None = None
    leader: str | None = None
    order_key: float | None = None
    worker: str | None = None
    chain: str | None = None


class CallBegan(Record, frozen=True):
    """A call that leads a group has its first token: what the group begins with is in the cache."""

    call: str


class CallEnded(Record, frozen=True):
    """A backend has answered, failed or aborted a call."""

    call: str
    program: str
    step: str
    finish: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    error: str | None = None


class CallBroke(Record, frozen=True):
    """An attempt came to nothing; another one may do. `after_s`: the worker wants to rest first."""

    call: str
    worker: str
    error: str
    after_s: float | None = None


class CallShared(Record, frozen=True):
    """A call needed no generation: its equal had been, or is being, answered.

    `result-cache`: by an earlier run of this home, perhaps of another workflow. `packed`: by the call
    of another row, whose prompt it shared. `small-model`: by the smaller one of a cascade.
    """

    program: str
    step: str
    how: Literal["joined", "cached", "journal", "once", "result-cache", "packed", "small-model"]
    tool: str = ""  # where it is a call of a tool
    prompt_tokens: int = 0  # what was saved, where known
    output_tokens: int = 0


class ToolStarted(Record, frozen=True):
    """A tool runs; `session` is the KV context that waits for it, if any.

    `word` is a hash of the first word of its first argument: calls that begin alike take alike.
    `eta_s` is the author's hint of how long it takes. One that `joined` an equal call in flight
    waits for that, and has no ToolEnded of its own. One that was started before its turn had ended
    has run for `ran_s` seconds.
    """

    program: str
    step: str
    tool: str
    session: str | None = None
    eta_s: float | None = None
    word: str = ""
    joined: bool = False
    ran_s: float = 0.0


class ToolProgress(Record, frozen=True):
    """A tool that runs tells that it still takes `left_s` seconds."""

    program: str
    step: str
    tool: str
    left_s: float
    session: str | None = None
    word: str = ""


class ToolEnded(Record, frozen=True):
    """A tool has answered or failed."""

    program: str
    step: str
    tool: str
    seconds: float
    ok: bool
    session: str | None = None
    error: str | None = None
    word: str = ""


class SessionEnded(Record, frozen=True):
    """Nobody will go on with a session: its KV may go, though its program lives."""

    program: str
    session: str


class Speculated(Record, frozen=True):
    """A tool was started before its turn had ended, and ran for `seconds` until then.

    `used`: the turn ended with that call; otherwise it was dropped.
    """

    program: str
    step: str
    tool: str
    seconds: float
    used: bool


class ToolRefused(Record, frozen=True):
    """A model asked for a tool that it may not choose after what its chat has read.

    `sources` are where the untrusted text came from.
    """

    program: str
    tool: str
    sources: tuple[str, ...]


class EffectUnknown(Record, frozen=True):
    """A call of a tool with effect `once` was cut off: nobody knows whether it had its effect."""

    program: str
    step: str
    tool: str


class ApprovalAsked(Record, frozen=True):
    """A program stops until somebody approves of a call, or not. `id` names the question."""

    program: str
    tool: str
    sources: tuple[str, ...]
    id: str


class Reasoned(Record, frozen=True):
    """A reasoning step has decided. Tokens are of all its samples together.

    `full_tokens` is about what thinking to the end would have taken: the mean of the samples that
    ended by themselves (or the limit), for each that was to be drawn. `shadow`: this one thought to
    its end on purpose, and whether the rule would have kept its answer. `rule` was in force,
    `left_rule` given up for it before. `unscored` of its `scores` came to nothing; `score_tokens`
    is what a model computed for them, `lent_tokens` what others' budgets had left for it.
    `probe_tokens` are decoded, and the suffixes. Beside the budget, of thoughts that had been
    computed, `probe_again_tokens` were prefilled again for probes, `again_tokens` to think on.
    """

    program: str
    step: str
    strategy: str
    stopped: str
    samples: int
    thought_tokens: int
    probe_tokens: int
    full_tokens: int
    certainty: float | None = None
    shadow: bool | None = None
    rule: str = ""
    left_rule: str = ""
    scores: int = 0
    unscored: int = 0
    score_tokens: int = 0
    lent_tokens: int = 0
    again_tokens: int = 0
    probe_again_tokens: int = 0


class Drifted(Record, frozen=True):
    """Shadow runs have shown that a step's rule loses more answers than allowed: another replaces it."""

    step: str
    left: str
    rule: str
    runs: int
    loss: float
    allowed: float


class CancelProgram(Record, frozen=True):
    """Somebody wants a program stopped: its waiting calls are dropped, its running ones aborted."""

    program: str


class CancelCall(Record, frozen=True):
    """Nobody wants this call's answer any more: it is dropped, or aborted where it runs."""

    call: str


class Drain(Record, frozen=True):
    """Nothing may start any more, neither program nor call; what runs may end."""


class Pause(Record, frozen=True):
    """Nothing may start until Continue, neither program nor call; what runs goes on."""


class Continue(Record, frozen=True):
    """What waits since Pause may start."""


class Change(Record, frozen=True):
    """Other settings from now on; None leaves one as it is.

    `order` and `retention` are names of policies that exist, `limits` is plain data for
    `Limits.read`, in the place of all that were given before; `past_future` stays as it was. Calls
    and programs that run beyond a lower limit go on. Once calls have used `token_budget`
    tokens in all, prompts and answers, nothing starts any more.
    """

    max_programs: int | None = None
    order: str | None = None
    retention: str | None = None
    token_budget: int | None = None
    limits: dict[str, Any] | None = None


class PrefixKnown(Record, frozen=True):
    """Many calls to come share this prefix: compute it once and keep it until it is over.

    On `worker` alone, if one is named.
    """

    session: str
    model: str
    tokens: int
    worker: str | None = None


class PrefixOver(Record, frozen=True):
    """No more calls of a prefix or of a group will come: what is kept for them may go."""

    session: str


class WorkerUp(Record, frozen=True):
    """A worker may be used."""

    worker: str
    model: str
    max_running: int
    kv_tokens: int
    page_tokens: int = 1
    joins: bool = False  # calls that run share what they compute, so that no leader is waited for
    tiered: bool = False  # evicted KV comes back from a tier below, as of the host's memory


class WorkerDown(Record, frozen=True):
    """A worker is gone; its calls become ready again. `returns`: it may come back."""

    worker: str
    error: str = ""
    returns: bool = False
    model: str = ""  # of a worker that was never up


class WorkerFine(Record, frozen=True):
    """A worker that was probed answers."""

    worker: str


class WorkerLoad(Record, frozen=True):
    """A worker's own report: all that it runs and all that waits there, whoever sent it."""

    worker: str
    running: int
    waiting: int


class WorkerShare(Record, frozen=True):
    """So much of a worker is this process's: others lease the rest of it. A restart keeps it."""

    worker: str
    kv_tokens: int
    max_running: int


class BlocksHeld(Record, frozen=True):
    """Other processes have had these blocks computed on a worker, each of so many tokens."""

    worker: str
    blocks: tuple[tuple[int, int], ...]


class BlocksGone(Record, frozen=True):
    """A worker has evicted these blocks; none named: all of them."""

    worker: str
    blocks: tuple[int, ...] = ()


class TimerFired(Record, frozen=True):
    """The time of an earlier SetTimer has come."""


Event = (
    ProgramArrived
    | ProgramEnded
    | CallReady
    | CallBegan
    | CallEnded
    | CallBroke
    | ToolStarted
    | ToolProgress
    | ToolEnded
    | SessionEnded
    | PrefixKnown
    | PrefixOver
    | CancelProgram
    | CancelCall
    | Drain
    | Pause
    | Continue
    | Change
    | WorkerUp
    | WorkerDown
    | WorkerFine
    | WorkerLoad
    | WorkerShare
    | BlocksHeld
    | BlocksGone
    | TimerFired
)

# ---- commands ----------------------------------------------------------------------------------


class StartProgram(Record, frozen=True):
    """A program is admitted: its steps may run."""

    program: str


class Dispatch(Record, frozen=True):
    """Send a call to a worker. Smaller priority goes first."""

    call: str
    worker: str
    priority: float


class Abort(Record, frozen=True):
    """Stop a dispatched call on its worker."""

    call: str
    worker: str
    reason: str = ""


class DropCall(Record, frozen=True):
    """A call that waited will not run."""

    call: str
    reason: str


class Warm(Record, frozen=True):
    """Compute a known prefix on a worker, so that the calls after it find it in the cache."""

    session: str
    worker: str


class Retain(Record, frozen=True):
    """Keep a session's KV until a time (None: until released)."""

    session: str
    worker: str
    until_s: float | None


class Release(Record, frozen=True):
    """Let go of a session's KV."""

    session: str
    worker: str


class Quit(Record, frozen=True):
    """Stop whatever runs on a worker; `recover`: watch for its return."""

    worker: str
    recover: bool


class Probe(Record, frozen=True):
    """Ask a worker whether it still answers: too many calls in a row came to nothing there."""

    worker: str


class PinJudged(Record, frozen=True):
    """How a pin turned out: of `promised_tokens`, the next turn found `cached_tokens`."""

    session: str
    worker: str
    promised_tokens: int
    cached_tokens: int
    held: bool


class Deviated(Record, frozen=True):
    """A plan's hint that was not followed: another call led the group, or another worker ran it."""

    call: str
    hint: Literal["leader", "worker"]
    planned: str
    chosen: str


class SetTimer(Record, frozen=True):
    """Send TimerFired at this time; replaces an earlier timer."""

    due_s: float


Command = (
    StartProgram
    | Dispatch
    | Abort
    | DropCall
    | Warm
    | Retain
    | Release
    | Quit
    | Probe
    | PinJudged
    | Deviated
    | SetTimer
)

# ---- what else a trace of a run holds -----------------------------------------------------------


class RunStarted(Record, frozen=True):
    """The first line of a trace."""

    version: int
    run: str
    workflow: str
    rows: int | None  # None: not known yet
    resumed_rows: int = 0  # finished before
    resumed_failed: int = 0  # of them, those that failed


class Asked(Record, frozen=True):
    """Somebody asked something of the live run; what it `said` to that. `at` is ISO 8601, UTC."""

    by: str
    what: str
    at: str
    ok: bool
    said: str
    values: dict[str, int | float | str | bool]


class StepPlanned(Record, frozen=True):
    """What the plan of a run expects of a step: one record for each, behind RunStarted.

    Tokens and seconds are those of one call; None where nothing is known. `path_share` is the
    share of a program's longest chain of steps.
    """

    step: str
    kind: str
    calls_per_row: float
    once: bool = False  # in the whole run
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt
    output_tokens: int = 0
    prefill_s: float | None = None
    decode_s: float | None = None
    tool_s: float | None = None
    path_share: float | None = None


class CascadeLearned(Record, frozen=True):
    """What a sample of rows, which both models of a cascade answered, has told of a step.

    The smaller model's choice stands from the confidence `threshold` on, None: nowhere; that was
    the share `routed` of the sample.
    """

    step: str
    threshold: float | None
    sampled: int
    routed: float
    message: str


class Repeated(Record, frozen=True):
    """A `repeat` has ended, after so many iterations."""

    program: str
    step: str
    iterations: int


class RunEnded(Record, frozen=True):
    """The last line of a trace."""

    status: Literal["done", "paused", "failed"]
