"""The format that users write: what is written comes back, what is wrong is named."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenter.runtime.errors import InvalidInput
from tenter.runtime.replay import (
    Pause,
    Program,
    Span,
    Turn,
    Workload,
    read_workload,
    swe_bench,
    write_workload,
)

HEADER = '{"tenter_workload": 1, "name": "mine"}'
GOOD: dict[str, Any] = {
    "arrival_s": 1.5,
    "name": "agent-1",
    "kind": "coding",
    "user": "ann",
    "stages": [
        [
            {
                "prompt": [[0, 0, 1200], [7, 0, 300]],
                "output_tokens": 80,
                "pause": {"seconds": 2.5, "tool": "bash", "word": "git"},
            }
        ],
        [
            {"prompt": [[0, 0, 1200], [7, 0, 500]], "output_tokens": 40},
            {"prompt": [[8, 0, 10]], "output_tokens": 1},
        ],
    ],
}


def lines(path: Path, *programs: Any, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *map(json.dumps, programs)]) + "\n")
    return path


def changed(value: Any, *place: Any) -> dict[str, Any]:
    """GOOD with `value` at `place`."""
    program = json.loads(json.dumps(GOOD))
    inner = program
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return program


def test_the_documented_line_is_read(tmp_path: Path) -> None:
    workload = read_workload(lines(tmp_path / "w.jsonl", GOOD))
    (program,) = workload
    first, second, third = program.turns
    assert (workload.name, program.name, program.user) == ("mine", "agent-1", "ann")
    assert first.prompt == (Span(0, 0, 1200), Span(7, 0, 300)) and first.prompt_tokens == 1500
    assert first.answer == Span(7, 300, 380)
    assert first.pause == Pause(2.5, "tool", "bash", "git")
    assert second.pause is None and third.output_tokens == 1


@pytest.mark.parametrize("name", ["w.jsonl", "w.jsonl.gz"])
def test_what_is_written_comes_back(tmp_path: Path, name: str) -> None:
    workload = swe_bench(20, 0.5, seed=3)
    assert write_workload(workload, tmp_path / name) == 20
    again = read_workload(tmp_path / name)
    assert again.name == "swe-bench" and list(again) == list(workload) == list(again)
    (tmp_path / "other").mkdir()
    write_workload(again, tmp_path / "other" / name)
    assert (tmp_path / "other" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("arrival_s",), -1, r">= 0.0 - at `\$.arrival_s`"),
        (("arrival_s",), "now", r"Expected `float`, got `str` - at `\$.arrival_s`"),
        (("stages",), [], r"length >= 1 - at `\$.stages`"),
        (("stages", 1), [], r"length >= 1 - at `\$.stages\[1\]`"),
        (("stages", 0, 0, "prompt"), [], r"length >= 1 - at `\$.stages\[0\]\[0\].prompt`"),
        (("stages", 0, 0, "output_tokens"), 0, r">= 1 - at `.*output_tokens`"),
        (("stages", 0, 0, "pause", "kind"), "nap", r"Invalid enum value 'nap' - at .*kind`"),
        (("stages", 0, 0, "pauses"), {}, r"unknown field `pauses`"),
        (("stages", 0, 0, "prompt", 1), [7, 0], r"length 3, got 2 - at .*prompt\[1\]`"),
        (("stages", 0, 0, "prompt", 1), [7, 5, 5], r"stop > start - at .*\[0\]\[0\].prompt\[1\]`"),
        (("stages", 0, 0, "prompt", 1), [1 << 31, 0, 1], r"<= 2147483647 - at"),
        (("stages", 1, 1, "output_tokens"), (1 << 32) - 1, r"beyond .*stages\[1\]\[1\].output"),
    ],
)
def test_an_error_names_the_line_and_the_field(
    tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    path = lines(tmp_path / "w.jsonl", GOOD, changed(value, *place))
    programs = iter(read_workload(path))
    assert next(programs).name == "agent-1"
    with pytest.raises(InvalidInput, match=rf"w.jsonl:3: .*{message}"):
        next(programs)


def test_arrivals_may_not_go_back(tmp_path: Path) -> None:
    path = lines(tmp_path / "w.jsonl", GOOD, changed(1.0, "arrival_s"))
    with pytest.raises(InvalidInput, match=r":3: 1.0 is before the line above \(1.5\)"):
        list(read_workload(path))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "the first line must be"),
        ('{"name": "x"}', "the first line must be"),
        ('{"tenter_workload": 2}', "this is version 2"),
        ("\x00\xff", "the first line must be"),
    ],
)
def test_what_is_no_workload_is_refused_at_once(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"w.jsonl:1: .*{message}"):
        read_workload(lines(tmp_path / "w.jsonl", GOOD, header=header))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read_workload(tmp_path / "none.jsonl")
    (tmp_path / "w.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(InvalidInput, match=r"w.jsonl.gz: Not a gzipped file"):
        read_workload(tmp_path / "w.jsonl.gz")
    whole = gzip.compress((HEADER + "\n" + json.dumps(GOOD) + "\n").encode())
    (tmp_path / "w.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(InvalidInput, match="w.jsonl.gz"):
        list(read_workload(tmp_path / "w.jsonl.gz"))


def test_reading_holds_one_line_at_a_time(tmp_path: Path) -> None:
    path = lines(tmp_path / "w.jsonl", GOOD)
    with path.open("a") as file:
        file.write("damaged\n")
    programs = iter(read_workload(path))
    assert next(programs).name == "agent-1"
    with pytest.raises(InvalidInput, match=":3:"):
        next(programs)


spans = st.builds(
    lambda stream, start, length: Span(stream, start, start + length),
    *(st.integers(0, (1 << 31) - 1), st.integers(0, 1 << 31), st.integers(1, 1 << 20)),
)
seconds = st.floats(0, 1e9)
pauses = st.builds(Pause, seconds, st.sampled_from(["tool", "human"]), st.text(), st.text())
turns = st.builds(
    Turn,
    st.lists(spans, min_size=1, max_size=4).map(tuple),
    st.integers(1, 1 << 20),
    st.none() | pauses,
)
stages = st.lists(st.lists(turns, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
programs = st.builds(Program, seconds, st.text(), stages.map(tuple), st.text(), st.text())
here = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@here
@given(st.lists(programs, max_size=4))
def test_any_workload_survives_the_file(tmp_path: Path, made: list[Program]) -> None:
    made.sort(key=lambda program: program.arrival_s)
    write_workload(Workload("any", lambda: iter(made)), tmp_path / "w.jsonl")
    assert list(read_workload(tmp_path / "w.jsonl")) == made


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
places = st.sampled_from(
    [
        *[(key,) for key in GOOD],
        ("stages", 0),
        ("stages", 0, 0),
        ("stages", 0, 0, "prompt"),
        ("stages", 0, 0, "prompt", 0),
        ("stages", 0, 0, "prompt", 0, 1),
        ("stages", 0, 0, "output_tokens"),
        ("stages", 0, 0, "pause"),
        ("stages", 0, 0, "pause", "seconds"),
    ]
)


def mutated() -> st.SearchStrategy[bytes]:
    line = st.builds(lambda place, value: changed(value, *place), places, json_values)
    text = line.map(lambda program: json.dumps(program).encode())
    return text | st.binary(max_size=60)


@here
@given(st.lists(mutated(), min_size=1, max_size=3))
def test_any_file_is_read_or_refused_with_its_line(tmp_path: Path, body: list[bytes]) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\n".join([HEADER.encode(), *body]))

    def read() -> Iterator[Program]:
        try:
            yield from read_workload(path)
        except InvalidInput as error:
            place = str(error).removeprefix(f"workload {path}:")
            assert 2 <= int(place.partition(":")[0]) <= path.read_bytes().count(b"\n") + 1

    for program in read():
        assert program.arrival_s >= 0 and all(turn.prompt_tokens > 0 for turn in program.turns)
