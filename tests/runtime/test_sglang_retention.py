"""The retentions on virtual time: what they tell a server, when, and that they tell it the end."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from tenter.runtime.backends.sglang.info import ServerInfo
from tenter.runtime.backends.sglang.marks import SESSION_CLASS, Marks
from tenter.runtime.backends.sglang.pins import Pins
from tenter.runtime.backends.sglang.references import References
from tenter.runtime.backends.sglang.retention import Contexts
from tenter.runtime.backends.sglang.touches import COMPUTED_TOKENS, MOST_TOUCHES, Touches
from tenter.runtime.calls import Load, SessionId, Usage
from tenter.runtime.clock import VirtualLoop, now

A, B = SessionId("a"), SessionId("b")
TOKENS = tuple(range(100))
WALL_S = 1_800_000_000.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Told:
    """A server that notes what it is told (`retention.Server`)."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.contexts = Contexts(1000)
        self.prefills: list[tuple[tuple[int, ...], dict[str, Any]]] = []
        self.posts: list[tuple[float, str, Any]] = []
        self.computed: float | None = 0.0
        self.cached_tokens = 10**6
        self._tasks = tasks

    def now(self) -> float:
        return now()

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        return self._tasks.create_task(work)

    def scope(self, name: str) -> str:
        return f"scope of {name}"

    async def prefill(self, token_ids: tuple[int, ...], fields: dict[str, Any]) -> Usage:
        self.prefills.append((token_ids, fields))
        return Usage(len(token_ids), min(self.cached_tokens, len(token_ids)))

    async def post(self, path: str, body: object) -> None:
        self.posts.append((now(), path, body))

    async def load(self) -> Load:
        counters = {} if self.computed is None else {COMPUTED_TOKENS: self.computed}
        return Load(counters=counters)


@asynccontextmanager
async def told() -> AsyncIterator[Told]:
    async with asyncio.TaskGroup() as tasks:
        yield Told(tasks)


