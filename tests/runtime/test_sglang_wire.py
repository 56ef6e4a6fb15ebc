"""Requests to bodies of /generate, and its answers to chunks. Pure."""

import json
import math
from typing import Any

import msgspec
import pytest

pytest.importorskip("aiohttp")

from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.backends.sglang.answer import Answer, logprobs, usage
from tenter.runtime.backends.sglang.info import ServerInfo
from tenter.runtime.backends.sglang.wire import (
    read_reply,
    room_for,
    sampling_params,
    server_priority,
    stream_interval,
)
from tenter.runtime.calls import CallId, Chunk, Request, Sampling
from tenter.runtime.errors import CallFailed, TenterError, TryAgain
from tenter.runtime.models import tiny_path
from tenter.runtime.tokenizer import HFTokenizer

WHERE = "http://server/generate"
TOKENIZER = HFTokenizer(tiny_path())
EOS = min(TOKENIZER.eos_ids)
VOCABULARY = 100_000


def request(prompt: tuple[int, ...] = (10, 11, 12), **fields: Any) -> Request:
    return Request(CallId("call"), prompt, **fields)


def answer(asked: Request, incremental: bool = False) -> Answer:
    detokenizer = TOKENIZER.detokenizer()
    eos_ids = TOKENIZER.eos_ids
    return Answer(asked, detokenizer, eos_ids, VOCABULARY, incremental=incremental, where=WHERE)


def reply(tokens: list[int], finish: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    meta = {"finish_reason": finish, "completion_tokens": len(tokens)} | meta
    return {"text": "?", "output_ids": tokens, "meta_info": meta}


STOP = {"type": "stop", "matched": EOS}
LENGTH = {"type": "length", "length": 4}


def read_all(
    asked: Request, replies: list[dict[str, Any]], incremental: bool = False
) -> list[Chunk]:
    reading = answer(asked, incremental)
    chunks = [reading.read(read_reply(raw, WHERE)) for raw in replies]
    return [chunk for chunk in chunks if chunk is not None]


# ---- asking ------------------------------------------------------------------------------------


def test_everything_that_shapes_the_distribution_is_spelled_out() -> None:
    params = sampling_params(request(sampling=Sampling(max_tokens=9)), room=9)
    assert params["max_new_tokens"] == 9
    assert params["temperature"] == 0.0
    assert params["top_k"] == -1
    assert params["repetition_penalty"] == 1.0
    assert "stop" not in params
    assert "sampling_seed" not in params


def test_sampling_fields_are_mapped() -> None:
    sampling = Sampling(
        temperature=0.7, top_k=5, top_p=0.9, stop=("END", ""), seed=3, ignore_eos=True
    )
    params = sampling_params(request(sampling=sampling, schema="{}"), room=4)
    assert params["temperature"] == 0.7
    assert (params["top_k"], params["top_p"]) == (5, 0.9)
    assert params["stop"] == ["END"]
    assert params["sampling_seed"] == 3
    assert params["ignore_eos"] is True
    assert params["json_schema"] == "{}"


def test_an_answer_is_cut_to_what_the_server_has_room_for() -> None:
    assert room_for(request(sampling=Sampling(max_tokens=100)), 50) == 47
    assert room_for(request(sampling=Sampling(max_tokens=20), drawn=(1, 2)), 50) == 18


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(()), "the prompt is empty"),
        (request(choices=()), "choices must be given"),
        (request(choices=((1,), ())), "choices must be given"),
        (request(tuple(range(60))), "does not fit the 50 tokens"),
        (request(tuple(range(45)), choices=((1,), tuple(range(9)))), "does not fit"),
        (request(sampling=Sampling(max_tokens=2), drawn=(1, 2)), "drawn before"),
    ],
    ids=["empty", "no choices", "an empty choice", "long", "a long choice", "drawn"],
)
def test_what_can_never_be_answered_is_refused_before_it_is_sent(
    asked: Request, reason: str
) -> None:
    with pytest.raises(CallFailed, match=reason):
        room_for(asked, 50)


