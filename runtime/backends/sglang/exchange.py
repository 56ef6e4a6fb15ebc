"""What goes over the wire: single answers, streams, batches of a group, scored choices."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Any

from ...calls import Chunk, Request, Usage
from ...clock import now
from ...errors import CallFailed, TryAgain
from ..http import Client
from ..http_exchange import NotBegun
from .answer import logprobs, usage
from .attempt import Attempt
from .info import ServerInfo
from .retention import Retention
from .wire import (
    Reply,
    aborted,
    read_reply,
    room_for,
    sampling_params,
    server_priority,
    stream_interval,
)

PATH = "/generate"
LATE_S = 1.0  # how much longer than its deadline a request may take; the abort comes first
POST_S = 2.0  # for what has no answer
PREFILL_S = 120.0  # longest wait for a prompt to be computed that nobody waits for


class Exchange:
    """Asks one server, or one data-parallel rank of it, and reads what it answers.

    `heard_s` is when it was last heard of, on the loop's clock.
    """

    def __init__(
        self, client: Client, info: ServerInfo, retention: Retention, rank: int | None
    ) -> None:
        self.info = info
        self.where = client.url + PATH
        self.heard_s = now()
        self._client = client
        self.retention = retention
        self._rank = rank

    def room(self, request: Request) -> int:
        """Tokens that `request` may draw; raises CallFailed if it can never be answered."""
        return room_for(request, self.info.context_tokens)

    # -- one call

    async def run(self, attempt: Attempt) -> None:
        """Ask for one call's answer and hand it out. Raises why there is none."""
        request = attempt.request
        body = self._scalars(request) | self._item(attempt)
        body |= self.retention.fields(request.session)
        if request.stream:
            body["stream"] = True
            await self._read_stream([attempt], body, _timeout_s([request]))
        else:
            answer = await self._post(body, _timeout_s([request]))
            attempt.take(self._reply(answer))
        if not attempt.ended:
            raise TryAgain(f"{self.where}: the answer ended without a reason")

    async def run_group(self, attempts: Sequence[Attempt]) -> None:
        """Ask for the answers of several calls as one batch, in which each ends by itself.

        Raises CallFailed if the server refuses the batch; then none of its calls was answered.
        """
        requests = [attempt.request for attempt in attempts]
        body = self._scalars(requests[0]) | {"stream": True}
        items = [
            self._item(attempt) | self.retention.fields(attempt.request.session)
            for attempt in attempts
        ]
        defaults = {"return_logprob": False, "logprob_start_len": -1}
        for key in dict.fromkeys(key for item in items for key in item):
            body[key] = [item.get(key, defaults.get(key)) for item in items]
        await self._read_stream(attempts, body, _timeout_s(requests))
        for attempt in attempts:
            attempt.fail(TryAgain(f"{self.where}: the batch ended without this call's answer"))

    async def _read_stream(
        self, attempts: Sequence[Attempt], body: dict[str, Any], timeout_s: float | None
    ) -> None:
        """Read to the end, so that the connection can be used again, unless we ended early."""
        alone = len(attempts) == 1
        stream = self._client.stream(PATH, body, timeout_s, again=False)
        async with aclosing(stream) as events:
            async for event in events:
                self.heard_s = now()
                reply = self._reply(event)
                if not 0 <= reply.index < len(attempts):
                    raise TryAgain(f"{self.where}: there is no call {reply.index} in the batch")
                attempt = attempts[reply.index]
                try:
                    attempt.take(reply)
                except CallFailed as error:
                    if alone:
                        raise
                    attempt.fail(error)
                if attempt.ended and _left(attempts):
                    return

    # -- choices

    async def score(self, attempt: Attempt) -> None:
        """Score choices: the first one computes the prompt, the others find it in the cache."""
        request = attempt.request
        timeout_s = _timeout_s([request])
        choices, rids = request.choices or ((),), attempt.rids
        body = self._scoring(request, choices[0], rids[0])
        replies = [self._reply(await self._post(body, timeout_s))]
        if len(choices) > 1 and not attempt.ended and not attempt.aborting:
            bodies = [
                self._scoring(request, choice, rid)
                for choice, rid in zip(choices[1:], rids[1:], strict=True)
            ]
            batch = self._scalars(request)
            for key in ("rid", "input_ids", "sampling_params"):
                batch[key] = [body[key] for body in bodies]
            batch |= {"return_logprob": True, "logprob_start_len": body["logprob_start_len"]}
            batch |= self.retention.fields(None)
            answers = await self._post(batch, _timeout_s([request]))
            if not isinstance(answers, list):
                raise TryAgain(f"{self.where}: a batch was asked for, no list of answers came")
            replies += [self._reply(answer) for answer in answers]  # pyright: ignore
        if attempt.aborting:
            attempt.give_up()
        else:
            attempt.put(self._scored(request, choices, replies))
        attempt.running = False

    def _scoring(self, request: Request, choice: tuple[int, ...], rid: str) -> dict[str, Any]:
        body = self._scalars(request) | self.retention.fields(None)
        return body | {
            "rid": rid,
            "input_ids": (*request.token_ids, *choice),
            "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": len(request.token_ids) - 1,
        }

    def _scored(
        self, request: Request, choices: Sequence[tuple[int, ...]], replies: list[Reply]
    ) -> Chunk:
        if len(replies) != len(choices):
            raise TryAgain(f"{self.where}: {len(choices)} answers asked for, {len(replies)} came")
        scores: list[float] = []
        for choice, reply in zip(choices, replies, strict=True):
            reason = reply.meta_info.finish_reason or {}
            if (failure := aborted(reason, self.where)) is not None:
                raise failure
            rows = reply.meta_info.input_token_logprobs
            scores.append(sum(logprobs(rows, choice, self.where)))
        prompt = len(request.token_ids)
        parts = [usage(reply.meta_info, prompt, 0) for reply in replies]
        slowest = max(parts[1:], key=lambda part: part.prefill_s, default=Usage())
        return Chunk(
            finish="stop",
            usage=Usage(
                prompt_tokens=prompt,
                cached_tokens=parts[0].cached_tokens,
                queue_s=parts[0].queue_s + slowest.queue_s,
                prefill_s=parts[0].prefill_s + slowest.prefill_s,
            ),
            choice_logprobs=tuple(scores),
        )

    # -- prompts that only fill the cache

    async def prefill(self, rid: str, token_ids: tuple[int, ...], fields: dict[str, Any]) -> Usage:
        """Have the KV of `token_ids` computed, or used again, with `fields` in the request."""
        body = self._place() | fields
        body |= {
            "rid": rid,
            "input_ids": token_ids,
            "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
        }
        if self.info.enable_priority_scheduling:
            body["priority"] = 0
        try:
            reply = self._reply(await self._post(body, PREFILL_S))
        except NotBegun:
            raise
        except TryAgain:
            await self.abort([rid])
            raise
        failure = aborted(reply.meta_info.finish_reason or {}, self.where)
        if failure is not None:
            raise failure
        return usage(reply.meta_info, len(token_ids), 0)

    # -- parts of a body

    def _item(self, attempt: Attempt) -> dict[str, Any]:
        """What each request of a batch has of its own."""
        request = attempt.request
        params = sampling_params(request, attempt.room)
        params["stream_interval"] = stream_interval(request, self.info.incremental_streaming_output)
        item: dict[str, Any] = {
            "rid": attempt.rids[0],
            "input_ids": (*request.token_ids, *request.drawn),
            "sampling_params": params,
        }
        if request.logprobs:
            item["return_logprob"] = True
            item["logprob_start_len"] = len(request.token_ids) - 1 if request.drawn else -1
        return item

    def _scalars(self, request: Request) -> dict[str, Any]:
        """What all requests of a batch have in common."""
        body = self._place()
        if self.info.enable_priority_scheduling:
            body["priority"] = server_priority(request.priority, self.info)
        return body

    def _place(self) -> dict[str, Any]:
        return {} if self._rank is None else {"routed_dp_rank": self._rank}

    async def _post(self, body: dict[str, Any], timeout_s: float | None) -> Any:
        """A request id is good for one request: it is never sent twice."""
        answer = await self._client.post(PATH, body, timeout_s, again=False)
        self.heard_s = now()
        return answer

    def _reply(self, raw: Any) -> Reply:
        """What a reply says, without credentials where it says why there is no answer."""
        reply = read_reply(raw, self.where)
        reason = reply.meta_info.finish_reason
        if reason is not None and "message" in reason:
            reason["message"] = self._client.quoted(str(reason["message"]))
        return reply

    # -- what nobody waits for any more

    async def abort(self, rids: Iterable[str]) -> None:
        """Ask the server to stop work on these requests; returns soon, whatever it says."""
        posts = (self._client.post("/abort_request", {"rid": rid}, POST_S) for rid in rids)
        await asyncio.gather(*posts, return_exceptions=True)


def _left(attempts: Sequence[Attempt]) -> bool:
    """Whether all have ended here, and not all on the server."""
    return all(each.ended for each in attempts) and any(each.running for each in attempts)


def _timeout_s(requests: Sequence[Request]) -> float | None:
    """How long a request may take: until the last deadline, and a moment for its abort."""
    deadlines = [request.deadline_s for request in requests]
    known = [deadline_s for deadline_s in deadlines if deadline_s is not None]
    if len(known) < len(deadlines):
        return None
    return max(0.0, max(known) - now()) + LATE_S
