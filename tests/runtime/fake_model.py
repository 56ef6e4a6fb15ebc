"""The good answers of the fake server: SGLang's /generate and OpenAI's chat completions.

No model: what comes out is a hash of what goes in, so that equal prompts have equal answers.
"""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any


class FakeModel:
    """An answer has `answer_tokens` tokens and `eos_id`, one every `token_s` seconds.

    Tokens are drawn from `vocabulary`, and `decode` makes their text. `message` goes over the
    message of a chat answer, `running` holds the request ids that are being answered, and `seen`
    is the prefix cache: clear it for a restart with an empty one.
    """

    def __init__(self) -> None:
        self.answer_tokens = 8
        self.token_s = 0.0
        self.eos_id = 256
        self.vocabulary: list[int] = list(range(97, 123))
        self.decode: Callable[[list[int]], str] = lambda ids: bytes(ids).decode("latin-1")
        self.message: dict[str, Any] = {}
        self.chats = 0
        self.seen: deque[tuple[int, ...]] = deque(maxlen=200)
        self.running: dict[str, asyncio.Event] = {}  # set: it is to end with finish abort

    def parts(self, path: str, body: Any) -> AsyncGenerator[bytes, None]:
        """The good answer to a request, in the pieces that a server sends."""
        return self._sglang(body) if path == "/generate" else self._chat(body)

    async def _sglang(self, body: Any) -> AsyncGenerator[bytes, None]:
        """/generate: one prompt or a batch of them, cumulative texts, `input_ids` or `text`."""
        prompts: Any = body.get("input_ids")
        if prompts is None:
            texts = body["text"]
            prompts = (
                [list(t.encode()) for t in texts]
                if isinstance(texts, list)
                else list(texts.encode())
            )
        many = bool(prompts) and isinstance(prompts[0], list)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        rows = [_row(body, place, many) for place in range(len(prompts) if many else 1)]
        tasks = [
            asyncio.ensure_future(
                self._answer(row, prompts[place] if many else prompts, queue.put_nowait)
            )
            for place, row in enumerate(rows)
        ]
        asyncio.gather(*tasks).add_done_callback(lambda _: queue.put_nowait(None))
        last: dict[int, dict[str, Any]] = {}
        try:
            while (event := await queue.get()) is not None:
                last[event.get("index", 0)] = event
                if body.get("stream"):
                    yield _event(event)
        finally:
            for task in tasks:
                task.cancel()
        if body.get("stream"):
            yield b"data: [DONE]\n\n"
        else:
            whole = [last[place] for place in sorted(last)]
            yield json.dumps(whole if many else whole[0]).encode()

    async def _answer(self, row: Any, ids: list[int], tell: Callable[[Any], None]) -> None:
        """One prompt's events: the text so far, and at last the finish."""
        rid, limit = row["rid"], row["sampling_params"].get("max_new_tokens", 128)
        cached = max((_common(ids[:-1], old) for old in self.seen), default=0)
        stop = self.running[rid] = asyncio.Event()
        try:
            out: list[int] = []
            finish: Any = {"type": "length", "length": limit}
            for token in self._tokens(ids)[:limit]:
                if self.token_s:
                    await asyncio.sleep(self.token_s)
                if stop.is_set():
                    finish = {"type": "abort", "message": "Abort in waiting queue"}
                    break
                out.append(token)
                if token == self.eos_id:
                    finish = {"type": "stop", "matched": token}
                elif row["stream"] and len(out) < limit:
                    tell(self._event_of(row, ids, out, cached, None))
            self.seen.append((*ids, *out))
            tell(self._event_of(row, ids, out, cached, finish))
        finally:
            del self.running[rid]

    def _tokens(self, ids: list[int]) -> list[int]:
        seed = hashlib.blake2b(str(list(ids)).encode(), digest_size=2).digest()[0]
        size = len(self.vocabulary)
        drawn = [self.vocabulary[(seed + 7 * n) % size] for n in range(self.answer_tokens)]
        return [*drawn, self.eos_id]

    def _event_of(self, row: Any, ids: list[int], out: list[int], cached: int, finish: Any) -> Any:
        meta: dict[str, Any] = {
            "id": row["rid"],
            "finish_reason": finish,
            "prompt_tokens": len(ids),
            "completion_tokens": len(out),
            "cached_tokens": cached,
            "weight_version": "default",
        }
        if row["return_logprob"]:
            start = row["logprob_start_len"]
            first = [_logprob(token, place > start) for place, token in enumerate(ids)][
                max(start, 0) :
            ]
            meta["input_token_logprobs"] = first if start >= 0 else []
            meta["output_token_logprobs"] = [_logprob(token, True) for token in out]
        text = self.decode([token for token in out if token != self.eos_id])
        event = {"text": text, "output_ids": list(out), "meta_info": meta}
        return event | ({"index": row["index"]} if row["many"] else {})

    async def _chat(self, body: Any) -> AsyncGenerator[bytes, None]:
        """/v1/chat/completions: deltas or one message."""
        ids = list(json.dumps(body["messages"]).encode())
        self.chats += 1
        rid = f"chat-{self.chats}"
        row = {"rid": rid, "sampling_params": {"max_new_tokens": body.get("max_tokens", 128)}}
        row |= {"stream": True, "return_logprob": False, "many": False, "index": 0}
        queue: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.ensure_future(self._answer(row, ids, queue.put_nowait))
        told, streamed = 0, body.get("stream")
        head = {"id": rid, "model": body["model"], "object": "chat.completion"}
        try:
            while True:
                event = await queue.get()
                meta, delta = event["meta_info"], {"content": event["text"][told:]}
                told = len(event["text"])
                finish = meta["finish_reason"] and meta["finish_reason"]["type"]
                if finish:
                    delta |= self.message
                if streamed:
                    yield _event(head | {"choices": [{"delta": delta, "finish_reason": finish}]})
                if finish:
                    break
        finally:
            task.cancel()
        cached = {"cached_tokens": meta["cached_tokens"]}
        usage = {"prompt_tokens": meta["prompt_tokens"], "prompt_tokens_details": cached}
        usage |= {"completion_tokens": meta["completion_tokens"]}
        if streamed:
            if (body.get("stream_options") or {}).get("include_usage"):
                yield _event(head | {"choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
        else:
            message = {"role": "assistant", "content": event["text"]} | self.message
            choice = {"index": 0, "message": message, "finish_reason": finish}
            yield json.dumps(head | {"choices": [choice], "usage": usage}).encode()


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _row(body: Any, place: int, many: bool) -> dict[str, Any]:
    """The settings of one prompt of a batch, whose lists are split up."""

    def of(name: str, default: Any) -> Any:
        value = body.get(name, default)
        return value[place] if many and isinstance(value, list) else value

    rid = of("rid", "unnamed")
    return {
        "index": place,
        "many": many,
        "rid": f"{rid}_{place}" if many and not isinstance(body.get("rid"), list) else rid,
        "sampling_params": of("sampling_params", {}),
        "stream": body.get("stream", False),
        "return_logprob": of("return_logprob", False),
        "logprob_start_len": of("logprob_start_len", -1),
    }


def _common(left: list[int], right: tuple[int, ...]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def _logprob(token: int, known: bool) -> list[Any]:
    return [-0.1 - token % 13 / 7 if known else None, token, None]