def test_a_server_that_repeats_itself_is_asked_for_larger_pieces() -> None:
    asked = request(
        sampling=Sampling(max_tokens=4000), stream=True, chunk_tokens=1, chunk_growth=0.02
    )
    assert stream_interval(asked, incremental=True) == 1
    assert stream_interval(asked, incremental=False) == 20
    assert stream_interval(request(), incremental=False) > 4096


def test_smaller_priorities_go_first_whichever_way_the_server_counts() -> None:
    high = ServerInfo(enable_priority_scheduling=True, disable_priority_preemption=True)
    low = msgspec.structs.replace(high, schedule_low_priority_values_first=True)
    asked = [-math.inf, -3.5, 0.0, 0.001, 1.0, 1e30, math.inf]
    for info, sign in ((high, -1), (low, 1)):
        values = [sign * server_priority(priority, info) for priority in asked]
        assert values == sorted(values)
        assert all(-(2**63) <= value < 2**63 for value in values)
    assert server_priority(0.001, high) != server_priority(0.0, high)
    assert server_priority(math.nan, high) == 0


def test_small_differences_do_not_throw_running_requests_out() -> None:
    preempting = ServerInfo(enable_priority_scheduling=True)
    assert abs(server_priority(7.0, preempting) - server_priority(0.0, preempting)) < 10


# ---- answering ---------------------------------------------------------------------------------


def test_one_answer_is_one_chunk_with_our_own_text() -> None:
    tokens = [*TOKENIZER.encode("The parcel is late."), EOS]
    meta = {"prompt_tokens": 3, "cached_tokens": 2, "completion_tokens": len(tokens)}
    (chunk,) = read_all(request(), [reply(tokens, STOP, **meta)])
    assert chunk.text == "The parcel is late."
    assert chunk.token_ids == tuple(tokens)
    assert chunk.finish == "stop"
    assert chunk.usage is not None
    assert (chunk.usage.cached_tokens, chunk.usage.output_tokens) == (2, len(tokens))


