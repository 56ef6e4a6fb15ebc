"""Reading tables: what rows come, what is said of bad rows, and which files are refused."""

import datetime
import decimal
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.runtime.errors import InvalidTable
from tenter.runtime.tables import BadRow, coerce, open_table, readers


def made(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path: Path, **options: Any) -> str:
    """What open_table says of a file, without its folder."""
    with pytest.raises(InvalidTable) as raised:
        open_table(path, **options)
    return str(raised.value).replace(f"{path.parent}/", "")


# ---- CSV ---------------------------------------------------------------------------------------


def test_csv(tmp_path: Path):
    table = open_table(made(tmp_path, "a.csv", 'id,text\n1,"a, ""b""\nc"\n\n2,ü\r\n3,\n'))
    assert table.columns == ("id", "text")
    assert (table.rows_total, table.count_rows()) == (None, 3)
    expected = [
        (0, {"id": "1", "text": 'a, "b"\nc'}),
        (1, {"id": "2", "text": "ü"}),
        (2, {"id": "3", "text": ""}),
    ]
    assert list(table) == expected
    assert list(table) == expected


def test_columns_needed_and_limit(tmp_path: Path):
    path = made(tmp_path, "a.csv", "a,b,c\n1,2,3\n4,5,6\n")
    table = open_table(path, columns=["c"], needed=["a"], limit=1)
    assert table.columns == ("c", "a")
    assert list(table) == [(0, {"c": "3", "a": "1"})]
    assert table.count_rows() == 1
    assert list(open_table(path, limit=0)) == []


def test_csv_with_a_byte_order_mark_and_tsv(tmp_path: Path):
    assert list(open_table(made(tmp_path, "a.csv", b"\xef\xbb\xbfa\n1\n"))) == [(0, {"a": "1"})]
    assert list(open_table(made(tmp_path, "a.tsv", "a\tb\n1,\t2\n"))) == [
        (0, {"a": "1,", "b": "2"})
    ]


def test_bad_csv_rows_spoil_only_themselves(tmp_path: Path):
    content = b'a,b\n1,2\n1,2,3\n1\nx\xe4,2\n1,a\x00b\n"a"x,2\n5,"6\n'
    assert list(open_table(made(tmp_path, "a.csv", content))) == [
        (0, {"a": "1", "b": "2"}),
        BadRow(1, "line 3: 3 fields where the header has 2"),
        BadRow(2, "line 4: 1 fields where the header has 2"),
        BadRow(3, "line 5: it is not UTF-8 (byte 0xe4); save the file as UTF-8"),
        BadRow(4, "line 6: it holds a NUL byte"),
        BadRow(5, "line 7: ',' expected after '\"'"),
        BadRow(6, "line 8: unexpected end of data"),
    ]


def test_a_quote_that_never_closes_is_told_with_its_lines(tmp_path: Path):
    rows = list(open_table(made(tmp_path, "a.csv", 'a,b\n1,2\n3,"4\n5,6\n7,8\n')))
    assert rows[1:] == [BadRow(1, "lines 3-5: unexpected end of data")]


