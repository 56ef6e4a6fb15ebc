"""Reading YAML: what texts mean, where things are, and what is refused."""

import time
from contextlib import suppress
from typing import Any

import pytest

from tenter.runtime.errors import InvalidWorkflow
from tenter.runtime.spec.reader import Reader, decode


def read(text: str) -> Any:
    reader = Reader("f.yaml")
    root = reader.read(text)
    assert reader.problems == []
    return root.data


@pytest.mark.parametrize(
    ("written", "data"),
    [
        ("true", True),
        ("false", False),
        ("'true'", "true"),
        ("", None),
        ("~", None),
        ("null", None),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-1.5E-3", -0.0015),
        ("1:30", "1:30"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("y", "y"),
        ("none", "none"),
        ("=", "="),
        ("'on'", "on"),
        ("|\n  a\n  b\n", "a\nb\n"),
        (">-\n  a\n  b\n", "a b"),
        ('"\\u00e9\\n"', "é\n"),
        ("[a, [1, {b: c}]]", ["a", [1, {"b": "c"}]]),
    ],
)
def test_what_texts_mean(written: str, data: Any) -> None:
    assert read(f"key: {written}") == {"key": data}


@pytest.mark.parametrize("written", ["yes", "No", "ON", "off", "True", "FALSE"])
def test_only_true_and_false_are_booleans(written: str) -> None:
    reader = Reader("f.yaml")
    reader.read(f"key: [a, {written}]")

    (problem,) = reader.problems
    assert f"or '{written}'" in problem.message
    assert (problem.line, problem.column) == (1, 10)


def test_places_count_from_one() -> None:
    root = Reader().read("a:\n  - x\n  - {b: é, c: d}\n")
    inner = root.pairs["a"].items[1]

    assert (root.line, root.column) == (1, 1)
    assert (inner.line, inner.column) == (3, 5)
    assert (inner.pairs["c"].line, inner.pairs["c"].column) == (3, 15)
    assert (inner.keys["c"].line, inner.keys["c"].column) == (3, 12)


def test_aliases_stand_for_what_they_name() -> None:
    assert read("a: &x [1, 2]\nb: *x\nc: {d: *x}") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_a_byte_order_mark_is_no_problem() -> None:
    assert read(decode(b"\xef\xbb\xbfa: 1")) == {"a": 1}


def test_line_ends_of_all_systems() -> None:
    assert read("a: 1\r\nb:\r\n  - c\r\n") == {"a": 1, "b": ["c"]}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 900_000,
        "{" * 900_000,
        "- " * 450_000,
        "? " * 450_000,
        "a: " * 300_000,
        "&a " * 300_000,
        "'" + "''" * 400_000,
        '"' + "\\\\" * 400_000,
        "!" * 900_000,
        "*" * 900_000,
        "%" * 900_000,
        "a: |" + "9" * 900_000,
        "9" * 900_000,
        "1" + "e" * 900_000,
        "\n".join(f"{'  ' * n}a{n}:" for n in range(900)),
        "[a,\n" * 200_000,
        "{a: b}, " * 100_000,
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_hostile_texts_end_soon(text: str) -> None:
    started_s = time.process_time()
    with suppress(InvalidWorkflow):
        Reader("f.yaml").read(text)
    assert time.process_time() - started_s < 5
