"""Tools named in YAML: Python functions, found relative to the YAML file, and ready ones."""

import importlib
import importlib.util
import sys
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ...tools import Effect, InvalidTool, Tool
from ...tools.python import python_tool
from ..api.handles import outside
from ..api.places import did_you_mean
from ..errors import InvalidInput
from .check import Notes
from .keys import TOOL_KINDS
from .reader import Item
from .ready_tools import ready_tool

_LIMITS = ("effect", "timeout_s", "retries", "max_concurrency", "eta_s")


def read_tools(item: Item | None, folder: Path, notes: Notes) -> dict[str, Tool]:
    """The tools of a `tools` mapping; those that are wrong are noted and left out."""
    found: dict[str, Tool] = {}
    for name, entry in (item.pairs if item is not None else {}).items():
        assert item is not None
        notes.name(item.keys[name], "tool")
        before = len(notes.problems)
        kind = _kind(name, entry, notes)
        pairs = notes.table(entry, TOOL_KINDS[kind], f"the tool {name!r}") if kind else {}
        if len(notes.problems) > before:
            continue
        make = partial(ready_tool, kind) if kind != "python" else _python
        tool = make(name, pairs, folder, notes)
        if tool is not None:
            found[name] = tool
    return found


def _kind(name: str, entry: Item, notes: Notes) -> str:
    """The key that says what a tool is; "" if it has none, or two, which is noted."""
    pairs = notes.mapping(entry, f"the tool {name!r}")
    found = [kind for kind in TOOL_KINDS if kind in (pairs or {})]
    if pairs is not None and not found:
        cures = (did_you_mean(key, TOOL_KINDS) for key in pairs)
        cure = next((cure for cure in cures if "did you mean" in cure), "")
        notes.add(f"the tool {name!r} has none of the keys {', '.join(TOOL_KINDS)}{cure}", entry)
    if len(found) > 1:
        notes.add(f"the tool {name!r} has {found[0]!r} and {found[1]!r}: keep one", entry)
    return found[0] if len(found) == 1 else ""


def _python(name: str, pairs: dict[str, Item], folder: Path, notes: Notes) -> Tool | None:
    at = pairs["python"]
    reference = str(at.scalar)
    limits: dict[str, Any] = {key: pairs[key].data for key in _LIMITS if key in pairs}
    try:
        thing = find(reference, folder)
        made = getattr(thing, "tool", None)
        if isinstance(made, Tool):
            return replace(made, name=name, origin=reference, **limits)
        effect = cast("Effect", limits.pop("effect", "once"))
        tool = python_tool(thing, name=name, effect=effect, **limits)
    except (InvalidInput, InvalidTool) as error:
        notes.add(str(error), at)
        return None
    return replace(tool, function=outside(tool.function), origin=reference)


def find(reference: str, folder: Path) -> Any:
    """The thing that "module:name" means; InvalidInput says what is missing."""
    module_name, colon, name = reference.partition(":")
    parts = module_name.split(".")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in parts):
        raise InvalidInput(f'{reference!r} is not of the form "module:function"')
    module = _module(parts, folder)
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        cure = did_you_mean(name, public, "it has")
        raise InvalidInput(f"the module {module_name!r} has no {name!r}{cure}")
    return getattr(module, name)


def _module(parts: list[str], folder: Path) -> ModuleType:
    """A module: a file beside the YAML file, or one that is installed."""
    name = ".".join(parts)
    file = folder.joinpath(*parts).with_suffix(".py")
    try:
        if file.is_file():
            return _from_file(file.resolve(), folder)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == parts[0] or error.name == name:
            raise InvalidInput(
                f"there is no module {name!r}: neither {file} nor installed"
            ) from None
        raise InvalidInput(f"the module {name!r} cannot be imported: {error}") from error
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}"
        raise InvalidInput(f"the module {name!r} is no Python: {place}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"the module {name!r} cannot be imported: {reason}") from error


def _from_file(file: Path, folder: Path) -> ModuleType:
    """Run a Python file as a module of its own name, its folder first on the path."""
    name = f"tenter_user_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    home = str(folder.resolve())
    if home not in sys.path:
        sys.path.insert(0, home)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
