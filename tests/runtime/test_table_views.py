"""Tables seen differently: items of lists as rows, groups of rows as rows."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.runtime.errors import Drained, InvalidTable, RunMismatch
from tenter.runtime.jobs import Control, Job, MapSpec, Outcome, map_table, resume
from tenter.runtime.report.tally import Tally
from tenter.runtime.tables import BadRow, Table, View, open_table
from tenter.runtime.tables import views as table_views

REVIEWS = "product,review\nlamp,too dim\nframe,fine\nlamp,it broke\n"


def made(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


def rows_of(table: Table) -> list[Any]:
    """The rows of a table, numbered without gaps; of bad ones what is said of them."""
    found = list(table)
    numbers = [item.row if isinstance(item, BadRow) else item[0] for item in found]
    assert numbers == list(range(len(found)))
    assert table.count_rows() == len(found)
    return [item.message if isinstance(item, BadRow) else item[1] for item in found]


# ---- unnest ------------------------------------------------------------------------------------


def test_a_row_for_each_item_of_a_list(tmp_path: Path):
    path = made(
        tmp_path,
        "a.jsonl",
        '{"id": 1, "themes": ["dim", {"name": "cold"}]}\n{"id": 2, "themes": []}\n'
        '{"id": 3, "themes": null}\nno json\n{"id": 4, "themes": "x"}\n{"id": 5}\n',
    )
    table = open_table(path, view=View("themes"))
    assert table.columns == ("id", "themes")
    assert rows_of(table) == [
        {"id": 1, "themes": "dim"},
        {"id": 1, "themes": {"name": "cold"}},
        "line 4: it is not JSON (JSON is malformed: invalid character (byte 4))",
        "row 4: column 'themes': 'x' is no list; write JSON, as in [1, 2]",
    ]
    assert len(rows_of(open_table(path, limit=1, view=View("themes")))) == 1


def test_in_csv_a_list_is_json(tmp_path: Path):
    path = made(tmp_path, "a.csv", 'id,n\n1,"[1, 2]"\n2,\n3,{}\n')
    assert rows_of(open_table(path, view=View("n"))) == [
        {"id": "1", "n": 1},
        {"id": "1", "n": 2},
        "row 2: column 'n': '{}' is no list",
    ]


# ---- group by ----------------------------------------------------------------------------------


def test_a_row_for_each_group(tmp_path: Path):
    path = made(tmp_path, "a.csv", REVIEWS)
    table = open_table(path, view=View(None, ("product",)))
    assert table.columns == ("product", "review", "rows")
    assert dict(table.kinds) == {"product": "string", "review": "json", "rows": "json"}
    lamps = [{"product": "lamp", "review": text} for text in ("too dim", "it broke")]
    assert rows_of(table) == [
        {"product": "lamp", "review": ["too dim", "it broke"], "rows": lamps},
        {
            "product": "frame",
            "review": ["fine"],
            "rows": [{"product": "frame", "review": "fine"}],
        },
    ]
    few = open_table(path, ["product"], 1, ["review"], View(None, ("product",)))
    assert rows_of(few) == [{"product": "lamp", "review": ["too dim", "it broke"]}]


def test_a_column_named_rows_stays_one(tmp_path: Path):
    path = made(tmp_path, "a.csv", "id,rows\n1,x\n1,y\n")
    table = open_table(path, needed=["rows"], view=View(None, ("id",)))
    assert rows_of(table) == [{"id": "1", "rows": ["x", "y"]}]


def test_a_row_that_cannot_be_read_is_in_no_group(tmp_path: Path):
    path = made(tmp_path, "a.csv", "id,n\n1,x\n2\n1,y\n")
    assert rows_of(open_table(path, ["n"], view=View(None, ("id",)))) == [
        {"id": "1", "n": ["x", "y"]},
        "line 3: 1 fields where the header has 2",
    ]


def test_items_of_lists_are_grouped(tmp_path: Path):
    path = made(
        tmp_path,
        "a.jsonl",
        '{"id": 1, "themes": ["dim", "cold"]}\n{"id": 2, "themes": ["cold"]}\n',
    )
    table = open_table(path, ["themes"], needed=["id"], view=View("themes", ("themes",)))
    assert rows_of(table) == [{"themes": "dim", "id": [1]}, {"themes": "cold", "id": [1, 2]}]


def test_a_group_that_is_too_large_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_views, "MAX_ROW_BYTES", 40)
    path = made(tmp_path, "a.csv", "id,n\n1,x\n2,y\n1,zzzzzzzzzzzzzzzzzzzzzzzzz\n")
    first, second = rows_of(open_table(path, ["n"], view=View(None, ("id",))))
    assert "the group of id '1' holds 42 bytes, more than 40" in first
    assert second == {"id": "2", "n": ["y"]}


def test_columns_that_are_not_there_are_named(tmp_path: Path):
    path = made(tmp_path, "a.csv", REVIEWS)
    for view in (View("reviw"), View(None, ("reviw",))):
        with pytest.raises(InvalidTable, match="no column 'reviw'; did you mean 'review'"):
            open_table(path, view=view)
    with pytest.raises(InvalidTable, match="no column 'stars'"):
        open_table(path, ["stars"], view=View(None, ("product",)))


def test_the_order_of_keys_makes_no_group(tmp_path: Path):
    path = made(tmp_path, "a.jsonl", '{"k": {"a": 1, "b": 2}}\n{"k": {"b": 2, "a": 1}}\n')
    (row,) = rows_of(open_table(path, view=View(None, ("k",))))
    assert len(row["rows"]) == 2


def test_items_beside_a_long_row_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_views, "MAX_UNNESTED_BYTES", 10_000)
    line = json.dumps({"n": list(range(200)), "text": "x" * 1000})
    path = made(tmp_path, "a.jsonl", line + '\n{"n": [1], "text": "y"}\n')
    first, second = rows_of(open_table(path, view=View("n")))
    assert "row 0: column 'n': 200 items" in first
    assert second == {"n": 1, "text": "y"}


def test_what_a_workflow_needs_is_looked_for_in_what_is_seen(tmp_path: Path):
    path = made(tmp_path, "a.jsonl", '{"k": "1", "n": [1]}\n{"n": [2]}\n')
    with pytest.raises(InvalidTable, match="no column 'x'"):
        open_table(path, needed=["x"], view=View("n"))
    table = open_table(path, needed=["k"], view=View("n"))
    assert rows_of(table) == [{"k": "1", "n": 1}, "line 2: it lacks 'k'"]


CELL = st.one_of(st.none(), st.integers(-2, 2), st.text(max_size=2), st.lists(st.integers(0, 1)))


@settings(deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"a": CELL, "b": CELL, "c": st.integers()}), min_size=1))
def test_groups_are_those_of_a_plain_loop(rows: list[dict[str, Any]], tmp_path_factory: Any):
    path = tmp_path_factory.mktemp("views") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = json.dumps([row["a"], row["b"]])
        group = wanted.setdefault(key, {"a": row["a"], "b": row["b"], "c": []})
        group["c"].append(row["c"])
    found = rows_of(open_table(path, ["c"], view=View(None, ("a", "b"))))
    assert found == list(wanted.values())


# ---- jobs --------------------------------------------------------------------------------------

FLOW = """\
version: 1
name: digest
inputs: {product: string, review: [string]}
models: {default: fake}
steps:
  kind: {llm: "{{ product }}: {{ review | join('; ') }}", choices: [good, bad]}
