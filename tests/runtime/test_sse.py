"""The event stream parser: the same events however the bytes are cut, and one kind of error."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.runtime.backends.sse import EventReader
from tenter.runtime.errors import TryAgain

Outcome = tuple[list[dict[str, Any]], bool, str | None]
LINES = st.sampled_from(
    [b"data: {}", b'data:{"a": [1, "\xc3\xa9"]}', b"data: [DONE]", b"data", b"data:", b": hi", b""]
    + [b"event: x", b'data: "\xff"', b"data: NaN", b"data: [1]", b'data: {"a":', b"1}", b"retry: 3"]
    + [b'data: {"a":1,"a":2}', b'data: "\\ud800"', b"data: {", b"data: }", b"\xef\xbb\xbfdata: {}"]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


def read(*pieces: bytes, limit_bytes: int = 1 << 20) -> Outcome:
    """What a stream in these pieces comes to: its events, whether it is done, its error."""
    reader = EventReader("here", limit_bytes)
    events: list[dict[str, Any]] = []
    try:
        for piece in pieces:
            if not reader.done:
                events.extend(reader.feed(piece))
    except TryAgain as error:
        return events, reader.done, str(error)
    return events, reader.done, None


def test_events_of_a_stream_as_servers_send_it() -> None:
    stream = (
        b': ping\n\ndata: {"text": "a"}\n\nevent: x\nid: 7\ndata: {"text": "b"}\n\ndata: [DONE]\n\n'
    )

    assert read(stream) == ([{"text": "a"}, {"text": "b"}], True, None)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_every_line_end_and_data_over_several_lines(end: bytes) -> None:
    stream = end.join([b'data: {"a":', b"data: [1,", b"data:2]}", b"", b"data: [DONE]", b"", b""])

    assert read(stream) == ([{"a": [1, 2]}], True, None)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_every_split_in_two_and_in_bytes_gives_the_same(end: bytes) -> None:
    lines = [b"\xef\xbb\xbfdata: {}", b"", b": c", b'data: {"text":', b'data:"\xe2\x82\xac"}', b""]
    stream = end.join([*lines, b"data: [DONE]", b"", b""])
    whole = read(stream)

    assert whole == ([{}, {"text": "€"}], True, None)
    assert read(*(stream[place : place + 1] for place in range(len(stream)))) == whole
    assert all(read(stream[:place], stream[place:]) == whole for place in range(len(stream)))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.data())
def test_every_split_of_any_stream_gives_the_same(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert read(*pieces) == read(stream)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes_are_events_or_one_kind_of_error(pieces: list[bytes]) -> None:
    events, _, error = read(*pieces, limit_bytes=64)

    assert error is None or error.startswith("here: ")
    assert all(type(event) is dict for event in events)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a": "\xff"}',
        b'{"\xff": 1}',
        b"{",
        b"NaN",
        b'{"a": Infinity}',
        b'{"a": "\\ud800"}',
        b'{"a": 1e999}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b"[1]",
        b"null",
        b"DONE",
        b"<html>",
    ],
    ids=lambda payload: payload[:12].decode("latin-1"),
)
def test_an_event_that_is_no_json_object_asks_for_another_attempt(payload: bytes) -> None:
    events, done, error = read(b"data: {}\n\ndata: " + payload + b"\n\n")

    assert events == [{}]  # what came before it is kept
    assert not done
    assert error is not None
    assert error.startswith("here: an event is not ")
    assert len(error) < 300


def test_of_equal_keys_the_last_one_counts() -> None:
    assert read(b'data: {"a": 1, "a": 2}\n\n')[0] == [{"a": 2}]


def test_an_event_whose_end_never_came_is_no_event() -> None:
    assert read(b"data: {}\n") == ([], False, None)
    assert read(b"data: [DONE]\n") == ([], False, None)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"a" * 1000],
        [b"data: "] + [b"a"] * 1000,
        [b"data: 1\n"] * 600,
        [b"data:\n"] * 2000,
        [b": " + b"a" * 1000],
        [b"a" * 1000 + b"\n"],
    ],
    ids=["line", "bytes", "lines", "blank lines", "comment", "field"],
)
def test_what_never_ends_is_cut_at_the_bound(pieces: list[bytes]) -> None:
    error = read(*pieces, limit_bytes=999)[2]

    assert error == "here: an event is longer than 999 bytes"


def test_a_long_stream_of_events_keeps_nothing() -> None:
    reader = EventReader()
    event = b'data: {"a": "' + b"x" * 1000 + b'"}\n\n'
    tracemalloc.start()
    try:
        for _ in range(5000):
            assert sum(1 for _ in reader.feed(event)) == 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_hundred_megabytes_without_a_line_end_hold_no_more_than_the_bound() -> None:
    reader = EventReader(limit_bytes=1 << 20)
    piece = b"data: " + b"a" * (1 << 16)
    tracemalloc.start()
    try:
        with pytest.raises(TryAgain, match="longer than 1048576 bytes"):
            for _ in range(1600):
                list(reader.feed(piece))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_byte_at_a_time_takes_time_in_proportion() -> None:
    value = {"text": "x" * 200_000}
    stream = f"data: {json.dumps(value)}\n\n".encode()

    assert read(*(stream[i : i + 1] for i in range(len(stream))))[0] == [value]