def test_endless_lines_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 100)
    long = "x" * 1000
    path = made(tmp_path, "a.csv", f'a,b\n{long},1\n2,2\n"{long}",1\n')
    assert list(open_table(path)) == [
        BadRow(0, "line 2: it is longer than 100 characters"),
        (1, {"a": "2", "b": "2"}),
        BadRow(2, "line 4: it is longer than 100 characters"),
    ]
    path = made(tmp_path, "a.jsonl", f'{{"a":1}}\n{{"a":"{long}"}}\n{{"a":3}}\n{long}')
    assert list(open_table(path)) == [
        (0, {"a": 1}),
        BadRow(1, "line 2: it is longer than 100 bytes"),
        (2, {"a": 3}),
        BadRow(3, "line 4: it is longer than 100 bytes"),
    ]
    assert refused(made(tmp_path, "b.csv", long)) == (
        "b.csv:1: the header is too long; is this a CSV file?"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv: the file is empty; a table needs a header and rows"),
        ("a.csv", "\n\n", "a.csv: the file is empty; a table needs a header and rows"),
        ("a.csv", "a,b,a\n", "a.csv:1: columns 1 and 3 are both named 'a'; rename one"),
        ("a.csv", "a, \n", "a.csv:1: column 2 has no name; give it one"),
        ("a.csv", 'a,"b\n', "a.csv:1: the header is not CSV: unexpected end of data"),
        (
            "a.csv",
            b"stra\xdfe\n",
            "a.csv:1: the header: it is not UTF-8 (byte 0xdf); save the file as UTF-8",
        ),
        ("a.csv", b"a\0b\n", "a.csv:1: the header holds a NUL byte; is this a CSV file?"),
        (
            "a.csv",
            "a,b\n".encode("utf-16"),
            "a.csv: this is UTF-16LE, not UTF-8; convert it (iconv -f UTF-16LE -t UTF-8)",
        ),
        (
            "a.csv",
            "column,other\n".encode("utf-16-be"),
            "a.csv: this is UTF-16BE, not UTF-8; convert it (iconv -f UTF-16BE -t UTF-8)",
        ),
        ("a.csv", b"PAR1....", "a.csv: this is a Parquet file; rename it to .parquet"),
        ("a.csv", b"PK\x03\x04..", "a.csv: this is an Excel or zip file; export it as CSV"),
        ("a.csv", b"\x1f\x8b..", "a.csv: this is compressed with gzip; unpack it first (gunzip)"),
        (
            "a.xlsx",
            b"PK\x03\x04..",
            "a.xlsx: this is an Excel or zip file; export it as CSV",
        ),
        (
            "a.txt",
            "a\n",
            "a.txt: .txt is no format of a table; use .csv, .tsv, .jsonl or .parquet",
        ),
        (
            "a.json",
            "[]",
            "a.json: .json is no format of a table; write one object per line as .jsonl; use .csv",
        ),
        ("a.jsonl", " \n", "a.jsonl: the file is empty; write one JSON object per line"),
        (
            "a.jsonl",
            '[{"a":1}]',
            "a.jsonl:1: this is a JSON array, not JSON Lines; write one object per line (jq -c",
        ),
        (
            "a.jsonl",
            "a,b\n1,2\n",
            "a.jsonl:1: this is not JSON Lines: it is not JSON (JSON is malformed: invalid ",
        ),
        ("a.parquet", "a,b\n", "a.parquet: this is no Parquet file; is it CSV or JSON Lines?"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, content: bytes | str, message: str):
    assert refused(made(tmp_path, name, content)).startswith(message)


def test_missing_files_and_folders(tmp_path: Path):
    assert refused(tmp_path / "none.csv") == "none.csv: there is no such file"
    (tmp_path / "d.csv").mkdir()
    assert refused(tmp_path / "d.csv") == "d.csv: this is a folder or a device, not a file"


def test_missing_columns(tmp_path: Path):
    path = made(tmp_path, "a.csv", "Ticket,body\n1,2\n")
    assert refused(path, needed=["ticket"]) == (
        "a.csv: there is no column 'ticket'; did you mean 'Ticket'? it has 'Ticket', 'body'"
    )
    assert refused(path, columns=["zzz"]) == (
        "a.csv:1: there is no column 'zzz'; it has 'Ticket', 'body'"
    )


# ---- JSON Lines --------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path):
    content = (
        b'\xef\xbb\xbf{"a":1,"b":[2]}\n\n{"b":null,"c":"\\u0000"}\r\n{"a":123456789012345678901}'
    )
    table = open_table(made(tmp_path, "a.jsonl", content), columns=["a", "c"])
    assert list(table) == [
        (0, {"a": 1, "c": None}),
        (1, {"a": None, "c": "\0"}),
        (2, {"a": 123456789012345678901, "c": None}),
    ]
    assert table.count_rows() == 3
    assert open_table(table.path).columns == ("a", "b", "c")


def test_bad_jsonl_rows_spoil_only_themselves(tmp_path: Path):
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    lines = [b'{"a":1}', b"{", b"7", b'{"b":1}', b'{"a":"\xff"}', b'{"a":NaN}', deep, b'{"a":2}']
    lines.append(b'{"a":"\\ud800"}')
    table = open_table(made(tmp_path, "a.jsonl", b"\n".join(lines)), needed=["a"])
    rows = list(table)
    assert [row for row in rows if not isinstance(row, BadRow)] == [
        (0, {"a": 1, "b": None}),
        (7, {"a": 2, "b": None}),
    ]
    messages = {row.row: row.message for row in rows if isinstance(row, BadRow)}
    assert messages[1].startswith("line 2: it is not JSON (")
    assert messages[2] == "line 3: it is not an object"
    assert messages[3] == "line 4: it lacks 'a'"
    assert messages[4] == "line 5: it is not UTF-8 (byte 0xff); save the file as UTF-8"
    assert messages[5].startswith("line 6: it is not JSON (")
    assert messages[6] == "line 7: it is nested too deeply"
    assert messages[8].startswith("line 9: it is not JSON (")


# ---- Parquet -----------------------------------------------------------------------------------


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    path = parquet(
        tmp_path / "a.parquet",
        {
            "text": ["a", None, "ü"],
            "n": [1, 2, 3],
            "x": [0.5, None, 2.0],
            "yes": [True, False, None],
            "day": [datetime.date(2026, 1, 2)] * 3,
            "at": pa.array([1, 2, 3], pa.timestamp("ns")),
            "price": [decimal.Decimal("1.50")] * 3,
            "raw": [b"\xff", b"a", None],
            "many": [[{"k": decimal.Decimal(1)}], [], None],
        },
        row_group_size=2,
    )
    table = open_table(path)
    assert (table.rows_total, table.count_rows()) == (3, 3)
    assert dict(table.kinds) == {
        "text": "string",
        "n": "integer",
        "x": "number",
        "yes": "boolean",
    } | dict.fromkeys(("day", "at", "price", "raw", "many"), "json")
    assert next(iter(table)) == (
        0,
        {
            "text": "a",
            "n": 1,
            "x": 0.5,
            "yes": True,
            "day": "2026-01-02",
            "at": "1970-01-01 00:00:00.000000001",
            "price": "1.50",
            "raw": "\\xff",
            "many": [{"k": "1"}],
        },
    )
    assert [index for index, _ in table] == [0, 1, 2]
    chosen = open_table(path, columns=["n", "text"], limit=2)
    assert (chosen.rows_total, list(chosen)[1]) == (2, (1, {"n": 2, "text": None}))


def test_a_parquet_value_that_is_not_utf8(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    raw = pa.array([b"a", b"\xff", b"c"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    rows = list(open_table(parquet(tmp_path / "a.parquet", {"t": text})))
    assert rows[::2] == [(0, {"t": "a"}), (2, {"t": "c"})]
    assert isinstance(rows[1], BadRow)
    assert rows[1].message.startswith("row 1: column 't' cannot be read ('utf-8' codec")


def test_a_damaged_row_group_is_bad_rows_and_the_rest_goes_on(tmp_path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    path = parquet(
        tmp_path / "a.parquet",
        {"n": [f"{n:08}" for n in range(300)]},
        row_group_size=100,
        compression="NONE",
        use_dictionary=False,
    )
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    rows = list(open_table(path))
    assert len(rows) == 300
    bad = [row.row for row in rows if isinstance(row, BadRow)]
    assert bad == list(range(100, 200))


def test_broken_parquet_and_twin_columns(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path / "a.parquet", {"n": [1]})
    made(tmp_path, "b.parquet", path.read_bytes()[:-5])
    assert refused(tmp_path / "b.parquet").startswith(
        "b.parquet: this is no Parquet file, or a damaged one ("
    )
    assert refused(made(tmp_path, "c.parquet", b"")).startswith("c.parquet: this is no Parquet")
    twins = pa.table([pa.array([1]), pa.array([2])], names=["n", "n"])
    pytest.importorskip("pyarrow.parquet").write_table(twins, tmp_path / "t.parquet")
    assert (
        refused(tmp_path / "t.parquet") == "t.parquet: several columns are named 'n'; rename them"
    )


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused(made(tmp_path, "a.parquet", b"PAR1"))
    assert message.startswith("a.parquet: Parquet needs pyarrow; pip install tenter[tables]")


# ---- fingerprints ------------------------------------------------------------------------------


def test_fingerprints(tmp_path: Path):
    one, two = made(tmp_path, "a.csv", "a\n1\n"), made(tmp_path, "b.csv", "a\n1\n")
    assert open_table(one).fingerprint() == open_table(two).fingerprint()
    prints = {open_table(one).fingerprint()}
    for content in ("a\n2\n", "a\n1\n1\n", "a\n" + "1\n" * 2**20, "a\n" + "1\n" * 2**20 + "2\n"):
        prints.add(open_table(made(tmp_path, "a.csv", content)).fingerprint())
    assert len(prints) == 5
    assert all(re.fullmatch("[0-9a-f]{32}", text) for text in prints)


# ---- types -------------------------------------------------------------------------------------

OPTIONAL = '{"anyOf":[{"type":"integer"},{"type":"null"}]}'


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ('{"type":"integer"}', " -12 ", -12),
        ('{"type":"integer"}', "9" * 30, int("9" * 30)),
        ('{"type":"number"}', "1e3", 1000.0),
        ('{"type":"number"}', "5", 5),
        ('{"type":"boolean"}', "TRUE", True),
        ('{"type":"boolean"}', "false", False),
        ('{"type":"array"}', "[]", []),
        ('{"type":"object"}', '{"a":[1]}', {"a": [1]}),
        ('{"type":"string"}', "12", "12"),
        ('{"type":["string","null"]}', "", ""),
        (OPTIONAL, "", None),
        (OPTIONAL, "3", 3),
        ('{"anyOf":[{"type":"integer"},{"type":"string"}]}', "3", "3"),
        ('{"enum":[1,2]}', "2", 2),
        ('{"$ref":"#/$defs/N","$defs":{"N":{"type":"integer"}}}', "2", 2),
        ('{"$ref":"#","type":"integer"}', "2", 2),
        ("{}", "2", "2"),
        ("", "2", "2"),
        ("true", "2", "2"),
    ],
)
def test_coerce(schema: str, text: str, value: object):
    found = coerce({"a": text, "b": text}, {"a": schema, "missing": schema})
    assert found == {"a": value, "b": text}
    assert type(found["a"]) is type(value)


@pytest.mark.parametrize(
    ("schema", "text", "kinds"),
    [
        ('{"type":"integer"}', "1.0", "integer"),
        ('{"type":"integer"}', "", "integer"),
        ('{"type":"integer"}', "9" * 5000, "integer"),
        ('{"type":"number"}', "nan", "number"),
        ('{"type":"number"}', "1_0", "number"),
        ('{"type":"boolean"}', "yes", "boolean"),
        ('{"type":"array"}', "{}", "array"),
        (OPTIONAL, "x", "integer"),
    ],
)
def test_coerce_refuses(schema: str, text: str, kinds: str):
    with pytest.raises(InvalidTable, match=f"column 'a': .* is not of type {kinds}"):
        coerce({"a": text}, {"a": schema})


@pytest.mark.parametrize(
    ("schema", "value", "found"),
    [
        ('{"type":"integer"}', 3.0, 3),
        ('{"type":"number"}', 3, 3),
        ('{"type":"number"}', 1.5, 1.5),
        ('{"type":"string"}', 7, "7"),
        ('{"type":"string"}', True, "true"),
        ('{"type":["string","integer"]}', 7, 7),
        ('{"type":"array"}', [1], [1]),
        (OPTIONAL, None, None),
        ("{}", None, None),
        ("{}", {"a": 1}, {"a": 1}),
    ],
)
def test_coerce_what_is_no_text(schema: str, value: object, found: object):
    typed = coerce({"a": value, "b": value}, {"a": schema})
    assert typed == {"a": found, "b": value}
    assert type(typed["a"]) is type(found)


TAKES_NULL = 'an input of {type: [string, "null"]} takes it'


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        ('{"type":"integer"}', 1.5, "1.5 is not of type integer"),
        ('{"type":"integer"}', True, "true is not of type integer"),
        ('{"type":"integer"}', 10.0**300 * 10**10, "null is not of type integer"),
        ('{"type":"string"}', None, f"null is not of type string; {TAKES_NULL}"),
        ('{"type":"string"}', ["q"], '["q"] is not of type string'),
        ('{"type":"array"}', {"a": "x" * 50}, '{"a":"' + "x" * 33 + "… is not of type array"),
    ],
)
def test_coerce_refuses_what_is_no_text(schema: str, value: object, message: str):
    with pytest.raises(InvalidTable) as caught:
        coerce({"a": value}, {"a": schema}, "input")
    assert str(caught.value) == f"input 'a': {message}"


# ---- hostile bytes -----------------------------------------------------------------------------

PIECES = st.lists(
    st.sampled_from(
        [b"a", b"b,", b",", b'"', b'""', b"\n", b"\r", b"\r\n", b"\xff", b"\0", b"\xc3\xa4", b" "]
        + [b'{"a":1}', b'{"b":"x"}', b"{", b"}", b"[", b"null", b"\xef\xbb\xbf", b"\xff\xfe", b"1"]
    ),
    max_size=40,
).map(b"".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@settings(deadline=None)
@given(content=PIECES | st.binary(max_size=200))
def test_hostile_bytes_are_rows_or_refused(folder: Path, name: str, content: bytes):
    path = made(folder, name, content)
    try:
        table = open_table(path)
    except InvalidTable:
        return
    rows = list(table)
    indices = [row.row if isinstance(row, BadRow) else row[0] for row in rows]
    assert indices == list(range(len(rows)))
    assert table.count_rows() == len(rows)
    for row in rows:
        if not isinstance(row, BadRow):
            assert tuple(row[1]) == table.columns
            str(row[1]).encode()


@settings(deadline=None)
@given(content=PIECES.map(lambda content: content.replace(b'"', b"").replace(b"\r", b"")))
def test_no_line_is_lost(folder: Path, content: bytes):
    """Without quotes a line is a row, so they can be counted."""
    lines = [line for line in (b"a,b\n" + content).split(b"\n") if line]
    assert len(list(open_table(made(folder, "n.csv", b"a,b\n" + content)))) == len(lines) - 1
    lines = [line for line in content.split(b"\n") if line.strip()]
    path = made(folder, "n.jsonl", b'{"a":1}\n' + content)
    assert len(list(open_table(path))) == len(lines) + 1


@settings(deadline=None)
@given(content=st.binary(max_size=300), cut=st.integers(0, 400))
def test_hostile_parquet(folder: Path, content: bytes, cut: int):
    whole = folder / "whole.parquet"
    if not whole.exists():
        parquet(whole, {"n": list(range(50)), "t": ["x"] * 50})
    good = whole.read_bytes()
    path = made(folder, "h.parquet", good[:cut] + content + good[cut + len(content) :])
    try:
        rows = list(open_table(path))
    except InvalidTable:
        return
    assert [row.row if isinstance(row, BadRow) else row[0] for row in rows] == list(
        range(len(rows))
    )
