"""The SGLang backend against a fake server: what is asked, and what every fault comes to."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from random import Random
from socket import gethostname
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from bad_server import (
    BadServer,
    Fault,
    answer,
    cut,
    empty,
    events,
    grammar_error,
    half,
    hang,
    html,
    loris,
    reset,
    stall,
    status,
)

from tenter.runtime.backends.registry import open_replicas
from tenter.runtime.backends.sglang import Patience, SGLangBackend, connect, open_backends
from tenter.runtime.calls import CallId, Chunk, Request, Sampling, SessionId
from tenter.runtime.clock import now
from tenter.runtime.errors import (
    BackendUnavailable,
    CallFailed,
    InvalidConfig,
    InvalidInput,
    TryAgain,
)
from tenter.runtime.models import tiny_path
from tenter.runtime.tokenizer import HFTokenizer
from tenter.runtime.workflow import ModelSpec

PROMPT = tuple(range(100, 140))
QUICK = Patience(
    quiet_s=0.1,
    answer_s=0.1,
    first_retry_s=0.01,
    last_retry_s=0.05,
    abort_s=(0.02, 0.05, 0.1),
    leave_s=0.5,
)
TOKENIZER = HFTokenizer(tiny_path())


@pytest.fixture
async def server() -> AsyncIterator[BadServer]:
    async with BadServer(str(tiny_path())) as running:
        running.server_info = {"tokenizer_path": str(tiny_path()), "dtype": "float32"}
        running.eos_id = 2
        yield running


@pytest.fixture
async def backend(server: BadServer) -> AsyncIterator[SGLangBackend]:
    async with open_backends([server.url], patience=QUICK, random=Random(1)) as (opened,):
        yield opened


def request(call: str = "call", prompt: tuple[int, ...] = PROMPT, **fields: Any) -> Request:
    fields.setdefault("sampling", Sampling(max_tokens=20))
    return Request(CallId(call), prompt, **fields)


async def ask(backend: SGLangBackend, asked: Request) -> list[Chunk]:
    return [chunk async for chunk in backend.generate(asked)]


def sent(server: BadServer) -> list[dict[str, Any]]:
    return server.bodies.get("/generate", [])


def aborts(server: BadServer) -> list[str]:
    """The request ids that the server was asked to abort."""
    return [body["rid"] for body in server.bodies.get("/abort_request", [])]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# ---- answers -----------------------------------------------------------------------------------


async def test_an_answer_streamed_or_whole_is_the_same(
    server: BadServer, backend: SGLangBackend
) -> None:
    (whole,) = await ask(backend, request())
    pieces = await ask(backend, request(stream=True, chunk_tokens=3))
    assert [token for piece in pieces for token in piece.token_ids] == list(whole.token_ids)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert whole.finish == pieces[-1].finish == "stop"
    assert len(pieces) > 2
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(PROMPT)
    assert backend.failure is None


async def test_request_ids_are_of_one_length_and_never_used_twice(
    server: BadServer, backend: SGLangBackend
) -> None:
    await asyncio.gather(*(ask(backend, request(str(number))) for number in range(50)))
    rids = [body["rid"] for body in sent(server)]
    assert len(set(rids)) == 50
    assert {len(rid) for rid in rids} == {32}


async def test_calls_of_one_group_go_as_one_batch(
    server: BadServer, backend: SGLangBackend
) -> None:
    prompts = [(*PROMPT, number) for number in range(5)]
    alone = [await ask(backend, request("alone", prompt)) for prompt in prompts]
    before = len(sent(server))
    together = await asyncio.gather(
        *(ask(backend, request(f"{n}", p, group="g")) for n, p in enumerate(prompts)),
        ask(backend, request("other", group="h")),
    )
    bodies = sent(server)[before:]
    assert len(bodies) == 2
    assert sorted(map(len, (body["rid"] for body in bodies))) == [5, 32]
    texts = [["".join(c.text for c in chunks) for chunks in some] for some in (alone, together)]
    assert texts[1][:5] == texts[0]


async def test_a_refused_batch_falls_back_to_single_requests(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.next(status(400, message="no batches here"))
    answers = await asyncio.gather(
        *(ask(backend, request(str(n), (*PROMPT, n), group="g")) for n in range(3))
    )
    assert [chunks[-1].finish for chunks in answers] == ["stop"] * 3
    assert len(sent(server)) == 4


async def test_a_member_of_a_batch_ends_by_itself(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.token_s = 0.02
    tasks = [
        asyncio.create_task(ask(backend, request(str(n), (*PROMPT, n), group="g")))
        for n in range(3)
    ]
    await until(lambda: len(server.running) == 3)
    await backend.abort(CallId("1"))
    assert [(await task)[-1].finish for task in tasks] == ["stop", "abort", "stop"]
    assert len(set(server.aborted)) == 1


async def test_choices_are_one_prompt_then_one_batch(
    server: BadServer, backend: SGLangBackend
) -> None:
    choices = ((101, 2), (102, 103, 2), (104, 2))
    (chunk,) = await ask(backend, request(choices=choices))
    expected = [sum(-0.1 - token % 13 / 7 for token in choice) for choice in choices]
    assert chunk.choice_logprobs == pytest.approx(expected)
    assert chunk.finish == "stop"
    leader, rest = sent(server)
    assert leader["input_ids"] == [*PROMPT, *choices[0]]
    assert leader["sampling_params"]["max_new_tokens"] == 0
    assert len(rest["rid"]) == 2
    (one,) = await ask(backend, request(choices=choices[:1]))
    assert one.choice_logprobs == pytest.approx(expected[:1])


async def test_priority_is_sent_where_the_server_orders_by_it(server: BadServer) -> None:
    server.server_info |= {"enable_priority_scheduling": True, "disable_priority_preemption": True}
    async with open_backends([server.url], patience=QUICK) as (backend,):
        assert backend.capabilities.priorities
        await ask(backend, request(priority=1.0))
        await ask(backend, request(priority=2.0))
    first, second = (body["priority"] for body in sent(server))
    assert first > second


async def test_what_the_server_cannot_take_is_never_sent(
    server: BadServer, backend: SGLangBackend
) -> None:
    for bad in (request(prompt=()), request(prompt=(1, 10**9)), request(prompt=(1, -1))):
        with pytest.raises(CallFailed):
            await ask(backend, bad)
    assert sent(server) == []


# ---- faults ------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Fault, type[Exception], str]] = {
    "busy": (status(503, "2"), TryAgain, "503"),
    "too many": (status(429, "1.5"), TryAgain, "429"),
    "grammar": (grammar_error(), CallFailed, "grammar"),
    "key": (status(401), InvalidConfig, "api_key"),
    "reset": (reset(), TryAgain, "connection was reset"),
    "html": (html(), TryAgain, "html|JSON"),
    "empty": (empty(), TryAgain, "/generate"),
    "list": (answer(b"[]"), TryAgain, "not that of /generate"),
    "number": (answer(b'{"meta_info": 3}'), TryAgain, "not that of /generate"),
    "half json": (half(), TryAgain, "JSON"),
    "cut": (cut(), TryAgain, "cut off|lost"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_an_error_that_names_the_server(
    server: BadServer, backend: SGLangBackend, name: str
) -> None:
    fault, kind, words = FAULTS[name]
    server.next(fault)
    with pytest.raises(kind, match=words) as caught:
        await ask(backend, request())
    assert server.url in str(caught.value)
    if name == "busy":
        assert isinstance(caught.value, TryAgain)
        assert caught.value.after_s == 2.0
    assert (await ask(backend, request()))[-1].finish == "stop"


STREAM_FAULTS: dict[str, tuple[Fault, type[Exception]]] = {
    "busy": (status(503), TryAgain),
    "json": (answer(b"{}"), TryAgain),
    "half": (half(), TryAgain),
    "cut": (cut(), TryAgain),
    "no finish": (events(b'{"meta_info": {}}', b"[DONE]"), TryAgain),
    "refused": (events(b'{"error": {"message": "no", "code": 400}}', b"[DONE]"), CallFailed),
    "shape": (events(b'{"output_ids": "x"}', b"[DONE]"), TryAgain),
    "index": (events(b'{"meta_info": {}, "index": 7}', b"[DONE]"), TryAgain),
    "no events": (events(b"[DONE]"), TryAgain),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
async def test_a_broken_stream_is_never_taken_for_a_whole_one(
    server: BadServer, backend: SGLangBackend, name: str
) -> None:
    fault, kind = STREAM_FAULTS[name]
    server.next(fault)
    with pytest.raises(kind, match=server.url) as caught:
        await ask(backend, request(stream=True))
    assert isinstance(caught.value, TryAgain) == issubclass(kind, TryAgain)
    assert (await ask(backend, request(stream=True)))[-1].finish == "stop"


async def test_a_broken_batch_breaks_each_of_its_calls(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.next(events(b"[DONE]"))
    answers = await asyncio.gather(
        *(ask(backend, request(str(n), (*PROMPT, n), group="g")) for n in range(3)),
        return_exceptions=True,
    )
    assert [type(each) for each in answers] == [TryAgain] * 3


def piece(index: int, *tokens: int, **meta: Any) -> bytes:
    """An event of a batch's stream."""
    found = {"finish_reason": None, "completion_tokens": len(tokens)} | meta
    return json.dumps({"index": index, "output_ids": tokens, "meta_info": found}).encode()


