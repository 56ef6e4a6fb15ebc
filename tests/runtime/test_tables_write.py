"""Writing tables: round trips, order, dead letters, and files that are whole or not there."""

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.runtime.errors import InvalidTable, TenterError
from tenter.runtime.tables import (
    OrderedSink,
    TableOutput,
    layout,
    open_output,
    open_table,
    open_writer,
    parquet,
)

FORMATS = ["csv", "tsv", "jsonl", "parquet"]
REPLY = json.dumps(
    {
        "type": "object",
        "properties": {
            "subject": {"type": "string"},
            "n": {"type": "integer"},
            "score": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "sure": {"type": "boolean"},
            "tags": {"type": "array"},
        },
    }
)


def written(path: Path, columns: Any, rows: list[dict[str, Any]]) -> Path:
    writer = open_writer(path, columns)
    for row in rows:
        writer.write(row)
    return writer.finish()


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None)
@given(texts=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=8))
def test_text_survives(
    tmp_path_factory: pytest.TempPathFactory, form: str, texts: list[tuple[str, str]]
):
    path = tmp_path_factory.mktemp("texts") / f"a.{form}"
    rows = [{"a b": one, "ü,\"'": two} for one, two in texts]
    written(path, ["a b", "ü,\"'"], rows)
    if form == "jsonl" and not rows:
        assert path.read_bytes() == b""
        return
    expected = [
        {
            key: text.replace("\0", "\\u0000") if form.endswith("sv") else text
            for key, text in r.items()
        }
        for r in rows
    ]
    assert [row for _, row in open_table(path)] == expected


@pytest.mark.parametrize("form", FORMATS)
def test_hostile_text_survives_or_is_escaped(tmp_path: Path, form: str):
    texts = [
        "",
        " ",
        "\r",
        "\n",
        "\r\n",
        '"',
        ",",
        "\t",
        "=1+1",
        "a\0b",
        "\ud800x",
        "\ufeff",
        "\x85",
    ]
    path = written(tmp_path / f"a.{form}", ["a"], [{"a": text} for text in texts])
    found = [row["a"] for _, row in open_table(path)]
    special = {"a\0b": "a\\u0000b" if form.endswith("sv") else "a\0b", "\ud800x": "\\ud800x"}
    assert found == [special.get(text, text) for text in texts]


def test_values_that_are_no_text(tmp_path: Path):
    row = {"a": None, "b": True, "c": 1, "d": 0.1, "e": [1, {"x": None}], "f": "s"}
    assert written(tmp_path / "a.csv", list(row), [row]).read_text() == (
        'a,b,c,d,e,f\n,true,1,0.1,"[1,{""x"":null}]",s\n'
    )
    assert written(tmp_path / "a.jsonl", list(row), [row]).read_text() == (
        '{"a":null,"b":true,"c":1,"d":0.1,"e":[1,{"x":null}],"f":"s"}\n'
    )
    assert list(open_table(written(tmp_path / "a.parquet", list(row), [row]))) == [
        (0, {"a": None, "b": "true", "c": "1", "d": "0.1", "e": '[1,{"x":null}]', "f": "s"})
    ]


def test_parquet_columns_are_typed_and_grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet, "GROUP_ROWS", 10)
    kinds = {"s": "string", "i": "integer", "x": "number", "b": "boolean"}
    rows = [{"s": "a", "i": n, "x": n, "b": n % 2 == 0} for n in range(25)]
    path = written(tmp_path / "a.parquet", kinds, rows)
    assert dict(open_table(path).kinds) == kinds
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups == 3
    assert [row for _, row in open_table(path)] == rows


