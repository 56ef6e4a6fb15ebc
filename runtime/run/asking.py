"""One LLM step, compiled: from values to a request, and from an answer to the step's value."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import msgspec

from ...planner.graph import LLM
from ...planner.values import compile_args
from ..calls import CallId, Capabilities, Message, Request, Tokenizer
from ..errors import BackendUnavailable, CallFailed, Drained
from ..scheduler.core import DRAINED, NO_WORKER
from ..scheduler.loop import Answer
from .answers import parse_json
from .codec import identity
from .draft import CHUNK_TOKENS, GROWTH, Draft

SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Model:
    """A model as programs see it: its tokenizer and what its workers can do.

    Models with the same workers are one `pool` to the scheduler.
    """

    name: str
    tokenizer: Tokenizer
    capabilities: Capabilities
    pool: str


class Asking:
    """An LLM step compiled for one model.

    The chat is rendered first; equal chats have equal signatures, so that duplicates are found
    before anything is tokenised.
    """

    def __init__(self, step: LLM, model: Model) -> None:
        self.step = step
        self.model = model
        self.arguments = compile_args(step.args)
        self._prompt = step.prompt.render
        self._system = step.system.render if step.system is not None else None
        self._kind: blake2b | None = None  # made when a signature is first asked for
        self._identity: str | None = None
        self._choices = tuple(
            (*model.tokenizer.encode(choice), *model.tokenizer.end_of_turn_ids)
            for choice in step.choices
        )
        self.shared_tokens = 0  # of its prompts, once their common beginning is pinned
        self.group: str | None = None  # the name of that beginning

    @property
    def identity(self) -> str:
        """A short hash of the step itself: programs may make steps of one name on the way."""
        if self._identity is None:
            step = self.step
            system = step.system.source if step.system is not None else None
            sampling = msgspec.to_builtins(step.sampling)
            loop = [msgspec.to_builtins(step.loop)] if step.loop is not None else []
            more = [*loop, *_thinking(step)]
            self._identity = identity(
                [step.prompt.source, system, step.model, sampling, step.choices, step.schema, *more]
            )
        return self._identity

    def chat(self, values: Mapping[str, Any]) -> list[Message]:
        """The messages for these argument values."""
        messages = [Message("user", self._prompt(values))]
        if self._system is not None:
            messages.insert(0, Message("system", self._system(values)))
        return messages

    def signature(self, chat: list[Message]) -> bytes | None:
        """16 bytes that equal calls have in common; None where an answer is not repeatable."""
        loop = self.step.loop
        if not self.step.sampling.deterministic and not self.step.choices:
            return None
        if loop is not None and not loop.pure:
            return None
        if self._kind is None:
            self._kind = _digest_of_kind(self.step, self.model)
        digest = self._kind.copy()
        add_chat(digest, chat)
        return digest.digest()

    def request(
        self,
        call: CallId,
        chat: list[Message],
        seed: Callable[[], int],
        deadline_s: float | None = None,
        draft: Draft | None = None,
    ) -> Request:
        """The request for `chat`; `seed` is asked where the step samples without one of its own.

        With a `draft` the answer is streamed into it, and begins with what is there already.
        """
        sampling = self.step.sampling
        if sampling.temperature > 0 and sampling.seed is None:
            sampling = replace(sampling, seed=seed())
        return Request(
            call=call,
            token_ids=tuple(self.model.tokenizer.chat(chat)),
            sampling=sampling,
            choices=self._choices or None,
            schema=self.step.schema,
            deadline_s=deadline_s,
            stream=draft is not None,
            chunk_tokens=CHUNK_TOKENS,
            chunk_growth=GROWTH,
            drawn=draft.drawn if draft is not None else (),
            group=self.group,
            messages=tuple(chat),
        )

    def read(self, answer: Answer) -> Any:
        """The step's value, or raises StepFailed."""
        step = self.step
        check_answer(answer, step.id)
        if step.choices:
            scores = answer.choice_logprobs
            if scores is None or len(scores) != len(step.choices):
                raise CallFailed("the backend did not score the choices", step.id)
            return step.choices[scores.index(max(scores))]
        text = without_thought(answer.text)
        if step.schema is None:
            return text
        return parse_json(text, step.schema, step.id, answer.finish, step.sampling.max_tokens)

    def prefix(self) -> tuple[int, ...]:
        """The token ids that every call of the step begins with, whatever its arguments."""
        one, two = (dict.fromkeys(self._fields(), mark) for mark in ("0", "Z"))
        try:
            chats = [self.model.tokenizer.chat(self.chat(values)) for values in (one, two)]
        except Exception:
            return ()
        length = 0
        for left, right in zip(*chats, strict=False):
            if left != right:
                break
            length += 1
        return tuple(chats[0][:length])

    def _fields(self) -> tuple[str, ...]:
        system = self.step.system.fields if self.step.system is not None else ()
        return (*self.step.prompt.fields, *system)


def add_chat(digest: "blake2b", chat: Iterable[Message]) -> None:
    """Have a hash tell a chat from others, also from those that read alike as a whole."""
    for message in chat:
        called = (("call", part) for call in message.tool_calls for part in call)
        for kind, text in ((message.role, message.content), *called):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(b"%b %d\0%b" % (kind.encode(), len(data), data))


def check_answer(answer: Answer, step: str) -> None:
    """Raise StepFailed where there is no answer, BackendUnavailable where there never will be."""
    if answer.error == DRAINED:
        raise Drained(answer.error, step)
    if answer.error is not None:
        if answer.error.startswith(NO_WORKER):
            raise BackendUnavailable(answer.error)
        raise CallFailed(answer.error, step)


def without_thought(text: str) -> str:
    """The answer proper: what follows a `<think>` block, without blanks around it."""
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    return text.strip()


def seed_for(run_seed: int, row: int, path: str) -> int:
    """A seed that a call keeps over restarts: of the run's seed, its row and its place."""
    digest = blake2b(f"{run_seed}/{row}/{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def _digest_of_kind(step: LLM, model: Model) -> "blake2b":
    """A hash of all that determines an answer beside the chat itself."""
    sampling = msgspec.to_builtins(step.sampling)
    kind = [model.capabilities.model_fingerprint, sampling, step.choices, step.schema]
    if step.loop is not None:
        kind.append(msgspec.to_builtins(step.loop))
    kind += _thinking(step)
    return blake2b(msgspec.json.encode(kind), digest_size=16)


def _thinking(step: LLM) -> list[Any]:
    """What else of a step determines its answer, as plain data."""
    found = [] if step.reasoning is None else [msgspec.to_builtins(step.reasoning)]
    if step.reduce is not None:
        merge = step.reduce.merge.source if step.reduce.merge is not None else None
        found.append(
            ["reduce", step.reduce.over, merge, step.reduce.batch_tokens, step.reduce.tree]
        )
    if step.pack is not None:
        found.append(["pack", step.pack.rows, step.pack.votes])
    if step.cascade is not None:
        found.append(["cascade", msgspec.to_builtins(step.cascade)])
    return found
