"""One LLM step of one program on its way through the scheduler."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ..calls import CallId, Chunk, Message, Request
from ..clock import now
from ..errors import StepFailed, TenterError
from ..scheduler.loop import NO_PLAN, Answer, PlanHint
from .asking import Asking, seed_for
from .draft import Draft
from .owner import Owner
from .sharing import Settled

if TYPE_CHECKING:
    from .host import Host

NO_REQUEST = Request(CallId(""), ())


@dataclass(frozen=True, slots=True)
class RowCall:
    """One LLM step of one program: what is asked, and who is told."""

    owner: Owner
    path: str
    asking: Asking
    chat: list[Message]
    values: Mapping[str, Any]
    signature: bytes | None
    done: Settled


class LLMWork:
    """A call on its way through the scheduler (a `Submission`)."""

    __slots__ = ("_call", "_draft", "_host", "request", "shared_tokens")

    def __init__(self, host: "Host", call: RowCall) -> None:
        self._host = host
        self._call = call
        self._draft: Draft | None = None
        self.request = NO_REQUEST
        self.shared_tokens = call.asking.shared_tokens

    @property
    def program(self) -> str:
        return self._call.owner.name

    @property
    def step(self) -> str:
        return self._call.asking.step.id

    @property
    def model(self) -> str:
        return self._call.asking.model.pool

    @property
    def signature(self) -> bytes | None:
        """What equal calls have in common, if they are made once."""
        return self._call.signature

    @property
    def gang(self) -> int:
        return 0

    def start(self) -> None:
        """Hand the call to the scheduler."""
        owner, host = self._call.owner, self._host
        if owner.ended:
            host.abandon(self._call.signature)
            return
        if not self._call.asking.step.choices:
            step = self._call.asking.step
            max_tokens = step.sampling.max_tokens
            model = self._call.asking.model
            self._draft = host.draft(owner, self._call.path, model, max_tokens, step.schema)
        try:
            self._submit()
        except Exception as error:  # of a tokenizer or a chat template
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        """The call could not be made: it fails, and so does equal work that waits for it."""
        told = error if isinstance(error, TenterError) else StepFailed(str(error), self.step)
        self._host.failed(self._call.signature, told, self._call.done)

    def _submit(self) -> None:
        owner, host = self._call.owner, self._host
        call = CallId(f"{owner.name}/{self._call.path}")
        timeout_s = host.call_timeout_s
        self.request = self._call.asking.request(
            call,
            self._call.chat,
            lambda: seed_for(host.seed, owner.row, self._call.path),
            now() + timeout_s if timeout_s else None,
            self._draft,
        )
        host.scheduler.submit(self, self._plan(call))

    def _plan(self, call: CallId) -> PlanHint:
        """What the run's plan says of the call; its group is the request's."""
        planned = self._host.planned
        if planned is None:
            return NO_PLAN
        hint = planned.hint(
            self._call.owner.row, call, self._call.asking, self._call.chat, self._call.values
        )
        if hint.group is not None:
            self.request = replace(self.request, group=hint.group)
            self.shared_tokens = hint.shared_tokens
        return hint.plan

    def heard(self, chunk: Chunk) -> None:
        """Write down a growing answer."""
        if self._draft is not None:
            self._draft.heard(chunk)

    def lost(self) -> None:
        """The answer begins anew."""
        if self._draft is not None:
            self._draft.restart()

    def done(self, answer: Answer) -> None:
        """Read the answer and record the step's value."""
        if self._host.planned is not None:
            self._host.planned.answered(self.request.call, self.step, answer)
        if self._host.was_withdrawn(self.request.call) or self._call.owner.ended:
            self._host.abandon(self._call.signature)
            return
        try:
            value = self._call.asking.read(answer)
        except Exception as error:
            self._call.owner.note(error)
            self._host.failed(self._call.signature, error, self._call.done)
            return
        self._host.record(
            self._call.owner,
            self._call.path,
            value,
            self._call.signature,
            self._call.done,
            usage=answer.usage,
        )