@pytest.mark.parametrize("form", FORMATS)
def test_equal_rows_give_equal_bytes(tmp_path: Path, form: str):
    rows = [{"a": f"text {n}", "b": n} for n in range(10_000)]
    one = written(tmp_path / f"a.{form}", ["a", "b"], rows)
    two = written(tmp_path / f"b.{form}", ["a", "b"], rows)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_appears_when_it_is_whole(tmp_path: Path, form: str):
    path = tmp_path / f"a.{form}"
    path.write_text("old")
    writer = open_writer(path, ["a"])
    writer.write({"a": "1"})
    assert path.read_text() == "old"
    assert writer.abandon() == f"{path}.partial holds the first 1 rows"
    assert path.read_text() == "old"
    Path(f"{path}.partial").rename(tmp_path / f"kept.{form}")
    assert list(open_table(tmp_path / f"kept.{form}")) == [(0, {"a": "1"})]
    assert list(open_table(written(path, ["a"], [{"a": "2"}]))) == [(0, {"a": "2"})]
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / f"kept.{form}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", "a.txt: .txt is no format of a table; use .csv, .tsv, .jsonl or .parquet"),
        ("a", "a: a name without extension is no format of a table; use .csv, .tsv, .jsonl or"),
        ("none/a.csv", "none/a.csv: it cannot be written: No such file or directory"),
        ("folder.csv", "folder.csv: this is a folder; name a file in it"),
    ],
)
def test_bad_outputs(tmp_path: Path, name: str, message: str):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InvalidTable) as raised:
        open_writer(tmp_path / name, ["a"])
    assert str(raised.value).startswith(f"{tmp_path}/{message}")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = open_writer(tmp_path / "a.csv", ["a"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TenterError, match="No space left on device; mend that and resume"):
            writer.finish()
    writer.abandon()
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_one_that_was_taken_over_leaves_the_other_s_file_alone(tmp_path: Path, form: str):
    """A process wakes up and writes on: before, in the midst of, and after what the other does."""
    path = tmp_path / f"a.{form}"
    frozen = [open_writer(path, ["a"]) for _ in range(2)]
    for writer in frozen:
        writer.write({"a": "frozen"})
    other = open_writer(path, ["a"])
    other.write({"a": "other"})
    with pytest.raises(TenterError, match="another process has taken over"):
        frozen[0].finish()
    other.finish()
    whole = path.read_bytes()
    with pytest.raises(TenterError, match="another process has taken over"):
        frozen[1].finish()
    for writer in frozen:
        writer.abandon()
    assert path.read_bytes() == whole
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


# ---- order -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.permutations(range(20)))
def test_rows_come_out_in_order_once(order: list[int]):
    out: list[tuple[int, str]] = []
    sink = OrderedSink[str](lambda row, item: out.append((row, item)))
    for row in order:
        sink.put(row, str(row))
    sink.finish()
    assert out == [(row, str(row)) for row in range(20)]


def test_missing_and_repeated_rows_are_errors():
    out: list[int] = []
    sink = OrderedSink[int](lambda row, _: out.append(row), first_row=3)
    sink.put(3, 0)
    sink.put(5, 0)
    for row in (0, 3, 5):
        with pytest.raises(ValueError, match=f"row {row} is there already"):
            sink.put(row, 0)
    assert (out, sink.held) == ([3], 1)
    with pytest.raises(ValueError, match="row 4 is missing; 1 rows wait for it"):
        sink.finish()


# ---- layouts and whole outputs -----------------------------------------------------------------


def test_layouts():
    flat = layout({"ticket": "string", "n": "integer"}, REPLY)
    assert dict(flat.kinds) == {
        "ticket": "string",
        "n": "integer",
        "subject": "string",
        "n_2": "integer",
        "score": "number",
        "sure": "boolean",
        "tags": "json",
        "error": "string",
    }
    row = flat.row({"ticket": "t", "n": 1, "other": 2}, {"subject": "s", "n": 5}, None)
    assert row == dict.fromkeys(flat.kinds, None) | {
        "ticket": "t",
        "n": 1,
        "subject": "s",
        "n_2": 5,
    }
    assert list(layout({"answer": "string", "error": "json"}).kinds) == [
        "answer",
        "error",
        "answer_2",
        "error_2",
    ]
    assert layout({}, '{"type":"string"}').kinds["answer"] == "string"
    ref = '{"$ref":"#/$defs/R","$defs":{"R":{"type":"object","properties":{"x":{}}}}}'
    assert list(layout({}, ref).kinds) == ["x", "error"]


def filled(output: TableOutput, order: list[int]) -> TableOutput:
    for row in order:
        if row % 5 == 3:
            output.failed(row, {"id": str(row)}, "ToolFailed: no \ud800 luck")
        else:
            output.done(row, {"id": str(row)}, {"subject": "s", "n": row, "tags": [row]})
    return output


@pytest.mark.parametrize("form", FORMATS)
def test_an_output_does_not_depend_on_the_order_of_its_rows(tmp_path: Path, form: str):
    source = tmp_path / "in.csv"
    source.write_text("id,other\n" + "".join(f"{n},x\n" for n in range(50)))
    order = list(range(50))
    outputs: list[tuple[bytes, bytes]] = []
    for turn in range(3):
        path = tmp_path / f"out{turn}.{form}"
        output = filled(open_output(path, open_table(source), REPLY, keep=["id"]), order)
        table, letters = output.finish()
        assert letters is not None
        outputs.append((table.read_bytes(), letters.read_bytes()))
        random.Random(turn).shuffle(order)
    assert len(set(outputs)) == 1
    rows = [row for _, row in open_table(tmp_path / f"out0.{form}")]
    assert [row["id"] for row in rows] == [str(n) for n in range(50)]
    assert rows[3]["error"] == ("ToolFailed: no \\ud800 luck")
    dead = [json.loads(line) for line in outputs[0][1].splitlines()]
    assert [letter["row"] for letter in dead] == list(range(3, 50, 5))
    assert dead[0] == {"row": 3, "error": "ToolFailed: no \\ud800 luck", "input": {"id": "3"}}


def test_no_errors_no_dead_letters(tmp_path: Path):
    source = tmp_path / "in.csv"
    source.write_text("id\n1\n")
    stale = tmp_path / "out.csv.errors.jsonl"
    stale.write_text("of an earlier run")
    output = open_output(tmp_path / "out.csv", open_table(source))
    output.done(0, {"id": "1"}, "yes")
    assert output.finish() == (tmp_path / "out.csv", None)
    assert not stale.exists()
    assert (tmp_path / "out.csv").read_text() == "id,answer,error\n1,yes,\n"


def test_a_value_without_room_is_an_error_of_its_row(tmp_path: Path):
    source = tmp_path / "in.csv"
    source.write_text("id\n1\n")
    output = open_output(tmp_path / "out.parquet", open_table(source), REPLY)
    output.done(0, {"id": "1"}, {"n": 2**70, "score": "high", "sure": True})
    table, letters = output.finish()
    ((_, row),) = open_table(table)
    assert (row["n"], row["score"], row["sure"]) == (None, None, True)
    assert row["error"] == (
        "column 'n' has no room for its value: it is beyond 64 bits; "
        "column 'score' has no room for its value: it is not of type number"
    )
    assert letters is not None


def test_an_abandoned_output(tmp_path: Path):
    source = tmp_path / "in.csv"
    source.write_text("id\n1\n")
    output = open_output(tmp_path / "out.csv", open_table(source))
    output.failed(0, {}, "bad")
    output.done(2, {}, "ahead")
    assert output.held == 1
    assert output.abandon().endswith("out.csv.partial holds the first 1 rows")
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "out.csv.errors.jsonl").exists()


def test_an_output_never_replaces_its_input(tmp_path: Path):
    source = tmp_path / "in.csv"
    source.write_text("id\n1\n")
    with pytest.raises(InvalidTable, match="the output would replace the input"):
        open_output(source, open_table(source))
    with pytest.raises(InvalidTable, match="there is no column 'x'"):
        open_output(tmp_path / "out.csv", open_table(source), keep=["x"])
