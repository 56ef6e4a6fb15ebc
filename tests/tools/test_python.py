"""Tools made from functions."""

import functools
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from tenter.tools import InvalidArguments, InvalidTool, python_tool


class Address(BaseModel):
    street: str
    number: int = 1


def find(
    query: Annotated[str, Field(description="What to look for")],
    limit: int = 5,
    *,
    order: Literal["up", "down"] = "up",
    near: Address | None = None,
) -> list[str]:
    """Find things.

    As many as there are.
    """
    return [query] * limit


def test_schema_comes_from_the_signature_and_the_description_from_the_docstring() -> None:
    tool = python_tool(find, effect="pure")
    schema = json.loads(tool.parameters)

    assert tool.name == "find"
    assert tool.description == "Find things.\n\nAs many as there are."
    assert list(schema["properties"]) == ["query", "limit", "order", "near"]
    assert schema["required"] == ["query"]
    assert schema["properties"]["query"] == {
        "type": "string",
        "description": "What to look for",
    }
    assert schema["properties"]["limit"] == {"type": "integer", "default": 5}
    assert schema["properties"]["order"]["enum"] == ["up", "down"]
    assert schema["additionalProperties"] is False


def test_arguments_are_converted_to_what_the_function_expects() -> None:
    tool = python_tool(find)
    assert tool.validate is not None

    checked = tool.validate({"query": "x", "limit": "3", "near": {"street": "Main"}})

    assert checked == {"query": "x", "limit": 3, "near": Address(street="Main")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "query: Field required"),
        ({"query": 3}, "query: Input should be a valid string"),
        ({"query": "x", "order": "left"}, "order: Input should be 'up' or 'down'"),
        ({"query": "x", "lmit": 3}, "lmit: Extra inputs are not permitted"),
        ({"query": "x", "near": {"number": 3}}, "near.street: Field required"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], said: str) -> None:
    tool = python_tool(find)
    assert tool.validate is not None

    with pytest.raises(InvalidArguments) as caught:
        tool.validate(arguments)
    assert str(caught.value).startswith(f"tool 'find': {said}")
    assert caught.value.tool == "find"


def variadic(*queries: str) -> str:
    return ""


def keywords(**rest: str) -> str:
    return ""


def unannotated(query, limit: int = 3) -> str:
    return ""


def positional(query: str, /) -> str:
    return query


def generator(query: str) -> Any:
    yield query


def unknown(query: "Nothing") -> str:  # noqa: F821  # pyright: ignore
    return ""


class NoJson:
    pass


def no_json(query: NoJson) -> str:
    return ""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (variadic, "takes *queries: name each parameter"),
        (keywords, "takes **rest: name each parameter"),
        (unannotated, "parameter 'query' has no annotation: write `query: str`"),
        (positional, "parameter 'query' is positional-only: remove the `/`"),
        (generator, "is a generator: return a list instead"),
        (unknown, "an annotation cannot be found: name 'Nothing' is not defined"),
        (no_json, "an annotation is of no use to JSON"),
        (functools.partial(find, limit=3), "has no name of its own: give it one by name="),
        (lambda query: query, "has no name of its own"),
        ("find", "a tool is made from a function"),
    ],
)
def test_functions_that_cannot_be_tools(function: Any, said: str) -> None:
    with pytest.raises(InvalidTool) as caught:
        python_tool(function)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"effect": "often"}, "effect is one of pure, idempotent, once, not 'often'"),
        ({"timeout_s": 0}, "timeout_s is above 0"),
        ({"timeout_s": float("nan")}, "timeout_s is above 0"),
        ({"retries": -1}, "retries is 0 or more"),
        ({"retries": 1}, 'a tool with effect "once" is never repeated'),
        ({"max_concurrency": 0}, "max_concurrency is 1 or more"),
    ],
)
def test_limits_are_checked(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTool) as caught:
        python_tool(find, **limits)
    assert said in str(caught.value)


def test_parameters_may_be_called_as_pydantic_calls_its_own() -> None:
    def odd(schema: str, model_config: int, json: bool = True) -> str:
        return ""

    tool = python_tool(odd)
    assert tool.validate is not None
    assert tool.validate({"schema": "x", "model_config": 1}) == {"schema": "x", "model_config": 1}


def test_local_types_are_found_in_the_namespace() -> None:
    @dataclass
    class Here:
        x: int

    def of_local(here: "Here") -> int:
        return here.x

    tool = python_tool(of_local, namespace=locals())
    assert tool.validate is not None
    assert tool.validate({"here": {"x": 1}}) == {"here": Here(1)}


def test_the_source_hash_changes_with_the_source() -> None:
    def first(query: str) -> str:
        return query + "!"

    one = python_tool(first)

    def first(query: str) -> str:
        return query + "?"

    other = python_tool(first)
    code = "def first(query: str) -> str:\n    return query + '!'\n"
    spaces: list[dict[str, Any]] = [{}, {}, {}]
    for space, text in zip(spaces, (code, code, code.replace("!", "?")), strict=True):
        exec(text, space)  # noqa: S102 - without a file, so that the code itself is hashed
    hashes = [python_tool(space["first"]).source_hash for space in spaces]

    assert one.source_hash != other.source_hash
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_renamed_tool_keeps_its_origin() -> None:
    tool = python_tool(find, name="search")

    assert tool.name == "search"
    assert tool.origin == f"{__name__}:find"
