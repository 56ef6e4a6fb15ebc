"""The retentions on virtual time: what they tell a server, when, and that they tell it the end."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from tenter.runtime.backends.sglang.decisions import LAST_RETRY_S, MAX_WAITING
from tenter.runtime.backends.sglang.info import ServerInfo
from tenter.runtime.backends.sglang.marks import SESSION_CLASS, Marks
from tenter.runtime.backends.sglang.pins import Pins
from tenter.runtime.backends.sglang.references import References
from tenter.runtime.backends.sglang.retention import Contexts
from tenter.runtime.backends.sglang.touches import COMPUTED_TOKENS, MOST_TOUCHES, Touches
from tenter.runtime.calls import Load, SessionId, Usage
from tenter.runtime.clock import VirtualLoop, now
from tenter.runtime.errors import BackendUnavailable, TenterError, TryAgain

A, B = SessionId("a"), SessionId("b")
TOKENS = tuple(range(100))
WALL_S = 1_800_000_000.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Told:
    """A server that notes what it is told (`retention.Server`), and fails until `bad_until_s`."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.contexts = Contexts(1000)
        self.prefills: list[tuple[tuple[int, ...], dict[str, Any]]] = []
        self.posts: list[tuple[float, str, Any]] = []
        self.computed: float | None = 0.0
        self.cached_tokens = 10**6
        self.bad_until_s = 0.0
        self.prefill_s = 0.0
        self.tried_s: list[float] = []
        self._tasks = tasks

    def now(self) -> float:
        return now()

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        return self._tasks.create_task(self._guard(work))

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        with suppress(TenterError, RuntimeError):
            await work

    def _answer(self) -> None:
        self.tried_s.append(now())
        if now() < self.bad_until_s:
            raise TryAgain("503")

    def scope(self, name: str) -> str:
        return f"scope of {name}"

    async def prefill(self, token_ids: tuple[int, ...], fields: dict[str, Any]) -> Usage:
        await asyncio.sleep(self.prefill_s)
        self._answer()
        self.prefills.append((token_ids, fields))
        return Usage(len(token_ids), min(self.cached_tokens, len(token_ids)))

    async def post(self, path: str, body: object) -> None:
        self._answer()
        self.posts.append((now(), path, body))

    async def load(self) -> Load:
        self._answer()
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


async def test_a_decision_rides_on_the_next_turn() -> None:
    async with told() as server:
        pins = Pins(server, wall_s=WALL_S)
        turn(pins, server, A)
        await pins.retain(A, now() + 30.0)
        assert not actions(pins.fields(None), "tenter.extend")  # nobody hears what becomes of it
        (extend,) = actions(turn(pins, server, B), "tenter.extend")
        assert extend == {
            "now_s": WALL_S,
            "scope": "scope of a",
            "duration": 30.0,
            "priority": 50,
        }
        await asyncio.sleep(1.0)
        assert server.prefills == []  # nothing was left to be carried


async def test_a_decision_whose_turn_fails_is_told_again_as_of_then() -> None:
    async with told() as server:
        pins = Pins(server, wall_s=WALL_S)
        turn(pins, server, A)
        await pins.retain(A, now() + 30.0)
        pins.begin(B)
        assert actions(pins.fields(B), "tenter.extend")
        await asyncio.sleep(4.0)
        assert server.prefills == []  # it may still arrive
        pins.end(B, whole=False)
        await asyncio.sleep(1.0)
        ((_, fields),) = server.prefills
        (extend,) = actions(fields, "tenter.extend")
        assert extend["now_s"] == WALL_S  # when it was made: a newer word counts
        assert extend["duration"] == 30.0 - 4.25


async def test_a_batch_that_is_refused_loses_no_decision() -> None:
    async with told() as server:
        pins = Pins(server)
        turn(pins, server, A)
        await pins.retain(A, None)
        pins.begin(B)
        assert actions(pins.fields(B), "tenter.extend")
        assert actions(pins.fields(B), "tenter.extend")  # alone, after the batch
        pins.end(B, whole=True)
        await asyncio.sleep(30.0)
        assert server.prefills == []


