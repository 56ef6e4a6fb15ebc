"""The shape of the repository: imports point downward, every package ships, nothing heavy or
machine-bound is wired in."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "kvpolicy": set[str](),
    "planner": set[str](),
    "tools": set[str](),
    "runtime": {"kvpolicy", "planner", "tools"},
}
# The floors of runtime/, top first: a module imports from its own floor and from those below.
# A dotted name says where one module of a folder lives if it is not where its folder does.
FLOORS = (
    {"__main__"},
    {"cli", "progress", "report", "serve", "doctor"},
    {"calibrating", "explaining"},
    {"jobs", "operate", "ray", "simulate"},
    {"approvals", "load", "serving", "table_stats"},
    {
        "api",
        "spec",
        "schema",
        "tables",
        "report.tally",
        "report.summary",
        "report.analysis",
        "report.explained",
        "report.expected",
    },
    {"run"},
    {"replay", "predict", "fleet"},
    {"scheduler"},
    {"reasoning"},
    {"backends", "engine", "tokenizer", "models"},
    {"journal"},
    {"trace", "clock", "config", "errors", "calls", "blocks", "workflow"},
)
HEAVY = {"torch", "sglang", "redis", "ray", "pyarrow", "networkx", "transformers"}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
RUNTIME = [path for path in SOURCES if path.is_relative_to(ROOT / "runtime")]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(path)))


def dotted(node: ast.stmt | ast.expr, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The absolute dotted names that one import statement binds or loads."""
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split(".")) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) + 1 - node.level] if node.level else ()
        module = tuple(node.module.split(".")) if node.module else ()
        yield from ((*base, *module, alias.name) for alias in node.names)


@cache
def imported(path: Path) -> tuple[tuple[str, ...], ...]:
    package = ("tenter", *path.relative_to(ROOT).parent.parts)
    imports = (node for node in nodes(path) if isinstance(node, ast.Import | ast.ImportFrom))
    return tuple(name for node in imports for name in dotted(node, package))


def imported_at_once(body: list[ast.stmt], package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What importing a module imports: not what its functions or its type checks do."""
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from dotted(node, package)
            case ast.If() if "TYPE_CHECKING" in ast.unparse(node.test):
                yield from imported_at_once(node.orelse, package)
            case ast.If() | ast.Try() | ast.With() | ast.ClassDef():
                for part in ("body", "orelse", "finalbody"):
                    yield from imported_at_once(getattr(node, part, []), package)
            case _:
                pass


def floor(module: tuple[str, ...]) -> int | None:
    """The floor of a dotted name below `tenter.runtime`; None for the facade itself.

    `cli_work` lives where `cli` does.
    """
    if not module:
        return None
    for name in (".".join(module[:2]), module[0], module[0].split("_")[0]):
        for level, names in enumerate(FLOORS):
            if name in names:
                return level
    return None


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_rooms_import_only_the_rooms_below(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    used = {name[1] for name in imported(path) if name[0] == "tenter" and len(name) > 1}

    assert used <= ROOMS[room] | {room}


@pytest.mark.parametrize("path", RUNTIME, ids=name_of)
def test_imports_inside_runtime_point_downward(path: Path) -> None:
    own = path.relative_to(ROOT / "runtime").with_suffix("").parts
    level = floor(own)
    if own == ("__init__",):
        return  # the facade offers names of every floor
    assert level is not None, f"give runtime/{'/'.join(own)} a floor in FLOORS"
    for name in imported(path):
        if name[:2] == ("tenter", "runtime"):
            target = floor(name[2:])
            assert target is None or target >= level, f"{'.'.join(name)} is above"
            assert name[2:] or path.name == "__init__.py", "import from the module that defines it"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_importing_is_light(path: Path) -> None:
    if path.is_relative_to(ROOT / "runtime" / "engine"):
        return
    package = ("tenter", *path.relative_to(ROOT).parent.parts)
    loaded = {name[0] for name in imported_at_once(parsed(path).body, package)}

    assert not loaded & HEAVY, "import it in the function that needs it"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_pickled(path: Path) -> None:
    assert not {name[0] for name in imported(path)} & {"pickle", "cloudpickle", "dill", "shelve"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_raised_inside_except_star(path: Path) -> None:
    """Before CPython 3.11.4, which Debian 12 has not, such an error comes out in a group."""
    handlers = (
        handler
        for node in nodes(path)
        if isinstance(node, ast.TryStar)
        for handler in node.handlers
    )
    raised = [
        f"{name_of(path)}:{node.lineno}"
        for handler in handlers
        for node in ast.walk(handler)
        if isinstance(node, ast.Raise) and node.exc is not None
    ]

    assert not raised, "note the error, and raise it below the try statement"


def test_every_package_ships() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    present = {
        ".".join(("tenter", *init.parent.relative_to(ROOT).parts))
        for room in ROOMS
        for init in (ROOT / room).rglob("__init__.py")
    }
    folders_with_code = {path.parent for path in SOURCES}

    assert set(settings["packages"]) == present
    assert all((folder / "__init__.py").exists() for folder in folders_with_code)


TEXT_FOLDERS = (*ROOMS, "tests", "examples", "docs", "benchmarks", "training", ".ci")
TEXT_KINDS = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sh", ""}
# Written in pieces, so that this file does not contain what it forbids.
HOSTS = re.compile(
    "|".join(
        re.escape(".".join(host))
        for host in (
            ("pypi", "org"),
            ("files", "pythonhosted", "org"),
            ("download", "pytorch", "org"),
            ("registry", "npmjs", "org"),
            ("deb", "debian", "org"),
        )
    )
)
MACHINE_PATHS = re.compile(r"""(?<![\w.$}~-])/(?:work|root|home|Users|opt)/[\w.-]""")


def texts() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file() and path.name != "LICENSE"]
    for folder in TEXT_FOLDERS:
        found += (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return sorted(path for path in found if path.suffix in TEXT_KINDS and not is_cache(path))


def is_cache(path: Path) -> bool:
    folders = path.relative_to(ROOT).parts[:-1]
    return any(name == "__pycache__" or (name[0] == "." and name != ".ci") for name in folders)


def test_no_registry_host_and_no_path_of_one_machine_is_named() -> None:
    named: list[str] = []
    for path in texts():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if HOSTS.search(line) or MACHINE_PATHS.search(line):
                named.append(f"{name_of(path)}:{number}: {line.strip()}")

    assert not named, "\n".join(named)
