"""What a server says of itself, and what follows. Pure."""

from typing import Any

import pytest

pytest.importorskip("aiohttp")

from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.backends.sglang import ServerInfo, findings
from tenter.runtime.backends.sglang.choice import choose_retention
from tenter.runtime.backends.sglang.info import read_info
from tenter.runtime.backends.sglang.loads import read_load
from tenter.runtime.errors import InvalidConfig, TryAgain

URL = "http://server"
MODEL = {"model_path": "org/model", "tokenizer_path": "org/model", "is_generation": True}


def info(**server: Any) -> ServerInfo:
    return read_info(server, MODEL, URL)


def test_a_server_that_says_little_is_promised_little() -> None:
    able = info().capabilities("sglang", "touch")
    assert (able.retention, able.schemas, able.priorities) == ("touch", False, False)
    assert able.remote
    assert able.max_running > 0
    assert able.context_tokens > 0
    assert able.kv_tokens > 0


def test_capacity_is_that_of_a_rank_and_can_only_be_reduced() -> None:
    found = info(
        max_total_num_tokens=4096,
        max_req_input_len=4090,
        max_running_requests=64,
        page_size=16,
        internal_states=[{"effective_max_running_requests_per_dp": 8}],
    )
    able = found.capabilities("sglang", "touch", max_running=100, kv_tokens=1000)
    assert (able.max_running, able.kv_tokens) == (8, 1000)
    assert (able.context_tokens, able.page_tokens) == (4095, 16)


def test_the_fingerprint_is_the_models() -> None:
    first = info(dtype="bfloat16", weight_version="default", startup_time=1.0, random_seed=1)
    again = info(dtype="bfloat16", weight_version="default", startup_time=2.0, random_seed=2)
    assert first.fingerprint == again.fingerprint
    swapped = read_info({"dtype": "bfloat16"}, MODEL | {"weight_version": "v2"}, URL)
    assert swapped.fingerprint != first.fingerprint
    assert info(dtype="float32", weight_version="default").fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        ({}, "touch"),
        ({"radix_eviction_policy": "priority"}, "priority"),
        ({"enable_session_radix_cache": True, "radix_eviction_policy": "priority"}, "sessions"),
        ({"radix_cache_backend": "tenter", "enable_session_radix_cache": True}, "pins"),
        ({"radix_cache_backend": "other"}, "touch"),
        ({"disable_radix_cache": True, "enable_session_radix_cache": True}, "none"),
        (
            {"radix_eviction_policy": "priority", "abort_on_priority_when_disabled": True},
            "touch",
        ),
    ],
)
def test_the_best_retention_is_chosen(flags: dict[str, Any], best: str) -> None:
    found = info(**flags)
    assert choose_retention(found, "auto", URL) == best
    assert choose_retention(found, "none", URL) == "none"


def test_a_retention_that_the_server_cannot_do_is_refused_with_its_flag() -> None:
    with pytest.raises(InvalidConfig, match=r"http://server.*--enable-session-radix-cache"):
        choose_retention(info(), "sessions", URL)
    with pytest.raises(InvalidConfig, match="there is auto, pins"):
        choose_retention(info(), "session", URL)


@pytest.mark.parametrize(
    ("server", "model"),
    [({}, {}), ([], MODEL), ({}, MODEL | {"is_generation": False}), (None, None)],
)
def test_what_is_no_model_server_is_refused(server: Any, model: Any) -> None:
    with pytest.raises(InvalidConfig, match=URL):
        read_info(server, model, URL)


def test_half_of_a_disaggregated_server_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="prefill/decode"):
        info(disaggregation_mode="prefill")


def test_findings_name_the_flag_that_would_change_them() -> None:
    stock = {one.topic: one for one in findings(info(version="0.5.23", grammar_backend="none"))}
    assert "--radix-cache-backend tenter" in stock["pins"].flag
    assert "--enable-priority-scheduling" in stock["priority"].flag
    assert "--enable-metrics" in stock["metrics"].flag
    assert "--grammar-backend" in stock["schemas"].flag
    assert "--enable-deterministic-inference" in stock["seeds"].flag
    assert not stock["version"].flag


