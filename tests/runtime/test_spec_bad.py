"""Every broken workflow gives exactly the problems that are written beside it."""

from pathlib import Path

import pytest

from tenter.runtime.errors import InvalidInput, InvalidWorkflow
from tenter.runtime.load import load_workflow
from tenter.runtime.spec import load, loads

BAD = Path(__file__).parents[1] / "fixtures" / "bad"
CASES = sorted(path for path in BAD.glob("[0-9]*.*") if path.suffix in {".yaml", ".py"})


def test_there_are_enough_and_each_says_what_it_expects() -> None:
    assert len(CASES) >= 60
    assert [case.name for case in CASES if not case.with_suffix(".txt").exists()] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_problems_are_told_with_their_places(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    reference = case.name if case.suffix == ".yaml" else f"{case.name}:broken"

    with pytest.raises(InvalidInput) as caught:
        load_workflow(reference)

    said = str(caught.value).replace(f"{BAD}/", "")
    assert said == case.with_suffix(".txt").read_text().rstrip("\n")
    assert caught.value.exit_code == 2
    if isinstance(caught.value, InvalidWorkflow):
        places = [(p.file, p.line, p.column) for p in caught.value.problems]
        assert places == sorted(places)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.yaml cannot be read: No such file"):
        load(tmp_path / "nothing.yaml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_that_is_too_large() -> None:
    with pytest.raises(InvalidWorkflow, match="larger than 1,000,000 bytes: split it"):
        loads("version: 1\n" + "# comment\n" * 200_000)


def test_a_python_file_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def broken(:\n")
    with pytest.raises(InvalidWorkflow) as caught:
        load_workflow(f"{tmp_path}/broken.py:broken")
    assert caught.value.problems[0].line == 1


def test_workflows_that_use_each_other_in_a_circle(tmp_path: Path) -> None:
    text = "version: 1\nname: x\nsteps: {{a: {{workflow: {other}}}}}\noutput: '{{{{ a }}}}'\n"
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(text.format(other=f"{other}.yaml"))

    with pytest.raises(InvalidWorkflow, match=r"circle: a.yaml -> b.yaml -> c.yaml -> a.yaml"):
        load(tmp_path / "a.yaml")


def test_a_tool_module_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = (\n")
    (tmp_path / "flow.yaml").write_text(
        "version: 1\nname: x\ntools: {t: {python: 'mine:t'}}\nsteps: {a: {tool: t}}\noutput: x\n"
    )
    with pytest.raises(InvalidWorkflow, match=r"'mine' is no Python: .*mine.py:1: '\(' was never"):
        load(tmp_path / "flow.yaml")