def actions(fields: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [
        action["payload"]
        for action in fields["kv_hints"]["actions"]
        if action["action_type"] == kind
    ]


def turn(retention: Any, server: Told, session: SessionId, whole: bool = True) -> dict[str, Any]:
    retention.begin(session)
    fields = retention.fields(session)
    server.contexts.remember(session, TOKENS)
    retention.end(session, whole=whole)
    return fields


# ---- pins --------------------------------------------------------------------------------------


async def test_every_request_tells_the_time_and_every_turn_pins_itself() -> None:
    async with told() as server:
        pins = Pins(server, wall_s=WALL_S)
        await asyncio.sleep(5.0)
        plain = pins.fields(None)
        assert actions(plain, "tenter.clock") == [{"now_s": WALL_S + 5.0}]
        assert not actions(plain, "kv.retain")
        (retain,) = actions(turn(pins, server, A), "kv.retain")
        assert retain["scope"] == "scope of a"
        (directive,) = retain["directives"]
        assert directive["covers_output"]
        assert (directive["duration"], directive["priority"]) == (30.0, 1)


async def test_a_decision_rides_on_the_next_request() -> None:
    async with told() as server:
        pins = Pins(server, wall_s=WALL_S)
        turn(pins, server, A)
        await pins.retain(A, now() + 30.0)
        (extend,) = actions(pins.fields(None), "tenter.extend")
        assert extend == {
            "now_s": WALL_S,
            "scope": "scope of a",
            "duration": 30.0,
            "priority": 50,
        }
        await asyncio.sleep(1.0)
        assert server.prefills == []  # nothing was left to be carried


async def test_a_decision_that_no_request_takes_along_is_carried() -> None:
    async with told() as server:
        pins = Pins(server)
        turn(pins, server, A)
        await pins.retain(A, None)
        await asyncio.sleep(0.1)
        ((prompt, fields),) = server.prefills
        assert len(prompt) == 1
        assert actions(fields, "tenter.extend")[0]["duration"] is None
        await pins.release(A)
        await asyncio.sleep(0.1)
        assert actions(server.prefills[-1][1], "kv.deref")[0]["scope"] == "scope of a"


async def test_many_decisions_are_split_over_requests() -> None:
    async with told() as server:
        pins = Pins(server)
        for number in range(40):
            turn(pins, server, SessionId(str(number)))
        for number in range(40):
            await pins.retain(SessionId(str(number)), None)
        await asyncio.sleep(0.1)
        assert len(server.prefills) == 3
        assert all(len(f["kv_hints"]["actions"]) <= 16 for _, f in server.prefills)
        assert sum(len(actions(f, "tenter.extend")) for _, f in server.prefills) == 40


async def test_after_the_grace_the_whole_context_is_sent_again() -> None:
    async with told() as server:
        pins = Pins(server)
        turn(pins, server, A)
        await asyncio.sleep(3.0)
        await pins.retain(A, now() + 10.0)
        ((prompt, fields),) = server.prefills
        assert prompt == TOKENS
        (retain,) = actions(fields, "kv.retain")
        assert retain["directives"][0]["duration"] == 10.0
        await pins.retain(B, None)  # of which nothing is known
        assert len(server.prefills) == 1


async def test_a_pin_that_nobody_asked_for_is_given_back_with_its_session() -> None:
    async with told() as server:
        pins = Pins(server)
        turn(pins, server, A)
        await asyncio.sleep(20.0)
        await pins.release(A)
        assert actions(pins.fields(None), "kv.deref")[0]["scope"] == "scope of a"


async def test_a_pin_asked_for_during_a_turn_holds_what_the_turn_leaves() -> None:
    async with told() as server:
        pins = Pins(server)
        pins.begin(A)
        await pins.retain(A, 60.0)
        assert not actions(pins.fields(A), "tenter.extend")
        pins.end(A, whole=True)
        assert actions(pins.fields(None), "tenter.extend")[0]["duration"] == 60.0


async def test_a_turn_uses_up_the_pin_before_it() -> None:
    async with told() as server:
        pins = Pins(server)
        turn(pins, server, A)
        await pins.retain(A, None)
        turn(pins, server, A)
        await asyncio.sleep(3.0)
        await pins.retain(A, None)
        assert server.prefills[-1][0] == TOKENS  # the new pin had a grace only


async def test_a_shared_prefix_is_dearer() -> None:
    async with told() as server:
        pins = Pins(server)
        pins.begin(A)
        pins.fields(A, shared=True)
        pins.end(A, whole=True)
        turn(pins, server, B)
        for session in (A, B):
            await pins.retain(session, None)
        prefix, own = actions(pins.fields(None), "tenter.extend")
        assert prefix["priority"] > own["priority"] > 1


async def test_closing_gives_all_pins_back() -> None:
    async with told() as server:
        pins = Pins(server)
        for number in range(20):
            turn(pins, server, SessionId(str(number)))
            await pins.retain(SessionId(str(number)), None)
        pins.fields(None), pins.fields(None)
        await pins.close()
        freed = [a["scope"] for _, f in server.prefills for a in actions(f, "kv.deref")]
        assert len(set(freed)) == 20


# ---- session references ------------------------------------------------------------------------


def closed(server: Told) -> list[tuple[float, str]]:
    assert all(path == "/close_session" for _, path, _ in server.posts)
    return [(at_s, body["session_id"]) for at_s, _, body in server.posts]


async def test_a_session_is_closed_soon_after_a_turn_that_no_pin_follows() -> None:
    async with told() as server:
        references = References(server)
        name = turn(references, server, A)["session_id"]
        assert references.fields(None) == {}
        await asyncio.sleep(10.0)
        assert closed(server) == [(2.0, name)]


async def test_a_pin_moves_the_end_and_a_release_ends_it() -> None:
    async with told() as server:
        references = References(server)
        name = turn(references, server, A)["session_id"]
        await references.retain(A, 20.0)
        other = turn(references, server, B)["session_id"]
        await references.retain(B, None)
        await asyncio.sleep(50.0)
        assert closed(server) == [(20.0, name)]
        await references.release(B)
        await asyncio.sleep(0.1)
        assert closed(server)[1:] == [(50.0, other)]


async def test_a_turn_stops_the_timer_and_the_next_session_has_another_name() -> None:
    async with told() as server:
        references = References(server)
        first = turn(references, server, A)["session_id"]
        await asyncio.sleep(1.0)
        references.begin(A)
        assert references.fields(A)["session_id"] == first
        await asyncio.sleep(60.0)
        assert closed(server) == []
        references.end(A, whole=True)
        await asyncio.sleep(3.0)
        assert closed(server) == [(63.0, first)]
        assert turn(references, server, A)["session_id"] != first


async def test_a_session_that_was_closed_is_computed_and_named_again() -> None:
    async with told() as server:
        references = References(server)
        turn(references, server, A)
        await asyncio.sleep(3.0)
        await references.retain(A, now() + 5.0)
        ((prompt, fields),) = server.prefills
        assert prompt == TOKENS
        await asyncio.sleep(10.0)
        assert closed(server)[1] == (8.0, fields["session_id"])


async def test_a_pin_asked_for_during_a_turn_counts_from_its_end() -> None:
    async with told() as server:
        references = References(server)
        references.begin(A)
        name = references.fields(A)["session_id"]
        await references.retain(A, 30.0)
        references.end(A, whole=True)
        await asyncio.sleep(60.0)
        assert closed(server) == [(30.0, name)]


async def test_closing_closes_every_session() -> None:
    async with told() as server:
        references = References(server)
        names = {turn(references, server, session)["session_id"] for session in (A, B)}
        await references.retain(A, None)
        await references.close()
        assert {name for _, name in closed(server)} == names


# ---- marks and touches -------------------------------------------------------------------------


def test_sessions_leave_kv_of_a_higher_class_unless_the_server_schedules_by_it() -> None:
    assert Marks("priority", scheduled=False).fields(A) == {"priority": SESSION_CLASS}
    assert Marks("priority", scheduled=False).fields(None) == {}
    assert Marks("priority", scheduled=True).fields(A) == {}
    assert Marks("none", scheduled=True).batches


def touches(server: Told) -> Touches:
    return Touches(server, ServerInfo(max_total_num_tokens=1000))


async def test_a_prefix_is_touched_only_when_traffic_may_push_it_out() -> None:
    async with told() as server:
        kept = touches(server)
        turn(kept, server, A)
        await kept.retain(A, None)
        await asyncio.sleep(30.0)
        assert server.prefills == []
        server.computed = 600.0
        await asyncio.sleep(5.0)
        assert [prompt for prompt, _ in server.prefills] == [TOKENS]
        server.computed = 900.0
        await asyncio.sleep(5.0)
        assert len(server.prefills) == 1
        await kept.release(A)
        server.computed = 9000.0
        await asyncio.sleep(5.0)
        assert len(server.prefills) == 1


async def test_touches_end_with_the_promise_the_next_turn_or_the_first_loss() -> None:
    async with told() as server:
        kept = touches(server)
        for session in (A, B):
            turn(kept, server, session)
        await kept.retain(A, now() + 3.0)
        await kept.retain(B, None)
        await asyncio.sleep(4.0)
        kept.begin(B)
        server.computed = 5000.0
        await asyncio.sleep(4.0)
        assert server.prefills == []
        await kept.retain(B, None)
        await asyncio.sleep(2.0)
        server.cached_tokens = 10
        for _ in range(3):
            server.computed += 5000.0
            await asyncio.sleep(2.0)
        assert (kept.touches, kept.lost) == (1, 1)


async def test_touches_of_one_promise_are_bounded() -> None:
    async with told() as server:
        kept = touches(server)
        turn(kept, server, A)
        await kept.retain(A, None)
        for _ in range(40):
            server.computed = (server.computed or 0.0) + 1000.0
            await asyncio.sleep(2.0)
        assert kept.touches == MOST_TOUCHES


async def test_a_server_that_does_not_tell_its_traffic_is_not_touched() -> None:
    async with told() as server:
        server.computed = None
        kept = touches(server)
        turn(kept, server, A)
        await kept.retain(A, None)
        await asyncio.sleep(60.0)
        assert server.prefills == []


# ---- contexts ----------------------------------------------------------------------------------


def test_the_tokens_of_sessions_are_bounded() -> None:
    contexts = Contexts(250)
    for session in (A, B, SessionId("c")):
        contexts.remember(session, TOKENS)
    assert contexts.get(A) is None
    assert contexts.get(B) == TOKENS
    contexts.remember(B, TOKENS[:10])
    assert contexts.tokens == 110
    contexts.remember(A, tuple(range(300)))  # more than all may have
    assert (len(contexts), contexts.tokens) == (0, 0)
    contexts.forget(B)