def test_findings_of_a_server_that_has_everything_ask_for_nothing() -> None:
    best = info(
        version="0.5.23",
        radix_cache_backend="tenter",
        enable_priority_scheduling=True,
        disable_priority_preemption=True,
        default_priority_value=0,
        enable_metrics=True,
        grammar_backend="xgrammar",
        constrained_json_disable_any_whitespace=True,
        enable_deterministic_inference=True,
        incremental_streaming_output=True,
    )
    assert not [one for one in findings(best) if one.flag]


def test_another_release_is_warned_of() -> None:
    (version,) = (one for one in findings(info(version="0.6.0")) if one.topic == "version")
    assert "sglang==0.5.23" in version.flag


def test_replicas_and_tiers_are_told() -> None:
    topics = {
        one.topic
        for one in findings(
            info(
                dp_size=2,
                enable_hierarchical_cache=True,
                hicache_storage_backend="file",
                kv_events_config="{}",
                max_queued_requests=8,
            )
        )
    }
    assert {"replicas", "host cache", "kv events", "queue"} <= topics


@pytest.mark.parametrize(
    ("host", "url", "rank", "endpoint"),
    [
        ("*", "http://10.0.0.7:30000", None, "tcp://10.0.0.7:5557"),
        ("0.0.0.0", "https://gpu.example/sgl", 3, "tcp://gpu.example:5560"),
        ("::", "http://[fd00::7]:30000", 0, "tcp://[fd00::7]:5557"),
        ("10.0.0.8", "http://10.0.0.7:30000", 1, "tcp://10.0.0.8:5558"),
    ],
)
def test_a_wildcard_stands_for_the_servers_own_host(
    host: str, url: str, rank: int | None, endpoint: str
) -> None:
    events = EVENTS | {"endpoint_host": host}
    known = info(kv_events=events).kv_events
    assert known is not None
    assert known.endpoint(url, rank) == endpoint


def test_events_in_small_blocks_are_not_read_and_the_cure_is_told() -> None:
    found = {
        size: one
        for size in (1, 16)
        for one in findings(info(kv_events=EVENTS | {"block_size": size}))
        if one.topic == "kv events"
    }
    assert "--page-size 16" in found[1].flag
    assert "not read" in found[1].means
    assert not found[16].flag
    (nowhere,) = (one for one in findings(info(kv_events_config="{}")) if one.topic == "kv events")
    assert "--kv-events-config" in nowhere.flag


EVENTS: dict[str, Any] = {
    "publisher": "zmq",
    "endpoint_host": "*",
    "endpoint_port_base": 5557,
    "topic": "",
    "block_size": 16,
}
VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from(ServerInfo.__struct_fields__), VALUES))
def test_ill_typed_settings_take_their_defaults(raw: dict[str, Any]) -> None:
    try:
        found = read_info({**raw, "internal_states": raw}, {"model_path": "m"} | raw, URL)
    except InvalidConfig:
        return
    assert isinstance(found.enable_metrics, bool)
    assert findings(found)
    assert found.capabilities("x", "none").max_running


def test_the_load_of_one_rank() -> None:
    ranks = [
        {"dp_rank": 0, "num_running_reqs": 1},
        {"dp_rank": 1, "num_running_reqs": 2, "num_used_tokens": 7, "num_waiting_reqs": 3},
    ]
    load = read_load({"loads": ranks}, 1, URL)
    assert (load.running, load.waiting, load.kv_used_tokens) == (2, 3, 7)
    assert read_load({"loads": ranks}, None, URL).running == 1
    for bad in ({}, {"loads": []}, [], {"loads": ranks[:1]}):
        with pytest.raises(TryAgain, match=URL):
            read_load(bad, 1, URL)