@pytest.mark.parametrize("incremental", [False, True])
def test_pieces_are_what_is_new(incremental: bool) -> None:
    text = "naïve 東京 café 🙂 done"
    tokens = TOKENIZER.encode(text)
    ends = [*range(1, len(tokens)), len(tokens)]
    pieces = [
        reply(
            tokens[end - 1 : end] if incremental else tokens[:end],
            LENGTH if end == ends[-1] else None,
            completion_tokens=end,
        )
        for end in ends
    ]
    chunks = read_all(request(stream=True), pieces, incremental)
    assert "".join(chunk.text for chunk in chunks) == text
    assert [token for chunk in chunks for token in chunk.token_ids] == tokens
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    assert [chunk.finish for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_pieces_are_as_large_as_asked_for() -> None:
    tokens = TOKENIZER.encode("one two three four five six seven eight nine ten") * 3
    asked = request(stream=True, chunk_tokens=4, chunk_growth=0.5)
    pieces = [reply(tokens[:end]) for end in range(1, len(tokens))]
    sizes = [len(c.token_ids) for c in read_all(asked, [*pieces, reply(tokens, LENGTH)])]
    assert sizes[:3] == [4, 4, 4]
    assert all(size >= sum(sizes[:place]) / 2 for place, size in enumerate(sizes[:-1]))


def test_a_stop_string_is_never_seen_in_part() -> None:
    tokens = TOKENIZER.encode("first line\nEND of it")
    asked = request(stream=True, sampling=Sampling(stop=("\nEND",)))
    pieces = [reply(tokens[:end]) for end in range(1, len(tokens) + 1)]
    reading = answer(asked)
    said = ""
    for piece in pieces:
        chunk = reading.read(read_reply(piece, WHERE))
        said += chunk.text if chunk else ""
        assert "first line".startswith(said)
        if chunk and chunk.finish:
            assert chunk.finish == "stop"
            break
    assert said == "first line"


def test_an_answer_goes_on_where_it_was_cut_off() -> None:
    whole = TOKENIZER.encode("The parcel is late, dear team.")
    drawn, rest = tuple(whole[:4]), whole[4:]
    (chunk,) = read_all(request(drawn=drawn), [reply(rest, LENGTH, cached_tokens=7)])
    assert chunk.token_ids == tuple(whole)
    assert chunk.text == "The parcel is late, dear team."
    assert chunk.usage is not None
    assert chunk.usage.output_tokens == len(rest)
    assert chunk.usage.cached_tokens == 3  # of the prompt proper


def test_tokens_that_end_the_answer_by_themselves_are_refused() -> None:
    with pytest.raises(CallFailed, match="drawn before"):
        answer(request(drawn=(40, EOS)))
    text = TOKENIZER.encode("go END on")
    with pytest.raises(CallFailed, match="drawn before"):
        answer(request(drawn=tuple(text), sampling=Sampling(stop=("END",))))


def test_the_log_probabilities_of_pieces_belong_to_their_tokens() -> None:
    rows: list[Any] = [[-0.1, 40, None], [-0.2, 41, None], [None, 42, None]]
    asked = request(stream=True, logprobs=True, chunk_tokens=2, drawn=(39,))
    first: list[Any] = [[None, 12, None], [-0.5, 39, None]]
    pieces = [
        reply([40], None, output_token_logprobs=rows[:1], input_token_logprobs=first),
        reply([40, 41, 42], LENGTH, output_token_logprobs=rows, input_token_logprobs=first),
    ]
    chunks = read_all(asked, pieces)
    values = [value for chunk in chunks for value in chunk.logprobs or ()]
    assert values == [-0.5, -0.1, -0.2, -math.inf]


@pytest.mark.parametrize(
    ("status", "kind"), [(400, CallFailed), (503, TryAgain), (429, TryAgain), (None, TryAgain)]
)
def test_an_abort_of_the_servers_own_is_no_answer(
    status: int | None, kind: type[TenterError]
) -> None:
    finish = {"type": "abort", "message": "the request queue is full", "status_code": status}
    with pytest.raises(CallFailed, match=r"http://server/generate: the request queue") as caught:
        read_all(request(), [reply([1], finish)])
    assert type(caught.value) is kind


def test_an_answer_that_was_aborted_in_the_queue_has_few_fields() -> None:
    raw = {"meta_info": {"id": "x", "finish_reason": {"type": "abort"}, "e2e_latency": 0.1}}
    chunk = answer(request()).abort(read_reply(raw, WHERE))
    assert (chunk.finish, chunk.text, chunk.token_ids) == ("abort", "", ())


@pytest.mark.parametrize(
    ("code", "kind"), [(400, CallFailed), (503, TryAgain), ("x", TryAgain), (None, TryAgain)]
)
def test_an_error_in_the_place_of_an_answer(code: Any, kind: type[TenterError]) -> None:
    with pytest.raises(CallFailed, match="grammar") as caught:
        read_reply({"error": {"message": "bad grammar", "code": code}}, WHERE)
    assert type(caught.value) is kind
    with pytest.raises(TryAgain, match="gone"):
        read_reply({"error": "gone"}, WHERE)


def test_timings_are_the_servers_or_estimates() -> None:
    exact = read_reply(
        reply(
            [1],
            STOP,
            queue_time=0.5,
            forward_entry_time=100.0,
            prefill_finished_time=101.0,
            request_finished_ts=103.0,
            cached_tokens=50,
        ),
        WHERE,
    ).meta_info
    found = usage(exact, 100, 1)
    assert (found.queue_s, found.prefill_s, found.decode_s) == (0.5, 1.0, 2.0)
    rough = read_reply(reply([1], STOP, e2e_latency=2.0), WHERE).meta_info
    shared = usage(rough, 160, 10)
    assert shared.prefill_s == shared.decode_s == 1.0
    assert usage(rough, 0, 0).prefill_s == 0.0


def test_too_few_log_probabilities_are_no_score() -> None:
    rows = [(None, 1, None), (-1.0, 2, None), (-2.0, 3, None)]
    assert logprobs(rows, (2, 3), WHERE) == [-1.0, -2.0]
    assert logprobs(rows, (), WHERE) == []
    with pytest.raises(TryAgain, match="2 log-probabilities were asked for, 1 came"):
        logprobs(rows[1:2], (2, 3), WHERE)
    with pytest.raises(TryAgain, match="of other tokens"):
        logprobs(rows, (3, 2), WHERE)
    with pytest.raises(TryAgain):
        logprobs(None, (1,), WHERE)


ROWS: list[Any] = [[-0.1, 40, None], [-0.2, 41, None]]
GARBLED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "only text": ([reply([], STOP, completion_tokens=3)], "3 tokens were drawn, 0 came"),
    "no count": ([{"output_ids": [40], "meta_info": {"finish_reason": STOP}}], "0 tokens were"),
    "a token lost": ([reply([40], STOP, completion_tokens=2)], "2 tokens were drawn, 1 came"),
    "a token doubled": ([reply([40, 40], STOP, completion_tokens=1)], "1 tokens were drawn"),
    "shrinks": ([reply([40, 41]), reply([40], STOP)], "1 tokens were drawn, 2 came"),
    "contradicts": ([reply([40, 41]), reply([40, 42], STOP)], "contradict each other"),
    "more than asked": ([reply([40] * 9, STOP)], "8 tokens were asked for, and more came"),
    "negative": ([reply([-5], STOP)], "not that of /generate"),
    "enormous": ([reply([1 << 40], STOP)], "not that of /generate"),
    "no such token": ([reply([VOCABULARY], STOP)], f"of a vocabulary of {VOCABULARY}"),
    "no reason": ([reply([40], {})], "for no known reason"),
    "another reason": ([reply([40], {"type": "bored"})], "for no known reason"),
    "odd reason": ([reply([40], {"type": [1]})], "for no known reason"),
    "NaN": ([reply([EOS], {"type": "stop", "matched": "NaN happened"})], "NaN happened"),
    "rows": ([reply([40], STOP, output_token_logprobs=["x"])], "not that of /generate"),
    "row": ([reply([40], STOP, output_token_logprobs=[["x", 40, None]])], "not that of"),
    "few rows": ([reply([40, 41], STOP, output_token_logprobs=ROWS[:1])], "2 tokens came, 1 log"),
    "many rows": ([reply([40], STOP, output_token_logprobs=ROWS)], "1 tokens came, 2 log"),
    "no rows": ([reply([40], STOP)], "1 tokens came, 0 log"),
}


