"""What is shipped: a wheel with everything in it, a light import, a base install without torch."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("runtime", "planner", "kvpolicy", "tools")
EXTRAS = (
    "torch",
    "tokenizers",
    "safetensors",
    "llguidance",
    "numpy",
    "pyarrow",
    "aiohttp",
    "zmq",
    "huggingface_hub",
)


def python(code: str, *, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, in which the modules `without` cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({list(without)!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def imported_from_elsewhere() -> set[str]:
    """The top-level names of other people's modules that ours import, in functions too."""
    found: set[str] = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"tenter"}


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[^\w-]", line)[0].lower().replace("_", "-")
        for line in (
            *project["dependencies"],
            *(line for extra in extras.values() for line in extra),
        )
    }
    homes = metadata.packages_distributions()
    missing = {
        name
        for name in imported_from_elsewhere()
        if not {home.lower().replace("_", "-") for home in homes.get(name, ())} & declared
    }

    assert missing <= {"pydantic_core"}, "add it to pyproject.toml"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, with the build tools of this environment."""
    copy = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, copy / room, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, *build, str(copy)], check=True, capture_output=True, cwd=copy)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_every_module_and_the_tiny_model(wheel: Path) -> None:
    shipped = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        f"tenter/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")
    }

    assert modules <= shipped
    assert {f"tenter/{room}/py.typed" for room in ROOMS} <= shipped
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert f"tenter/runtime/models/tiny/{name}" in shipped
    assert any(name.endswith("licenses/LICENSE") for name in shipped)
    assert not any(name.startswith(("tests/", "tenter/tests/")) for name in shipped)


@pytest.mark.slow
def test_the_wheel_runs_where_the_user_has_folders_of_the_same_names(
    wheel: Path, tmp_path: Path
) -> None:
    target, here = tmp_path / "installed", tmp_path / "project"
    zipfile.ZipFile(wheel).extractall(target)
    for name in ("tools", "runtime"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text("raise ImportError('the user has this')")
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import tenter.runtime.cli as cli; print(cli.__file__)\n"
        "raise SystemExit(cli.main(['version']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    assert "tenter 0." in done.stdout


def test_importing_the_public_names_loads_nothing_heavy() -> None:
    done = python("import tenter.runtime, sys; print(*sorted(sys.modules))")

    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & {*EXTRAS, "networkx", "rich", "sqlite3"}


def test_help_loads_nothing_heavy() -> None:
    code = "from tenter.runtime.cli import main; main(['--help']); import sys; print(*sys.modules)"
    done = python(code)

    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {*EXTRAS, "networkx", "sqlite3"}


COMMANDS = (
    ["validate", "examples/triage.yaml", "examples/triage.py:triage"],
    ["explain", "examples/triage.yaml"],
    ["graph", "examples/triage.yaml"],
    ["schema"],
)


def test_a_base_install_reads_checks_and_plans() -> None:
    code = (
        "from contextlib import redirect_stdout; from io import StringIO\n"
        "from tenter.runtime.cli import main\n"
        f"for command in {COMMANDS!r}:\n"
        "    with redirect_stdout(StringIO()) as said:\n"
        "        code = main(command)\n"
        "    assert code == 0 and said.getvalue(), (command, code)\n"
    )
    done = python(code, without=EXTRAS)

    assert done.returncode == 0, done.stderr


def test_public_names_are_what_all_lists() -> None:
    from tenter import runtime

    assert sorted(runtime.__all__) == list(runtime.__all__)
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    assert callable(runtime.workflow), "the decorator, not the module of the same name"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = getattr(runtime, "no_such_" + "name")
