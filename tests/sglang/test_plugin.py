"""Pins on a real SGLang server with our plugin: they hold, they end, and they never block."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.sglang

POOL_TOKENS = 4096
PREFIX = 900
NOW_S = 1_800_000_000.0
MESSAGES = count()

Action = tuple[str, dict[str, Any]]


def tokens(name: str, length: int = PREFIX) -> list[int]:
    random = Random(name)
    return [random.randrange(20, 1000) for _ in range(length)]


def retain(
    scope: str,
    duration_s: float | None = None,
    *,
    priority: int = 50,
    now_s: float = NOW_S,
    **directive: Any,
) -> Action:
    asked = {"start": 0, "end": None, "covers_output": True, **directive}
    asked |= {"priority": priority, "duration": duration_s}
    return "kv.retain", {"scope": scope, "now_s": now_s, "directives": [asked]}


def extend(
    scope: str, duration_s: float | None, *, now_s: float = NOW_S, priority: int = 50
) -> Action:
    payload = {"scope": scope, "now_s": now_s, "duration": duration_s, "priority": priority}
    return "tenter.extend", payload


def deref(scope: str) -> Action:
    return "kv.deref", {"scope": scope, "now_s": NOW_S}


def clock(now_s: float) -> Action:
    return "tenter.clock", {"now_s": now_s}


def envelope(*actions: tuple[str, Any]) -> dict[str, Any]:
    return {
        "protocol_version": "1.0",
        "message_id": f"m{next(MESSAGES)}",
        "actions": [
            {
                "action_id": f"a{number}",
                "action_type": kind,
                "action_version": "1.0",
                "payload": payload,
            }
            for number, (kind, payload) in enumerate(actions)
        ],
    }


class Client:
    """Asks one server, over bare HTTP."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, ids: list[int], *actions: Action, new: int = 1) -> dict[str, Any]:
        """One answer of `new` tokens, greedy."""
        sampling = {"max_new_tokens": new, "temperature": 0, "ignore_eos": True}
        body: dict[str, Any] = {"input_ids": ids, "sampling_params": sampling}
        if actions:
            body["kv_hints"] = envelope(*actions)
        async with self._session.post("/generate", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def say(self, *actions: Action) -> None:
        """A request that only carries actions."""
        await self.ask([7], *actions, new=0)

    async def cached(self, ids: list[int], *actions: Action) -> int:
        """How much of `ids` the server still has."""
        answer = await self.ask(ids, *actions, new=0)
        return int(answer["meta_info"]["cached_tokens"])

    async def fill(self, name: str, times: int = 3) -> None:
        """Traffic of others, `times` the pool."""
        for number in range(times * POOL_TOKENS // PREFIX + 1):
            await self.ask(tokens(f"{name} {number}"))

    async def flush(self) -> None:
        async with self._session.post("/flush_cache?timeout=10") as response:
            assert response.status == 200

    async def metrics(self) -> dict[str, int]:
        async with self._session.get("/metrics") as response:
            text = await response.text()
        found = re.findall(r"^tenter:(\w+)\{.*\} (\S+)$", text, re.MULTILINE)
        return {name.removesuffix("_total"): int(float(value)) for name, value in found}

    async def hold(self, *scopes: str, priority: int = 50) -> None:
        """One pin for each, of a prefix of its own."""
        for scope in scopes:
            await self.ask(tokens(scope), retain(scope, priority=priority))


@pytest.fixture
async def plugin(sglang_plugin: "Server") -> AsyncIterator[Client]:
    """A server with pins, and none of them taken."""
    async with connected(sglang_plugin) as session:
        client = Client(session)
        await client.flush()
        yield client
        assert sglang_plugin.alive
        await client.flush()  # only an idle server that has lost no memory can


def connected(server: "Server") -> aiohttp.ClientSession:
    return aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(120))


async def test_it_says_that_it_is_there(sglang_plugin: "Server") -> None:
    async with connected(sglang_plugin) as session, session.get("/server_info") as response:
        assert (await response.json())["radix_cache_backend"] == "tenter"


# ---- holding ------------------------------------------------------------------------------------


async def test_a_pinned_prefix_survives_three_times_the_pool(plugin: Client) -> None:
    answer = await plugin.ask(tokens("held"), retain("held", 60), new=8)
    await plugin.ask(tokens("loose"), new=8)
    await plugin.fill("others")
    whole = [*tokens("held"), *answer["output_ids"]]

    assert await plugin.cached([*whole, 5]) == len(whole) - 1, "the last token has no KV yet"
    assert await plugin.cached([*tokens("loose"), 5]) == 0


async def test_a_stock_server_loses_it(sglang_stock: "Server") -> None:
    async with connected(sglang_stock) as session:
        client = Client(session)
        await client.ask(tokens("held"), retain("held", 60), new=8)
        await client.fill("others")

        assert await client.cached([*tokens("held"), 5]) == 0


async def test_the_memory_of_an_expired_pin_is_used_again(plugin: Client) -> None:
    await plugin.ask(tokens("brief"), retain("brief", 60))
    await plugin.fill("before", times=1)
    assert await plugin.cached([*tokens("brief"), 5], clock(NOW_S + 59)) == PREFIX
    await plugin.say(clock(NOW_S + 61))
    await plugin.fill("after")

    assert await plugin.cached([*tokens("brief"), 5]) == 0


async def test_a_prompt_is_pinned_without_its_answer(plugin: Client) -> None:
    answer = await plugin.ask(tokens("p"), retain("p", covers_output=False), new=200)
    assert (await plugin.metrics())["pinned_tokens"] == PREFIX
    await plugin.fill("others")

    assert await plugin.cached([*tokens("p"), *answer["output_ids"]]) == PREFIX


async def test_a_pin_may_end_within_the_prompt(plugin: Client) -> None:
    await plugin.ask(tokens("p"), retain("p", end=320))

    assert (await plugin.metrics())["pinned_tokens"] == 320


async def test_a_request_of_no_new_tokens_pins_too(plugin: Client) -> None:
    await plugin.ask(tokens("warm"), retain("warm"), new=0)
    await plugin.fill("others")

    assert await plugin.cached([*tokens("warm"), 5]) == PREFIX


async def test_answers_are_the_same_with_and_without_pins(
    plugin: Client, sglang_stock: "Server"
) -> None:
    async with connected(sglang_stock) as session:
        stock = Client(session)
        for number in range(6):
            ids = tokens(f"same {number}", 300 + 150 * number)
            pinned = await plugin.ask(ids, retain(f"s{number % 4}"), new=24)
            continued = await plugin.ask([*ids, *pinned["output_ids"], 5], new=24)
            bare = await stock.ask(ids, new=24)
            further = await stock.ask([*ids, *bare["output_ids"], 5], new=24)

            assert pinned["output_ids"] == bare["output_ids"]
            assert continued["output_ids"] == further["output_ids"]


# ---- scopes -------------------------------------------------------------------------------------


async def test_a_session_that_grows_has_one_pin(plugin: Client) -> None:
    before = await plugin.metrics()
    ids = tokens("grows", 600)
    for _ in range(3):
        answer = await plugin.ask(ids, retain("grows", 60), new=50)
        ids = [*ids, *answer["output_ids"], *tokens("tool", 20)]
    now = await plugin.metrics()

    assert (now["pins"], now["pins_superseded"] - before["pins_superseded"]) == (1, 2)
    assert now["pinned_tokens"] == 600 + 3 * 50 + 2 * 20 - 1


async def test_a_pin_is_extended_by_the_message_that_is_behind_its_end(plugin: Client) -> None:
    await plugin.ask(tokens("longer"), retain("longer", 2))
    await plugin.ask(tokens("short"), retain("short", 2))
    await plugin.say(clock(NOW_S + 30), extend("longer", 600, now_s=NOW_S + 30))
    await plugin.say(clock(NOW_S + 600))
    assert (await plugin.metrics())["pins"] == 1
    await plugin.fill("others")

    assert await plugin.cached([*tokens("longer"), 5]) == PREFIX
    assert await plugin.cached([*tokens("short"), 5]) == 0


async def test_a_released_pin_is_ordinary_cache(plugin: Client) -> None:
    await plugin.hold("a", "b")
    await plugin.say(deref("a"), deref("never held"))
    assert await plugin.cached([*tokens("a"), 5]) == PREFIX, "nobody wanted its memory yet"
    await plugin.fill("others")

    assert await plugin.cached([*tokens("a"), 5]) == 0
    assert await plugin.cached([*tokens("b"), 5]) == PREFIX


async def test_what_scopes_share_counts_once(plugin: Client) -> None:
    for branch in range(4):
        ids = [*tokens("trunk", 1500), *tokens(f"branch {branch}", 100)]
        await plugin.ask(ids, retain(f"branch {branch}"), new=0)
    now = await plugin.metrics()

    assert (now["pins"], now["pinned_tokens"]) == (4, 1900)


async def test_a_flush_drops_all_pins(plugin: Client) -> None:
    await plugin.hold("a", "b")
    await plugin.flush()
    now = await plugin.metrics()

    assert (now["pins"], now["pinned_tokens"]) == (0, 0)
    assert await plugin.cached([*tokens("a"), 5]) == 0
    await plugin.ask(tokens("large", 3900))


async def test_an_aborted_request_takes_no_pin(plugin: Client, sglang_plugin: "Server") -> None:
    async with connected(sglang_plugin) as session:
        body = {
            "rid": "to-be-aborted",
            "input_ids": tokens("aborted"),
            "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True},
            "kv_hints": envelope(retain("aborted")),
            "stream": True,
        }
        async with session.post("/generate", json=body) as response:
            await anext(response.content.iter_any())
            await session.post("/abort_request", json={"rid": "to-be-aborted"})
            await response.read()

    assert (await plugin.metrics())["pins"] == 0


# ---- giving way ---------------------------------------------------------------------------------


async def test_pins_for_more_than_the_pool_block_nothing(plugin: Client) -> None:
    before = await plugin.metrics()
    await plugin.hold(*(f"endless {n}" for n in range(8)))
    now = await plugin.metrics()
    assert (now["pins"], now["pinned_tokens"]) == (3, 3 * PREFIX)
    assert now["pins_refused"] - before["pins_refused"] == 5

    await plugin.ask(tokens("large", 3500), new=4)
    now = await plugin.metrics()
    assert now["pins_released_under_pressure"] - before["pins_released_under_pressure"] == 3

    await plugin.hold(*(f"endless {n}" for n in range(8)))
    burst = [plugin.ask(tokens(f"burst {n}", 700), new=40) for n in range(24)]
    await asyncio.gather(*burst, plugin.ask(tokens("within", 3000), new=4))


async def test_the_cheapest_pin_gives_way_first(plugin: Client) -> None:
    await plugin.hold("dear", priority=90)
    await plugin.hold("cheap", priority=10)
    await plugin.ask(tokens("large", 3000))  # fits beside one of them
    assert (await plugin.metrics())["pins"] == 1

    assert await plugin.cached([*tokens("dear"), 5]) == PREFIX
    assert await plugin.cached([*tokens("cheap"), 5]) < PREFIX


async def test_a_dearer_pin_takes_the_place_of_a_cheaper_one(plugin: Client) -> None:
    await plugin.hold("cheap", "cheap too", "as cheap", priority=10)
    await plugin.hold("dear", priority=90)
    now = await plugin.metrics()
    assert (now["pins"], now["pinned_tokens"]) == (3, 3 * PREFIX)
    await plugin.fill("others")

    assert await plugin.cached([*tokens("dear"), 5]) == PREFIX


async def test_what_nobody_has_promised_gives_way_to_newer_turns_and_to_promises(
    plugin: Client,
) -> None:
    for second in range(6):
        name = f"turn {second}"
        await plugin.ask(tokens(name), retain(name, 30, priority=1, now_s=NOW_S + second))
    assert (await plugin.metrics())["pins"] == 3
    await plugin.say(extend("turn 5", None, now_s=NOW_S + 6))
    await plugin.hold("dear", "dearer")
    await plugin.ask(tokens("turn 6"), retain("turn 6", 30, priority=1, now_s=NOW_S + 7))
    assert (await plugin.metrics())["pins"] == 3
    await plugin.fill("others", times=1)

    for kept in ("turn 5", "dear", "dearer"):
        assert await plugin.cached([*tokens(kept), 5]) == PREFIX


async def test_pins_outlive_a_burst_that_fits_beside_them_in_turns(plugin: Client) -> None:
    await plugin.hold("a", "b")
    await asyncio.gather(*(plugin.ask(tokens(f"burst {n}"), new=8) for n in range(6)))

    assert (await plugin.metrics())["pins"] == 2
    assert await plugin.cached([*tokens("a"), 5]) == PREFIX


@pytest.mark.slow
async def test_answers_that_outgrow_the_rest_take_the_pins_memory(
    start_server: "Callable[..., Server]",
) -> None:
    """Three answers that were let in on a bet that they stay short: pins go, no answer does."""
    server = start_server("plugin", "--schedule-conservativeness", "0.1")
    async with connected(server) as session:
        client = Client(session)
        await client.hold("a", "b")
        before = await client.metrics()
        sampling = {"max_new_tokens": 1000, "min_new_tokens": 1000, "temperature": 0}
        async with AsyncExitStack() as streams:
            answers: list[aiohttp.ClientResponse] = []
            for number in range(3):
                ids = tokens(f"outgrows {number}", 200)
                body = {"input_ids": ids, "sampling_params": sampling, "stream": True}
                answer = await streams.enter_async_context(session.post("/generate", json=body))
                assert (await answer.content.readline()).startswith(b"data: {"), "it runs"
                answers.append(answer)
            ends = await asyncio.gather(*(answer.text() for answer in answers))
        now = await client.metrics()
        await client.flush()
    server.close()

    for end in ends:
        last = json.loads(end.split("\n\n")[-3].removeprefix("data: "))["meta_info"]
        assert (last["completion_tokens"], last["num_retractions"]) == (1000, 0)
    assert (before["pins"], now["pins"]) == (2, 0)


# ---- hostile clients ----------------------------------------------------------------------------

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from([2**63, -1, 1e308, NOW_S, "a", 50, "\ud800"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ("scope", "now_s", "directives", "duration", "priority", "end", "covers_output")
PAYLOADS = st.one_of(
    VALUES,
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=7),
    st.builds(
        lambda **asked: retain("a")[1] | {"directives": [asked]},
        priority=VALUES,
        duration=VALUES,
        end=VALUES,
        start=VALUES,
        covers_output=VALUES,
    ),
    st.builds(
        lambda end, out: retain("a", end=end, covers_output=out)[1],
        st.integers(0, 40),
        st.booleans(),
    ),
)
KINDS = st.sampled_from(["tenter.clock", "kv.retain", "tenter.extend", "kv.deref", "kv.other"])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=st.lists(st.tuples(KINDS, PAYLOADS), min_size=1, max_size=6))
def test_no_hint_harms_the_server(sglang_plugin: "Server", actions: list[tuple[str, Any]]) -> None:
    """Sent as JSON of Python's kind, NaN and Infinity included; 400 is SGLang's own refusal."""

    async def send() -> int:
        body = {
            "input_ids": tokens("hostile", 30),
            "sampling_params": {"max_new_tokens": 2},
            "kv_hints": envelope(*actions),
        }
        async with (
            connected(sglang_plugin) as session,
            session.post("/generate", json=body) as response,
        ):
            return response.status

    assert asyncio.run(send()) in {200, 400, 422}
    assert sglang_plugin.alive


async def test_malformed_hints_are_counted(plugin: Client) -> None:
    before = await plugin.metrics()
    await plugin.say(("kv.retain", {"scope": "a"}), ("kv.deref", {}), ("kv.other", {}))
    now = await plugin.metrics()

    assert now["hints_refused"] - before["hints_refused"] == 2
    assert now["pins"] == 0


# ---- other configurations -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ("--page-size", "16"),
        ("--chunked-prefill-size", "256"),
        ("--schedule-policy", "lpm"),
        ("--enable-session-radix-cache",),
        (
            "--enable-hierarchical-cache",
            *("--hicache-ratio", "3"),
            *("--hicache-io-backend", "direct"),
            *("--hicache-mem-layout", "layer_first"),
        ),
    ],
    ids=lambda flags: flags[0].strip("-"),
)
@pytest.mark.slow
async def test_it_works_with_other_flags(
    start_server: "Callable[..., Server]", flags: tuple[str, ...]
) -> None:
    await holds_and_gives_way(start_server("plugin", *flags))


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="SGLang wants a core for each rank")
async def test_ranks_that_share_a_model_agree(
    start_server: "Callable[..., Server]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks under SGLang's own check of their agreement, which ends a server otherwise."""
    monkeypatch.setenv("SGLANG_ENABLE_RANK_CONSENSUS_CHECKER", "1")
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")

    await holds_and_gives_way(start_server("plugin", "--tp", "2"))


async def holds_and_gives_way(server: "Server") -> None:
    async with connected(server) as session:
        client = Client(session)
        await client.hold("a", "b")
        assert (await client.metrics())["pins"] == 2
        await client.fill("others")
        assert await client.cached([*tokens("a"), 5]) >= PREFIX - 16
        assert await client.cached([*tokens("b"), 5]) >= PREFIX - 16

        await client.ask(tokens("large", 3500), new=4)
        assert (await client.metrics())["pins"] == 0
        await client.hold(*(f"endless {n}" for n in range(8)))
        await asyncio.gather(*(client.ask(tokens(f"burst {n}", 700), new=40) for n in range(24)))
        await client.flush()
        assert (await client.metrics())["pins"] == 0
    server.close()