async def test_what_a_failed_request_was_to_bring_is_brought_later_and_later() -> None:
    async with told() as server:
        pins = Pins(server)
        turn(pins, server, A)
        server.bad_until_s = 60.0
        await pins.retain(A, None)
        await asyncio.sleep(5.0)
        await pins.release(A)  # in place of the extension
        await asyncio.sleep(80.0)
        ((_, fields),) = server.prefills
        assert not actions(fields, "tenter.extend")
        assert actions(fields, "kv.deref") == [actions(fields, "kv.deref")[0]]
        assert len(server.tried_s) < 15
        assert 60.0 < server.tried_s[-1] <= 60.0 + LAST_RETRY_S


async def test_an_outage_costs_one_request_at_a_time_whatever_waits() -> None:
    async with told() as server:
        pins = Pins(server)
        sessions = [SessionId(str(number)) for number in range(200)]
        for session in sessions:
            turn(pins, server, session)
        for session in sessions:
            await pins.retain(session, None)
        server.bad_until_s = 30.0
        await asyncio.sleep(29.0)
        assert len(server.tried_s) < 15 + 200 / 14
        await asyncio.sleep(20.0)
        told_of = [a["scope"] for _, f in server.prefills for a in actions(f, "tenter.extend")]
        assert sorted(told_of) == sorted(f"scope of {session}" for session in sessions)


async def test_decisions_that_wait_are_bounded() -> None:
    async with told() as server:
        pins = Pins(server)
        sessions = [SessionId(str(number)) for number in range(MAX_WAITING + 50)]
        for session in sessions:
            turn(pins, server, session)
        for session in sessions:
            await pins.retain(session, None)
        await asyncio.sleep(1.0)
        found = sum(len(actions(fields, "tenter.extend")) for _, fields in server.prefills)
        assert found == MAX_WAITING


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
        assert actions(pins.fields(B), "kv.deref")[0]["scope"] == "scope of a"


@pytest.mark.parametrize("kind", [Pins, References])
async def test_a_pin_that_comes_too_late_is_none(kind: type[Pins | References]) -> None:
    async with told() as server:
        kept = kind(server)
        turn(kept, server, A)
        await asyncio.sleep(40.0)
        await kept.retain(A, now() - 1.0)
        kept.begin(A)
        await kept.retain(A, None)  # of the pause before this turn
        kept.fields(A)
        kept.end(A, whole=True)
        await asyncio.sleep(0.5)
        assert server.prefills == []
        await asyncio.sleep(60.0)
        assert len(server.posts) == 2 * (kind is References)  # closed after each turn


async def test_a_turn_that_begins_while_a_pin_is_renewed_has_its_own() -> None:
    async with told() as server:
        pins = Pins(server)
        turn(pins, server, A)
        await asyncio.sleep(3.0)
        server.prefill_s = 1.0
        renewal = asyncio.ensure_future(pins.retain(A, None))
        await asyncio.sleep(0.5)
        turn(pins, server, A)
        await renewal
        await asyncio.sleep(3.0)
        await pins.retain(A, None)
        assert len(server.prefills) == 2  # the turn's pin had a grace only


async def test_a_renewal_that_fails_is_not_relied_on_but_given_back() -> None:
    async with told() as server:
        pins = Pins(server)
        turn(pins, server, A)
        await asyncio.sleep(3.0)
        server.bad_until_s = now() + 1.0
        with pytest.raises(TryAgain):
            await pins.retain(A, None)
        await asyncio.sleep(2.0)
        await pins.retain(A, None)
        assert [prompt for prompt, _ in server.prefills] == [TOKENS]
        server.bad_until_s = now() + 1.0
        turn(pins, server, B)
        await asyncio.sleep(3.0)
        await pins.release(A)
        await asyncio.sleep(1.0)
        assert actions(server.prefills[-1][1], "kv.deref")


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
        prefix, own = actions(pins.fields(SessionId("c")), "tenter.extend")
        assert prefix["priority"] > own["priority"] > 1


async def test_closing_gives_all_pins_back() -> None:
    async with told() as server:
        pins = Pins(server)
        for number in range(20):
            turn(pins, server, SessionId(str(number)))
            await pins.retain(SessionId(str(number)), None)
        pins.begin(A)
        pins.fields(A)
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


