"""A workflow as a stage of a Ray Data pipeline, called as Ray Data calls it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from tenter.runtime.errors import InvalidInput, InvalidTable, TenterError
from tenter.runtime.jobs.spec import MapSpec
from tenter.runtime.ray import map_batches
from tenter.runtime.ray.data import Stage

FLOW = """\
version: 1
name: judge
inputs: {text: string, stars: {type: integer, default: 3}}
models:
  default: {backend: fake, reply: good}
steps:
  mood: {llm: "Mood of {{ text }}?"}
output: {mood: "{{ mood }}", stars: "{{ stars }}"}
"""


@pytest.fixture
def flow(tmp_path: Path) -> str:
    path = tmp_path / "flow.yaml"
    path.write_text(FLOW)
    return str(path)


def stage(flow: str, columns: dict[str, str], errors: Any = "column") -> Stage:
    spec = MapSpec(flow, "", "", journal=False)
    return Stage(msgspec.json.encode(spec), columns, errors)


@pytest.fixture
def opened(flow: str) -> Iterator[Stage]:
    found = stage(flow, {"text": "review"})
    yield found
    found.close()


def test_answers_come_as_columns_beside_the_batch(opened: Stage) -> None:
    batch = pa.table({"id": [7, 8], "review": ["nice", "bad"]})
    first = opened(batch)
    second = opened(batch.slice(0, 0))

    assert first.column_names[:2] == ["id", "review"] and first.column_names[-1] == "error"
    assert first["id"].to_pylist() == [7, 8]
    assert first["mood"].to_pylist() == ["good", "good"]
    assert first["stars"].to_pylist() == [3, 3], "the default of the input"
    assert first["error"].to_pylist() == [None, None]
    assert second.schema == first.schema, "whatever a batch holds"


def test_a_row_that_fails_has_an_error_or_ends_the_pipeline(flow: str, opened: Stage) -> None:
    batch = pa.table({"review": ["nice", "bad"], "stars": ["4", "many"]})
    found = opened(batch)

    assert found["error"].to_pylist()[0] is None
    assert "stars" in found["error"].to_pylist()[1] and found["mood"].to_pylist()[1] is None
    strict = stage(flow, {"text": "review"}, "raise")
    with pytest.raises(TenterError, match="1 of 2 rows of a batch failed, the first with.*stars"):
        strict(batch)
    strict.close()


def test_what_cannot_be_is_told(flow: str, opened: Stage) -> None:
    with pytest.raises(InvalidTable, match="no column 'review' for input 'text'; it has other"):
        opened(pa.table({"other": ["x"]}))
    with pytest.raises(InvalidInput, match="the workflow has no input 'texts'"):
        map_batches(None, flow, columns={"texts": "review"})
    with pytest.raises(InvalidInput, match="errors='drop': it is one of column, raise"):
        map_batches(None, flow, errors="drop")  # type: ignore[arg-type]