async def test_a_batch_that_breaks_midway_begins_only_those_calls_anew_that_had_not_begun(
    server: BadServer, backend: SGLangBackend
) -> None:
    stop = {"type": "stop", "matched": 2}
    server.next(
        events(
            piece(0, 97, 98),
            piece(1, 97, 2, finish_reason=stop),
            b'{"error": {"message": "boom", "code": 400}}',
            b"[DONE]",
        )
    )
    begun, ended, fresh = await asyncio.gather(
        *(ask(backend, request(str(n), (*PROMPT, n), group="g", stream=True)) for n in range(3)),
        return_exceptions=True,
    )
    assert isinstance(begun, TryAgain)
    assert isinstance(ended, list)
    assert isinstance(fresh, list)
    assert [token for chunk in ended for token in chunk.token_ids] == [97, 2]
    alone = await ask(backend, request("alone", (*PROMPT, 2)))
    assert "".join(chunk.text for chunk in fresh) == alone[-1].text
    batch, again = sent(server)[:2]
    assert again["rid"] not in batch["rid"]
    await until(lambda: aborts(server) == [batch["rid"][0], batch["rid"][2]])


async def test_a_request_id_is_never_sent_twice(server: BadServer, backend: SGLangBackend) -> None:
    await ask(backend, request())  # leaves a connection behind
    seen: set[str] = set()

    def refuse(path: str, body: Any) -> Fault | None:
        if path != "/generate":
            return None
        if body["rid"] in seen:
            return status(400, message="Duplicate request ID detected")
        seen.add(body["rid"])
        return reset() if len(seen) == 1 else None

    server.choose = refuse
    with pytest.raises(TryAgain, match="reset"):
        await ask(backend, request())
    assert (await ask(backend, request()))[-1].finish == "stop"