@pytest.mark.parametrize("name", GARBLED)
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
def test_an_answer_that_does_not_add_up_is_never_handed_out(name: str, streamed: bool) -> None:
    replies, reason = GARBLED[name]
    asked = request(sampling=Sampling(max_tokens=8), stream=streamed, logprobs="row" in name)
    with pytest.raises(TryAgain, match=f"{WHERE}.*{reason}"):
        read_all(asked, replies)


def test_log_probabilities_that_come_late_hold_their_tokens_back() -> None:
    asked = request(stream=True, logprobs=True)
    reading = answer(asked)
    late = reply([40, 41], output_token_logprobs=ROWS[:1])
    assert reading.read(read_reply(late, WHERE)) is None
    last = reading.read(read_reply(reply([40, 41], LENGTH, output_token_logprobs=ROWS), WHERE))
    assert last is not None
    assert (last.token_ids, last.logprobs) == ((40, 41), (-0.1, -0.2))


def test_our_own_stop_string_may_come_before_the_servers_end() -> None:
    tokens = TOKENIZER.encode("go END on and on")
    asked = request(sampling=Sampling(stop=("END",)))
    (chunk,) = read_all(asked, [reply(tokens, LENGTH)])
    assert (chunk.text, chunk.finish) == ("go ", "stop")
    (chunk,) = read_all(asked, [reply(tokens, {"type": "stop", "matched": "END"})])
    assert chunk.finish == "stop"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
NAMES = st.sampled_from(["meta_info", "output_ids", "index", "error", "finish_reason", "message"])
SHAPED = st.dictionaries(NAMES, JSON | st.dictionaries(NAMES, JSON, max_size=3), max_size=5)


@given(st.lists(JSON | SHAPED, max_size=4))
def test_any_json_is_an_answer_or_an_error(values: list[Any]) -> None:
    reading = answer(request(stream=True, logprobs=True))
    for value in json.loads(json.dumps(values)):
        try:
            reading.read(read_reply(value, WHERE))
        except CallFailed:
            return