async def test_a_session_is_opened_again_by_one_of_a_pin_and_a_turn() -> None:
    async with told() as server:
        references = References(server)
        turn(references, server, A)
        await asyncio.sleep(3.0)
        server.prefill_s = 1.0
        renewal = asyncio.ensure_future(references.retain(A, None))
        await asyncio.sleep(0.5)
        name = turn(references, server, A)["session_id"]
        await renewal
        await asyncio.sleep(10.0)
        assert closed(server)[1:] == [(5.5, name)]  # by the turn's own grace


async def test_a_session_that_could_not_be_opened_again_is_closed() -> None:
    async with told() as server:
        references = References(server)
        turn(references, server, A)
        await asyncio.sleep(3.0)
        server.bad_until_s = now() + 1.0
        with pytest.raises(TryAgain):
            await references.retain(A, None)
        await asyncio.sleep(10.0)
        assert len(closed(server)) == 2  # it may have arrived


async def test_a_close_that_fails_is_repeated() -> None:
    async with told() as server:
        references = References(server)
        name = turn(references, server, A)["session_id"]
        server.bad_until_s = 5.0
        await asyncio.sleep(60.0)
        ((at_s, closed_name),) = closed(server)
        assert closed_name == name
        assert 5.0 <= at_s < 10.0


async def test_closing_closes_what_could_not_be_closed_before() -> None:
    async with told() as server:
        references = References(server)
        name = turn(references, server, A)["session_id"]
        server.bad_until_s = 3.0
        await asyncio.sleep(3.1)
        await references.close()
        await asyncio.sleep(30.0)
        assert [closed_name for _, closed_name in closed(server)] == [name]


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
        await kept.retain(B, None)  # of the pause before: too late
        server.computed = 5000.0
        await asyncio.sleep(4.0)
        assert server.prefills == []
        kept.end(B, whole=True)
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


async def test_a_look_or_a_touch_that_fails_ends_nothing() -> None:
    async with told() as server:
        kept = touches(server)
        for session in (A, B):
            turn(kept, server, session)
            await kept.retain(session, None)
        await asyncio.sleep(2.0)
        server.bad_until_s = 10.0
        await asyncio.sleep(10.0)
        server.computed = 900.0
        await asyncio.sleep(3.0)
        assert len(server.prefills) == 2

        prefill, failures = server.prefill, iter([BackendUnavailable("refused")])

        async def fail_once(token_ids: tuple[int, ...], fields: dict[str, Any]) -> Usage:
            for failure in failures:
                raise failure
            return await prefill(token_ids, fields)

        server.prefill = fail_once  # type: ignore[method-assign]
        server.computed = 1800.0
        await asyncio.sleep(3.0)
        assert len(server.prefills) == 3  # the other one
        server.computed = 2700.0
        await asyncio.sleep(3.0)
        assert len(server.prefills) == 5
        await kept.close()


async def test_watching_begins_again_where_it_has_broken_off() -> None:
    async with told() as server:
        kept = touches(server)
        load = server.load

        async def broken() -> Load:
            raise RuntimeError("no error of ours")

        turn(kept, server, A)
        server.load = broken  # type: ignore[method-assign]
        await kept.retain(A, None)
        await asyncio.sleep(5.0)
        server.load = load  # type: ignore[method-assign]
        await kept.retain(A, None)
        await asyncio.sleep(2.0)
        server.computed = 900.0
        await asyncio.sleep(2.0)
        assert kept.touches == 1
        await kept.close()


async def test_an_empty_cache_is_not_touched() -> None:
    async with told() as server:
        server.computed = 5000.0
        kept = touches(server)
        turn(kept, server, A)
        await kept.retain(A, None)
        await asyncio.sleep(2.0)
        for computed in (10.0, 9000.0):  # the server was started again
            server.computed = computed
            await asyncio.sleep(3.0)
        assert server.prefills == []


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


@pytest.mark.parametrize("wrong", [-1, 1 << 32])
def test_numbers_that_are_no_tokens_are_not_remembered(wrong: int) -> None:
    contexts = Contexts(250)
    contexts.remember(A, TOKENS)
    contexts.remember(A, (1, wrong))
    assert (contexts.get(A), contexts.tokens) == (None, 0)
