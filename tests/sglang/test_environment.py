"""The environment with SGLang is built once, and again when its recipe changes; none may be missing
unnoticed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from environment import build

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# -- what is built


def test_every_package_is_pinned_to_one_version() -> None:
    lines = build.REQUIREMENTS.read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]

    assert len(pins) > 100
    assert all(line.count("==") == 1 and "," not in line for line in pins)
    assert {"sglang==0.5.23", "torch==2.13.0"} <= set(pins)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pins and a shim that a test may change."""
    here = tmp_path / "recipe"
    (here / "shim").mkdir(parents=True)
    (here / "requirements.txt").write_text("sglang==0.5.23\n")
    (here / "shim" / "part.py").write_text("")
    monkeypatch.setattr(build, "HERE", here)
    monkeypatch.setattr(build, "REQUIREMENTS", here / "requirements.txt")
    monkeypatch.setattr(build, "SHIM", here / "shim")
    return here


@pytest.mark.parametrize("changed", ["requirements.txt", "shim/part.py", "shim/new.py"])
def test_a_changed_recipe_makes_another_environment(recipe: Path, changed: str) -> None:
    before = build.name()
    with (recipe / changed).open("a") as file:
        file.write("# changed\n")

    assert build.name() != before
    assert before.startswith("sglang-0.5.23-py3.")


def test_the_asked_for_cache_comes_first_then_xdg_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TENTER_CACHE", raising=False)
    clone = ROOT / ".cache"

    assert build.places() == (tmp_path / "home" / ".cache" / "tenter", clone)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.places() == (tmp_path / "xdg" / "tenter", clone)
    monkeypatch.setenv("TENTER_CACHE", str(tmp_path / "asked"))
    assert build.places() == (tmp_path / "asked", clone)


def test_the_clone_serves_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert build.writable((tmp_path / "file" / "cache", tmp_path / "here")) == tmp_path / "here"
    with pytest.raises(SystemExit, match="set TENTER_CACHE"):
        build.writable((tmp_path / "file" / "cache",))


@pytest.fixture
def filled(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were built, by a stand-in that takes no time; none lies in the clone."""
    folders: list[Path] = []

    def fill(folder: Path) -> None:
        folders.append(folder)
        build.python_of(folder).parent.mkdir(parents=True, exist_ok=True)
        build.python_of(folder).touch()
        (folder / build.STAMP).touch()

    monkeypatch.setattr(build, "fill", fill)
    monkeypatch.setenv("TENTER_CACHE", str(recipe / "cache"))
    return folders


def test_it_is_built_once(filled: list[Path]) -> None:
    assert build.find() is None

    builders = [threading.Thread(target=build.build) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()

    assert filled == [build.build()]
    assert build.find() == filled[0]


def test_half_an_environment_is_built_again(filled: list[Path]) -> None:
    folder = build.build()
    (folder / build.STAMP).unlink()

    assert build.find() is None
    assert build.build() == folder
    assert filled == [folder, folder]


def test_a_failed_step_says_why_and_what_to_do() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no route to anywhere')"]

    with pytest.raises(SystemExit, match=r"no route to anywhere\s+run it again"):
        build.run(command, "run it again")


# -- without it


def without_sglang(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of one file as on a machine without the environment."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from environment import build; build.find = lambda: None\n"
        "import pytest; raise SystemExit(pytest.main(sys.argv[1:]))"
    )
    file = HERE / "test_engine_agrees.py"
    return subprocess.run(
        [sys.executable, "-c", code, "-p", "no:cacheprovider", str(file)],
        cwd=ROOT,
        env={**os.environ, "TENTER_REQUIRE_SGLANG": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_without_sglang_its_tests_are_skipped_with_the_command_to_run() -> None:
    done = without_sglang()

    assert done.returncode == 0, done.stdout
    assert "4 skipped" in done.stdout
    assert "run `make sglang`" in done.stdout


@pytest.mark.slow
def test_where_it_is_required_nothing_is_skipped() -> None:
    done = without_sglang(TENTER_REQUIRE_SGLANG="1")

    assert done.returncode not in (0, 5)
    assert "there is no SGLang here" in done.stdout + done.stderr
    assert "skipped" not in done.stdout
