"""One LLM step of one program on its way through the scheduler."""

from collections.abc import Mapping
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


class LLMWork:
    """One LLM step of one program on its way through the scheduler (a `Submission`)."""

    __slots__ = (
        "_asking",
        "_chat",
        "_done",
        "_draft",
        "_host",
        "_owner",
        "_path",
        "_signature",
        "_values",
        "request",
        "shared_tokens",
    )

    def __init__(
        self,
        host: "Host",
        owner: Owner,
        path: str,
        asking: Asking,
        chat: list[Message],
        signature: bytes | None,
        done: Settled,
        values: Mapping[str, Any],
    ) -> None:
        self._host = host
        self._owner = owner
        self._path = path
        self._asking = asking
        self._chat = chat
        self._signature = signature
        self._done = done
        self._values = values
        self._draft: Draft | None = None
        self.request = NO_REQUEST
        self.shared_tokens = asking.shared_tokens

    @property
    def program(self) -> str:
        return self._owner.name

    @property
    def step(self) -> str:
        return self._asking.step.id

    @property
    def model(self) -> str:
        return self._asking.model.pool

    @property
    def gang(self) -> int:
        return 0

    def start(self) -> None:
        """Hand the call to the scheduler."""
        owner, host = self._owner, self._host
        if owner.ended:
            host.abandon(self._signature)
            return
        if not self._asking.step.choices:
            step = self._asking.step
            max_tokens = step.sampling.max_tokens
            model = self._asking.model
            self._draft = host.draft(owner, self._path, model, max_tokens, step.schema)
        try:
            self._submit()
        except Exception as error:  # of a tokenizer or a chat template
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        """The call could not be made: it fails, and so does equal work that waits for it."""
        told = error if isinstance(error, TenterError) else StepFailed(str(error), self.step)
        self._host.failed(self._signature, told, self._done)

    def _submit(self) -> None:
        owner, host = self._owner, self._host
        call = CallId(f"{owner.name}/{self._path}")
        timeout_s = host.call_timeout_s
        self.request = self._asking.request(
            call,
            self._chat,
            lambda: seed_for(host.seed, owner.row, self._path),
            now() + timeout_s if timeout_s else None,
            self._draft,
        )
        host.scheduler.submit(self, self._plan(call))

    def _plan(self, call: CallId) -> PlanHint:
        """What the run's plan says of the call; its group is the request's."""
        planned = self._host.planned
        if planned is None:
            return NO_PLAN
        hint = planned.hint(self._owner.row, call, self._asking, self._chat, self._values)
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
        if self._owner.ended:
            self._host.abandon(self._signature)
            return
        try:
            value = self._asking.read(answer)
        except Exception as error:
            self._owner.note(error)
            self._host.failed(self._signature, error, self._done)
            return
        self._host.record(
            self._owner, self._path, value, self._signature, self._done, usage=answer.usage
        )
