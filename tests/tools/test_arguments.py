"""What a JSON Schema of a stranger can do to us: nothing but refuse arguments."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tenter.tools import InvalidArguments, InvalidTool
from tenter.tools.arguments import arguments, by_schema


@pytest.fixture(name="asked")
def asked_fixture() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on this machine, and what it was asked for."""
    paths: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "string"}')

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/latest/meta-data/", paths
        server.shutdown()


def test_a_reference_fetches_nothing(asked: tuple[str, list[str]]) -> None:
    address, paths = asked
    for reference in (address, "file:///etc/hostname", "other.json"):
        check = by_schema("t", {"properties": {"q": {"$ref": reference}}})
        with pytest.raises(InvalidArguments, match="cannot be applied"):
            check({"q": "x"})
    assert paths == []


def test_references_within_the_schema_are_followed() -> None:
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/tree"}, "n": {"type": "integer"}},
    }
    check = by_schema("t", {"$ref": "#/$defs/tree", "$defs": {"tree": tree}})
    assert check({"left": {"left": {"n": 1}}})
    with pytest.raises(InvalidArguments, match="left/left/n"):
        check({"left": {"left": {"n": "1"}}})


def test_a_few_references_cannot_say_a_schema_without_end() -> None:
    doubling: dict[str, Any] = {"d0": {"type": "object"}}
    for n in range(1, 60):
        doubling[f"d{n}"] = {"allOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 2}
    for schema in ({"$ref": "#/$defs/d59", "$defs": doubling}, {"$ref": "#"}):
        with pytest.raises(InvalidArguments, match="cannot be applied"):
            by_schema("t", schema)({"q": 1})


@pytest.mark.parametrize(
    "schema", [{"properties": [1]}, {"type": "thing"}, {"required": "q"}, {"properties": {"q": 1}}]
)
def test_a_wrong_schema_is_refused_when_the_tool_is_made(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidTool, match="JSON Schema is wrong"):
        by_schema("t", schema)


def test_a_pattern_of_a_stranger_is_not_applied() -> None:
    endless = "^(a+)+$"  # takes 2**n steps
    schema = {
        "type": "object",
        "properties": {
            "q": {"type": "string", "pattern": endless, "maxLength": 100},
            "pattern": {"type": "integer"},
            "list": {"items": {"pattern": endless}},
            "map": {
                "patternProperties": {endless: {"type": "integer"}},
                "additionalProperties": False,
            },
            "one": {"const": {"pattern": "kept"}},
        },
    }
    check = by_schema("t", schema, trusted=False)
    text = "a" * 90 + "!"
    assert check({"q": text, "list": [text], "map": {text: 1}, "one": {"pattern": "kept"}})
    for wrong in ({"q": text * 2}, {"pattern": "x"}, {"one": {"pattern": "x"}}):
        with pytest.raises(InvalidArguments):
            check(wrong)
    with pytest.raises(InvalidArguments, match="does not match"):
        by_schema("t", schema)({"q": "b"})


def test_a_default_belongs_to_one_call() -> None:
    _, check = arguments("t", {"tags": {"type": "array", "default": []}})
    check({})["tags"].append("mine")
    assert check({}) == {"tags": []}


def test_a_type_written_as_yaml_writes_it_is_refused_with_the_cure() -> None:
    with pytest.raises(InvalidTool, match=r"'id' is of a type, such as str.*it is the text 'int'"):
        arguments("order", {"id": "int"})