SHORT_OF_TOKENS = {"output_ids": [97], "meta_info": {"finish_reason": {"type": "stop"}}}
ABORTED: dict[str, Fault] = {
    "cut": cut(),
    "half": half(),
    "html": html(),
    "reset": reset(),
    "500": status(500),
    "garbled": answer(json.dumps(SHORT_OF_TOKENS).encode()),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", ABORTED)
async def test_what_the_server_may_still_draw_is_aborted(
    server: BadServer, backend: SGLangBackend, name: str, streamed: bool
) -> None:
    server.next(ABORTED[name])
    server.next(status(500), path="/abort_request")  # which hides nothing
    with pytest.raises(TryAgain, match="/generate"):
        await ask(backend, request(stream=streamed))
    await until(lambda: aborts(server) == [sent(server)[0]["rid"]])


async def test_a_broken_batch_is_aborted_with_all_its_calls(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.next(cut(0.1))
    calls = (request(str(n), (*PROMPT, n), group="g") for n in range(3))
    await asyncio.gather(*(ask(backend, call) for call in calls), return_exceptions=True)
    await until(lambda: sorted(aborts(server)) == sorted(sent(server)[0]["rid"]))
    server.next(None, html())  # the rest of the choices
    with pytest.raises(TryAgain):
        await ask(backend, request(choices=((101, 2), (102, 2), (103, 2))))
    leader, rest = sent(server)[1:]
    await until(lambda: sorted(aborts(server)[3:]) == sorted([leader["rid"], *rest["rid"]]))


async def test_a_prompt_that_only_fills_the_cache_is_aborted_too(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.next(html(), status(503))
    for _ in range(2):
        with pytest.raises(TryAgain):
            await backend.warm(SessionId("prefix"), PROMPT)
    assert aborts(server) == [sent(server)[0]["rid"]]


@pytest.mark.parametrize("fault", [status(503), status(429), grammar_error()])
async def test_a_refused_call_costs_no_abort(
    server: BadServer, backend: SGLangBackend, fault: Fault
) -> None:
    server.next(fault)
    with pytest.raises(CallFailed):
        await ask(backend, request())
    assert (await ask(backend, request(stream=True)))[-1].finish == "stop"
    await asyncio.sleep(0.05)
    assert aborts(server) == []


async def test_aborts_are_sent_before_the_backend_is_left(server: BadServer) -> None:
    async with open_backends([server.url], patience=QUICK) as (backend,):
        server.next(half())
        with pytest.raises(TryAgain):
            await ask(backend, request())
    assert aborts(server) == [sent(server)[0]["rid"]]


async def test_an_abort_that_hangs_holds_up_neither_the_error_nor_the_leaving(
    server: BadServer,
) -> None:
    async with open_backends([server.url], patience=QUICK) as (backend,):
        server.next(half())
        server.next(hang(), path="/abort_request")
        with pytest.raises(TryAgain, match="JSON"):
            await ask(backend, request())
    assert len(aborts(server)) == 1


async def test_a_member_that_ends_early_is_aborted_while_its_batch_runs(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.answer_tokens, server.token_s = 100, 0.02
    (whole,) = await ask(backend, request(prompt=(*PROMPT, 0), sampling=Sampling(max_tokens=6)))
    first, second = await asyncio.gather(
        ask(
            backend,
            request(
                "0",
                (*PROMPT, 0),
                group="g",
                sampling=Sampling(max_tokens=20, stop=(whole.text[2:4],)),
            ),
        ),
        ask(backend, request("1", (*PROMPT, 1), group="g")),
    )
    assert (first[-1].text, second[-1].finish) == (whole.text[:2], "length")
    assert server.aborted == [sent(server)[1]["rid"][0]]


@pytest.mark.parametrize("name", ["sessions", "pins"])
async def test_a_hostile_token_ends_the_turn_of_its_session(server: BadServer, name: str) -> None:
    settings = {"enable_session_radix_cache": True, "radix_cache_backend": "tenter"}
    server.server_info |= dict([list(settings.items())[name == "pins"]])
    meta = {"finish_reason": {"type": "stop"}, "completion_tokens": 1}
    async with open_backends([server.url], patience=QUICK) as (backend,):
        ends: list[bool] = []
        backend.retention.end = lambda session, *, whole: ends.append(whole)
        for token in (1 << 33, -1, 10**6):
            hostile = {"output_ids": [token], "meta_info": meta}
            server.next(answer(json.dumps(hostile).encode()))
            with pytest.raises(TryAgain):
                await ask(backend, request(session=SessionId("agent")))
        assert ends == [False] * 3

        def refuse(session: SessionId, tokens: tuple[int, ...]) -> None:
            raise OverflowError

        backend.contexts.remember = refuse
        with pytest.raises(OverflowError):
            await ask(backend, request(session=SessionId("agent")))
        assert ends[3:] == [True]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_no_error_within_an_answer_shows_the_key(server: BadServer, streamed: bool) -> None:
    key = "sk-CANARY-" + "x1y2" * 10
    finish = {"type": "abort", "message": f"{'a ' * 240}{key}", "status_code": 400}
    error = {"message": finish["message"], "code": 400}
    told: list[Any] = [{"error": error}, {"error": key}]
    told += [{"meta_info": {"finish_reason": finish}}]
    async with open_backends([server.url], key=key, patience=QUICK) as (backend,):
        for one in map(json.dumps, told):
            server.next(events(one.encode(), b"[DONE]") if streamed else answer(one.encode()))
            with pytest.raises(CallFailed) as caught:
                await ask(backend, request(stream=streamed))
            assert "sk-C" not in str(caught.value)


async def test_no_more_calls_are_taken_than_there_are_connections(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenter.runtime.backends.http.connections", lambda: 16)
    server.server_info |= {"max_running_requests": 400}
    async with open_backends([server.url], patience=QUICK) as (backend,):
        assert backend.capabilities.max_running == 8


async def test_a_call_ends_soon_after_its_deadline(server: BadServer) -> None:
    server.next(hang(), hang(), stall(), stall(), loris(), loris())
    async with connect([server.url]) as (backend,):
        answers = await asyncio.gather(
            *(
                ask(backend, request(str(n), stream=n % 2 == 1, deadline_s=now() - 0.7))
                for n in range(6)
            ),
            return_exceptions=True,
        )
        assert [type(each) for each in answers] == [TryAgain] * 6
        assert all("took longer" in str(each) for each in answers)
        await until(lambda: server.requests["/abort_request"] == 6)


async def test_a_server_that_hangs_is_lost_with_all_its_calls(server: BadServer) -> None:
    async with open_backends([server.url], patience=QUICK, random=Random(1)) as (backend,):
        server.choose = lambda path, body: hang()
        answers = await asyncio.gather(
            *(ask(backend, request(str(n))) for n in range(3)), return_exceptions=True
        )
        assert [type(each) for each in answers] == [BackendUnavailable] * 3
        assert "hangs" in str(answers[0])
        assert server.url in (backend.failure or "")
        with pytest.raises(BackendUnavailable, match="hangs"):
            await ask(backend, request())
        server.choose = lambda path, body: None
        await backend.recover()
        assert (await ask(backend, request()))[-1].finish == "stop"


async def test_a_slow_call_is_no_hung_server(server: BadServer, backend: SGLangBackend) -> None:
    server.token_s = 0.1
    assert (await ask(backend, request()))[-1].finish == "stop"
    assert server.requests["/v1/loads"] > 0


# ---- aborts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_abort_ends_the_stream_and_the_work(
    server: BadServer, backend: SGLangBackend, streamed: bool
) -> None:
    server.token_s = 0.05
    task = asyncio.create_task(ask(backend, request(stream=streamed)))
    await until(lambda: bool(server.running))
    await backend.abort(CallId("call"))
    assert (await task)[-1].finish == "abort"
    assert len(set(server.aborted)) == 1
    assert not server.running
    await backend.abort(CallId("unknown"))


async def test_leaving_the_iterator_early_aborts(server: BadServer, backend: SGLangBackend) -> None:
    server.token_s = 0.02
    async with aclosing(backend.generate(request(stream=True))) as chunks:
        async for _ in chunks:
            break
    await until(lambda: len(set(server.aborted)) == 1 and not server.running)


async def test_cancelling_the_caller_aborts(server: BadServer, backend: SGLangBackend) -> None:
    server.token_s = 0.05
    task = asyncio.create_task(ask(backend, request()))
    await until(lambda: bool(server.running))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: len(set(server.aborted)) == 1 and not server.running)


async def test_an_abort_that_overtakes_its_request_is_repeated(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.token_s = 0.05
    server.next(answer(b""), path="/abort_request")  # as if it came too early
    task = asyncio.create_task(ask(backend, request()))
    await until(lambda: bool(server.running))
    await backend.abort(CallId("call"))
    assert (await task)[-1].finish == "abort"
    assert server.requests["/abort_request"] == 2


async def test_a_server_that_ignores_aborts_is_left_by_closing_the_connection(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.token_s = 10.0
    server.next(*[answer(b"")] * 9, path="/abort_request")
    task = asyncio.create_task(ask(backend, request()))
    await until(lambda: bool(server.running))
    await backend.abort(CallId("call"))
    assert (await task)[-1].finish == "abort"
    await until(lambda: server.disconnected == 1)


async def test_a_call_that_was_not_sent_yet_is_never_sent(
    server: BadServer, backend: SGLangBackend
) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(ask(backend, request(group="g")))
        tasks.create_task(backend.abort(CallId("call")))
    assert asked.result()[-1].finish == "abort"
    await asyncio.sleep(0.05)
    assert sent(server) == []


async def test_our_own_stop_ends_the_servers_work(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.token_s = 0.02
    (whole,) = await ask(backend, request())
    stop = whole.text[3:5]
    server.answer_tokens = 100
    chunks = await ask(backend, request(stream=True, sampling=Sampling(stop=(stop,))))
    assert "".join(chunk.text for chunk in chunks) == whole.text[: whole.text.index(stop)]
    assert chunks[-1].finish == "stop"
    await until(lambda: not server.running)


async def test_leaving_the_backend_aborts_what_runs(server: BadServer) -> None:
    server.token_s = 0.05
    async with open_backends([server.url], patience=QUICK) as (backend,):
        tasks = [asyncio.create_task(ask(backend, request(str(n)))) for n in range(5)]
        await until(lambda: len(server.running) == 5)
    assert [(await task)[-1].finish for task in tasks] == ["abort"] * 5
    assert not server.running


@pytest.mark.slow
async def test_cancels_at_any_moment_leave_nothing(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.token_s = 0.005
    random = Random(7)
    before = asyncio.all_tasks()
    for number in range(100):
        grouped = "g" if number % 3 == 0 else None
        tasks = [
            asyncio.create_task(ask(backend, request(f"{number}.{n}", stream=n > 0, group=grouped)))
            for n in range(2)
        ]
        await asyncio.sleep(random.uniform(0, 0.02))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: not server.running)
    gc.collect()

    def ours() -> set[Any]:
        return {task for task in asyncio.all_tasks() - before if "backends/sglang" in repr(task)}

    await until(lambda: len(ours()) <= 1)  # the watch


# ---- a server that goes and comes back ---------------------------------------------------------


async def test_a_server_that_dies_is_lost_and_used_again(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.token_s = 0.05
    task = asyncio.create_task(ask(backend, request(stream=True)))
    await until(lambda: bool(server.running))
    await server.stop()
    with pytest.raises(BackendUnavailable, match=server.url):
        await task
    assert backend.failure
    recovery = asyncio.create_task(backend.recover())
    await asyncio.sleep(0.1)
    assert not recovery.done()
    server.server_info |= {"max_running_requests": 3}
    await server.start()
    await recovery
    assert backend.failure is None
    assert backend.capabilities.max_running == 3
    assert (await ask(backend, request()))[-1].finish == "stop"


async def test_recovery_waits_for_a_token_really_drawn(
    server: BadServer, backend: SGLangBackend
) -> None:
    server.next(status(503), status(503))
    await backend.recover()
    assert len(sent(server)) == 3


async def test_a_swapped_model_is_never_used(server: BadServer, backend: SGLangBackend) -> None:
    before = server.model
    server.model = "another-model"
    with pytest.raises(BackendUnavailable, match=f"another-model.*{before}"):
        await backend.recover()


# ---- sessions ----------------------------------------------------------------------------------


async def test_a_session_is_named_and_closed_in_the_end(server: BadServer) -> None:
    server.server_info |= {"enable_session_radix_cache": True}
    session = SessionId("agent")
    server.next(*[answer(b"")] * 5, path="/close_session")
    async with open_backends([server.url], patience=QUICK) as (backend,):
        assert backend.capabilities.retention == "sessions"
        await ask(backend, request(session=session))
        await backend.retain(session, None)
        await ask(backend, request(prompt=(*PROMPT, 7), session=session))
        assert backend.contexts.get(session) is not None
        await backend.warm(SessionId("prefix"), PROMPT)
        await backend.release(session)
        assert backend.contexts.get(session) is None
    named = [body.get("session_id") for body in sent(server)]
    assert named[0] == named[1] != named[2]
    assert {body["session_id"] for body in server.bodies["/close_session"]} == set(named)


async def test_pins_travel_with_the_requests(server: BadServer) -> None:
    server.server_info |= {"radix_cache_backend": "tenter"}
    session = SessionId("agent")
    async with open_backends([server.url], patience=QUICK) as (backend,):
        assert backend.capabilities.retention == "pins"
        calls = (request("a", session=session, group="g"), request("b", group="g"))
        await asyncio.gather(*(ask(backend, each) for each in calls))
        await backend.retain(session, now() + 5.0)
        await ask(backend, request(session=SessionId("other")))
        await backend.release(session)
        await until(lambda: len(sent(server)) == 3)
    batch, turn, carrier = sent(server)[:3]
    kinds = [
        {action["action_type"] for action in hints["actions"]}
        for hints in (*batch["kv_hints"], turn["kv_hints"], carrier["kv_hints"])
    ]
    assert kinds == [
        {"tenter.clock", "kv.retain"},
        {"tenter.clock"},
        {"tenter.clock", "tenter.extend", "kv.retain"},
        {"tenter.clock", "kv.deref"},
    ]


async def test_a_failed_hint_is_logged_and_no_more(
    server: BadServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.server_info |= {"radix_cache_backend": "tenter"}
    async with open_backends([server.url], patience=QUICK) as (backend,):
        await ask(backend, request(session=SessionId("agent")))
        server.next(status(503))
        with caplog.at_level(logging.WARNING):
            await backend.retain(SessionId("agent"), None)
            await until(lambda: "about the cache failed" in caplog.text)


# ---- connecting --------------------------------------------------------------------------------


async def test_a_replica_that_is_away_may_come_back(server: BadServer) -> None:
    async with BadServer(server.model) as other:
        other.server_info, other.eos_id = server.server_info, 2
    async with open_backends([other.url, server.url], patience=QUICK, random=Random(1)) as backends:
        away, there = backends
        assert there.failure is None
        assert other.url in (away.failure or "")
        assert away.capabilities.place == f"{gethostname()} {other.url}"  # no other machine's
        assert replace(away.capabilities, place=there.capabilities.place) == there.capabilities
        await other.start()
        await away.recover()
        assert (await ask(away, request()))[-1].finish == "stop"
        await other.stop()


async def test_nobody_answers(server: BadServer) -> None:
    await server.stop()
    with pytest.raises(BackendUnavailable, match=rf"{server.url}[\s\S]*launch_server"):
        async with connect([server.url]):
            pass
    await server.start()


async def test_replicas_must_serve_one_model(server: BadServer) -> None:
    async with BadServer("another-model") as other:
        with pytest.raises(InvalidConfig, match=f"{server.url}.*another-model"):
            async with connect([server.url, other.url]):
                pass


async def test_each_data_parallel_rank_is_a_backend(server: BadServer) -> None:
    server.server_info |= {"dp_size": 2}
    async with open_backends([server.url], patience=QUICK) as backends:
        assert len(backends) == 2
        for backend in backends:
            await ask(backend, request())
    assert [body["routed_dp_rank"] for body in sent(server)] == [0, 1]


async def test_decisions_about_pins_go_to_the_rank_that_holds_them(server: BadServer) -> None:
    server.server_info |= {"dp_size": 2, "radix_cache_backend": "tenter"}
    agent = SessionId("agent")
    async with open_backends([server.url], patience=QUICK) as (_, second):
        await ask(second, request(session=agent))
        for decide in (second.retain(agent, None), second.release(agent)):
            before = len(sent(server))
            await decide
            await until(lambda before=before: len(sent(server)) > before)
    kinds = [[a["action_type"] for a in body["kv_hints"]["actions"]][-1] for body in sent(server)]
    assert kinds == ["kv.retain", "tenter.extend", "kv.deref"]
    assert [body["routed_dp_rank"] for body in sent(server)] == [1, 1, 1]


async def test_every_call_of_a_batch_has_its_own_envelope(server: BadServer) -> None:
    server.server_info |= {"dp_size": 2, "radix_cache_backend": "tenter"}
    async with open_backends([server.url], patience=QUICK) as (_, second):
        sessions = (SessionId("a"), None, SessionId("b"))
        asked = [
            request(str(n), (*PROMPT, n), group="g", session=session)
            for n, session in enumerate(sessions)
        ]
        await asyncio.gather(*(ask(second, one) for one in asked))
    batch = sent(server)[0]
    kinds = [
        [action["action_type"] for action in envelope["actions"]] for envelope in batch["kv_hints"]
    ]
    pinned = ["tenter.clock", "kv.retain"]
    assert kinds == [pinned, ["tenter.clock"], pinned]
    assert len({envelope["message_id"] for envelope in batch["kv_hints"]}) == 3
    assert batch["routed_dp_rank"] == 1


EVENTS: dict[str, Any] = {
    "publisher": "zmq",
    "endpoint_host": "*",
    "endpoint_port_base": 5557,
    "topic": "kv",
    "block_size": 16,
}


async def test_what_the_server_evicts_is_heard_where_it_is_published(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, str]] = []

    async def evictions(endpoint: str, topic: str) -> AsyncIterator[tuple[int, ...]]:
        heard.append((endpoint, topic))
        yield (1, 2)

    monkeypatch.setattr("tenter.runtime.backends.sglang.backend.evictions", evictions)
    server.server_info |= {"dp_size": 2, "kv_events": EVENTS}
    async with open_backends([server.url], patience=QUICK) as backends:
        for backend in backends:
            gone = backend.evictions()
            assert gone is not None
            assert [blocks async for blocks in gone] == [(1, 2)]
    assert heard == [("tcp://127.0.0.1:5557", "kv"), ("tcp://127.0.0.1:5558", "kv")]


@pytest.mark.parametrize("events", [None, EVENTS | {"block_size": 1}, {"publisher": "zmq"}])
async def test_a_server_whose_evictions_cannot_be_followed_tells_none(
    server: BadServer, events: Any
) -> None:
    server.server_info |= {"kv_events": events}
    async with open_backends([server.url], patience=QUICK) as (backend,):
        assert backend.evictions() is None


async def test_settings_that_do_not_fit_are_told(server: BadServer) -> None:
    with pytest.raises(InvalidConfig, match="--enable-session-radix-cache"):
        async with connect([server.url], retention="sessions"):
            pass
    with pytest.raises(InvalidInput, match="tokenizer="):
        async with connect([server.url], tokenizer="/no/such/folder"):
            pass
    with pytest.raises(InvalidConfig, match="url"):
        async with connect([]):
            pass


async def test_the_options_of_a_model_are_those_that_a_user_sets() -> None:
    options = "url, tokenizer, retention, api_key, max_running, kv_tokens"
    spec = ModelSpec(backend="sglang", options={"url": "http://127.0.0.1:9", "patience": 1})
    with pytest.raises(InvalidConfig, match=f"no option 'patience'; it has {options}$"):
        async with open_replicas(spec):
            pass


async def test_a_tokenizer_may_come_from_the_hub(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    fetched: list[str] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        fetched.append(name)
        if name == "org/gone":
            raise OSError("the hub is offline\nand more")
        return str(tiny_path())

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    server.server_info |= {"tokenizer_path": "org/model"}
    server.model = "org/model"
    server.next(answer(b'{"tokenizer_path": "org/model", "model_path": "m"}'), path="/model_info")
    async with connect([server.url]) as (backend,):
        assert (await ask(backend, request()))[-1].finish == "stop"
    with pytest.raises(InvalidInput, match="the hub is offline; set tokenizer=FOLDER"):
        async with connect([server.url], tokenizer="org/gone"):
            pass
    assert fetched == ["org/model", "org/gone"]


async def test_another_models_tokenizer_is_refused(server: BadServer) -> None:
    server.next(answer(b'{"tokens": [1, 2, 3]}'), path="/tokenize")
    with pytest.raises(InvalidConfig, match="tokenizer="):
        async with connect([server.url], tokenizer=tiny_path()):
            pass


async def test_a_key_is_named_sent_and_never_told(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "sk-secret-123"
    monkeypatch.setenv("WRONG_KEY", "sk-wrong-456")
    with pytest.raises(InvalidConfig, match="api_key") as caught:
        async with connect([server.url], api_key="WRONG_KEY"):
            pass
    assert "sk-wrong-456" not in str(caught.value)
    monkeypatch.setenv("SERVER_KEY", "sk-secret-123")
    async with connect([server.url], api_key="SERVER_KEY") as (backend,):
        assert (await ask(backend, request()))[-1].finish == "stop"
        assert "sk-secret" not in repr(backend.info)
    with pytest.raises(InvalidConfig, match="environment variable") as caught:
        connect([server.url], api_key="sk-secret-123")
    assert "sk-secret" not in str(caught.value)
