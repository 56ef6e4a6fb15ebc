"""The trace's writers and its reader."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.runtime import trace
from tenter.runtime.errors import InvalidInput
from tenter.runtime.scheduler.events import (
    CallEnded,
    Drain,
    Event,
    ProgramEnded,
    RunEnded,
    RunStarted,
    SetTimer,
)
from tenter.runtime.trace import Fanout, MemoryTrace, NoTrace, Other, Record, TraceWriter, read

STARTED = RunStarted(version=trace.TRACE_VERSION, run="run_1", workflow="triage", rows=3)
CALL = CallEnded(call="c1", program="p1", step="kind", finish="stop", output_tokens=7, decode_s=0.1)


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def written(path: Path, *records: tuple[float, Record]) -> Path:
    writer = TraceWriter(path)
    for at_s, record in records:
        writer.write(at_s, record)
    writer.close()
    return path


def test_a_round_trip(tmp_path: Path):
    records = [(0.0, STARTED), (0.1 + 0.2, CALL), (1e-9, Drain()), (3, RunEnded(status="done"))]
    assert list(read(written(tmp_path / "t.jsonl", *records))) == records


def test_a_line_is_one_object_with_time_and_type_first(tmp_path: Path):
    path = written(tmp_path / "t.jsonl", (1.5, SetTimer(due_s=2.0)), (2.0, Drain()))
    assert lines(path)[1] == b'{"at_s":2.0,"type":"Drain"}\n'
    assert msgspec.json.decode(lines(written(tmp_path / "u.jsonl", (0.0, STARTED)))[0]) == {
        "at_s": 0.0,
        "type": "RunStarted",
        "version": 1,
        "run": "run_1",
        "workflow": "triage",
        "rows": 3,
        "resumed_rows": 0,
        "resumed_failed": 0,
    }


def test_it_flushes_by_bytes_and_by_time(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    writer = TraceWriter(path)
    writer.write(0.0, STARTED)
    assert len(lines(path)) == 1
    writer.write(0.5, CALL)
    assert len(lines(path)) == 1
    writer.write(1.0, CALL)
    assert len(lines(path)) == 3
    for _ in range(2000):
        writer.write(1.1, CALL)
    assert 400 < len(lines(path)) < 2003
    writer.close()
    assert len(lines(path)) == 2003
    writer.write(9.0, CALL)
    writer.close()
    assert len(lines(path)) == 2003


def test_a_torn_last_line_is_left_out(tmp_path: Path):
    path = written(tmp_path / "t.jsonl", (0.0, STARTED), (1.0, CALL))
    whole = path.read_bytes()
    for cut in range(2, len(lines(path)[1])):
        path.write_bytes(whole[:-cut])
        assert list(read(path)) == [(0.0, STARTED)]


def test_a_resumed_run_appends_after_cutting_a_torn_line(tmp_path: Path):
    path = written(tmp_path / "t.jsonl", (0.0, STARTED), (1.0, CALL))
    path.write_bytes(path.read_bytes() + b'{"at_s":1.5,"type":"Ca' + b"x" * 100_000)
    written(path, (0.0, STARTED), (0.5, CALL))
    assert list(read(path)) == [(0.0, STARTED), (1.0, CALL), (0.0, STARTED), (0.5, CALL)]


def test_a_file_that_is_one_torn_line_starts_anew(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"at_s"')
    assert list(read(written(path, (0.0, STARTED)))) == [(0.0, STARTED)]


def test_an_empty_trace_has_no_records(tmp_path: Path):
    assert list(read(written(tmp_path / "t.jsonl"))) == []


def test_a_record_of_an_unknown_kind_is_kept(tmp_path: Path):
    path = written(tmp_path / "t.jsonl", (0.0, STARTED))
    path.write_bytes(path.read_bytes() + b'{"at_s":1,"type":"Later","x":[1]}\n')
    assert list(read(path))[1] == (1.0, Other(name="Later", fields={"x": [1]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"PK\x03\x04 no trace", "t.jsonl:1: this is no trace of a Tenter run"),
        (b'{"at_s":0,"type":"Drain"}\n', "t.jsonl:1: this is no trace of a Tenter run"),
        (b'{"at_s":0,"type":"RunStarted"}\n', "t.jsonl:1: this is no trace of a Tenter run"),
        (
            b'{"at_s":0,"type":"RunStarted","version":99}\n',
            "t.jsonl: it was written by a newer Tenter (trace version 99; this one reads up to 1)",
        ),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: bytes, message: str):
    path = tmp_path / "t.jsonl"
    path.write_bytes(text)
    with pytest.raises(InvalidInput) as raised:
        list(read(path))
    assert message in str(raised.value)


def test_damage_in_the_middle_is_named(tmp_path: Path):
    path = written(tmp_path / "t.jsonl", (0.0, STARTED), (1.0, CALL), (2.0, CALL))
    path.write_bytes(path.read_bytes().replace(b"CallEnded", b"CallEn\xff", 1))
    with pytest.raises(InvalidInput, match="t.jsonl:2: this line is damaged"):
        list(read(path))
    with pytest.raises(InvalidInput, match="No such file"):
        list(read(tmp_path / "none.jsonl"))


def test_a_disk_that_fails_ends_the_trace_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writer = TraceWriter(tmp_path / "t.jsonl")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        writer.write(0.0, STARTED)
    writer.write(5.0, CALL)
    writer.close()
    assert writer.error is not None
    assert writer.error.errno == 28
    assert (tmp_path / "t.jsonl").read_bytes() == b""


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
    assert list(read(written(tmp_path / "t.jsonl", (0.0, STARTED)))) == [(0.0, STARTED)]


def test_memory_fanout_and_none():
    one, two = MemoryTrace(), MemoryTrace()
    Fanout(one, NoTrace(), two).write(1.0, CALL)
    assert one.records == two.records == [(1.0, CALL)]


@settings(deadline=None)
@given(st.text(), st.floats(0, 1e9), st.booleans())
def test_any_text_and_time_survive(
    tmp_path_factory: pytest.TempPathFactory, text: str, at_s: float, ok: bool
):
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    record = ProgramEnded(program="p", row=1, ok=ok, error=text)
    assert list(read(written(path, (0.0, STARTED), (at_s, record))))[1] == (at_s, record)


def test_every_event_can_be_read_back():
    assert {kind.__name__ for kind in Event.__args__} <= {
        kind.__name__
        for kind in trace._kinds(Record)  # pyright: ignore[reportPrivateUsage]
    }
