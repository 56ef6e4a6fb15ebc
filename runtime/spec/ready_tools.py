"""Tools that YAML describes without any Python: requests, SQL, programs, files, MCP servers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...tools import (
    InvalidTool,
    Tool,
    file_tools,
    http_tool,
    mcp_tools,
    shell_tool,
    sql_tool,
)
from .check import Notes
from .reader import Item
from .types import read_type

Pairs = Mapping[str, Item]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def ready_tool(kind: str, name: str, pairs: Pairs, folder: Path, notes: Notes) -> Tool | None:
    """The tool that these pairs describe; what is wrong is noted at its place."""
    before = len(notes.problems)
    parameters = {
        key: read_type(item, notes)
        for key, item in (pairs["parameters"].pairs if "parameters" in pairs else {}).items()
    }
    if len(notes.problems) > before:
        return None
    given = {
        key: item.data for key, item in pairs.items() if key not in (kind, "parameters", "tool")
    }
    origin = json.dumps({key: item.data for key, item in pairs.items()})
    try:
        made = _MAKERS[kind](name, pairs, given, parameters, folder, notes)
    except InvalidTool as error:
        notes.add(str(error), pairs[kind])
        return None
    return made and replace(made, origin=origin)


def _http(
    name: str, pairs: Pairs, given: dict[str, Any], parameters: Any, folder: Path, notes: Notes
) -> Tool | None:
    method = given.get("method", "GET")
    if method not in METHODS:
        notes.add(f"method is one of {', '.join(METHODS)}, not {method!r}", pairs["method"])
        return None
    return http_tool(name, str(pairs["http"].scalar), parameters, **given)


def _sql(
    name: str, pairs: Pairs, given: dict[str, Any], parameters: Any, folder: Path, notes: Notes
) -> Tool:
    database = str(pairs["sql"].scalar)
    for scheme in ("sqlite:///", "duckdb:///"):
        path = database.removeprefix(scheme)
        if path != database and not path.startswith("/"):
            database = f"{scheme}{(folder / path).absolute()}"
    if "functions" in pairs:
        given["functions"] = _texts(pairs["functions"])
    return sql_tool(name, database, parameters=parameters or None, **given)


def _shell(
    name: str, pairs: Pairs, given: dict[str, Any], parameters: Any, folder: Path, notes: Notes
) -> Tool:
    programs = _texts(pairs["shell"])
    return shell_tool(
        "any" if programs == ["any"] else programs,
        folder / given.pop("folder"),
        name=name,
        **given,
    )


def _files(
    name: str, pairs: Pairs, given: dict[str, Any], parameters: Any, folder: Path, notes: Notes
) -> Tool | None:
    made = file_tools(folder / str(pairs["files"].scalar), write=True, **given)
    return _chosen(name, {tool.name: tool for tool in made}, pairs["tool"], notes)


def _mcp(
    name: str, pairs: Pairs, given: dict[str, Any], parameters: Any, folder: Path, notes: Notes
) -> Tool | None:
    server, effect = _texts(pairs["mcp"]), given.pop("effect", None)
    is_url = len(server) == 1 and server[0].startswith(("http://", "https://"))
    tool = str(pairs["tool"].scalar)
    effects = {tool: effect} if effect else {}
    made = mcp_tools(server[0] if is_url else server, only=[tool], effects=effects, **given)
    return _chosen(name, {each.name: each for each in made}, pairs["tool"], notes)


def _chosen(name: str, made: Mapping[str, Tool], at: Item, notes: Notes) -> Tool | None:
    tool = made.get(str(at.scalar))
    if tool is None:
        notes.add(f"there is no tool {at.scalar!r}; there is {', '.join(made)}", at)
        return None
    return replace(tool, name=name)


def _texts(item: Item) -> list[str]:
    return [str(each.scalar) for each in item.items] if item.kind == "list" else [str(item.scalar)]


_MAKERS: Mapping[str, Callable[..., Tool | None]] = {
    "http": _http,
    "sql": _sql,
    "shell": _shell,
    "files": _files,
    "mcp": _mcp,
}