output: {kind: "{{ kind }}", reviews: "{{ review }}"}
"""


def spec_of(folder: Path, table: str = "a.csv", **more: Any) -> MapSpec:
    flow = made(folder, "digest.yaml", FLOW)
    if not (folder / table).exists():
        made(folder, "a.csv", REVIEWS)
    out = str(folder / "out.jsonl")
    given: dict[str, Any] = {"home": str(folder / "home"), "group_by": ("product",)}
    return MapSpec(str(flow), str(folder / table), out, **(given | more))


def mapped(spec: MapSpec) -> Outcome:
    return anyio.run(map_table, spec, Control(), Tally())


def answers(spec: MapSpec) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(spec.out).read_text().splitlines()]


def test_a_workflow_over_groups(tmp_path: Path):
    spec = spec_of(tmp_path)
    outcome = mapped(spec)
    assert (outcome.status, outcome.rows_done) == ("done", 2)
    found = answers(spec)
    assert [list(row) for row in found] == [["product", "kind", "reviews", "error"]] * 2
    assert [row["product"] for row in found] == ["lamp", "frame"]
    assert [row["reviews"] for row in found] == [["too dim", "it broke"], ["fine"]]


def test_a_job_that_is_stopped_while_it_sorts_runs_nothing(tmp_path: Path):
    control = Control()
    control.drain("signal")
    with pytest.raises(Drained, match="stopped while its rows were sorted; nothing has run"):
        anyio.run(map_table, spec_of(tmp_path), control, Tally())
    assert not (tmp_path / "home" / "runs").exists()


def test_a_deep_cell_is_a_cell(tmp_path: Path):
    deep = "[" * 900 + "]" * 900
    made(tmp_path, "a.jsonl", '{"product": "a", "review": ["x"], "deep": ' + deep + "}\n")
    spec = spec_of(tmp_path, table="a.jsonl", group_by=())
    assert mapped(spec).rows_done == 1


def test_a_run_over_groups_goes_on_where_it_stopped(tmp_path: Path):
    made(tmp_path, "a.csv", "product,review\n" + "".join(f"p{n % 20},r{n}\n" for n in range(60)))
    whole = spec_of(tmp_path, home=str(tmp_path / "other"))
    mapped(whole)
    wanted = answers(whole)
    Path(whole.out).unlink()
    spec = spec_of(tmp_path, token_budget=60, concurrency=1)
    outcome = mapped(spec)
    assert outcome.status == "paused"
    assert 0 < outcome.rows_done < 20
    ended = anyio.run(resume, outcome.run, spec.home, Control(), Tally(), {"token_budget": None})
    assert (ended.status, ended.rows_done) == ("done", 20)
    assert answers(spec) == wanted


def test_groups_of_other_rows_are_another_input(tmp_path: Path):
    spec = spec_of(tmp_path, token_budget=1, concurrency=1)
    outcome = mapped(spec)
    assert outcome.status == "paused"
    made(tmp_path, "a.csv", REVIEWS + "lamp,more\n")
    with pytest.raises(RunMismatch):
        anyio.run(resume, outcome.run, spec.home, Control(), Tally())


def test_the_fingerprint_tells_how_a_table_is_seen(tmp_path: Path):
    made(tmp_path, "a.csv", "product,review,n\na,b,[]\n")
    seen = [(), ("product",), ("n",), ("product", "n")]
    prints = {
        open_table(tmp_path / "a.csv", view=View(unnest, by)).fingerprint()
        for by in seen
        for unnest in (None, "n")
    }
    assert len(prints) == 8


def test_statistics_count_groups(tmp_path: Path):
    job = Job(spec_of(tmp_path))
    assert job.rows_total() == 2
    stats = job.context().stats
    assert stats is not None
    assert stats.rows == 2
