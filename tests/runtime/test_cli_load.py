"""Which workflow a reference names, and what is said of one that names none."""

import sys
from pathlib import Path

import pytest

from tenter.runtime.errors import InvalidInput, InvalidWorkflow
from tenter.runtime.load import load_workflow

FLOW = """
from tenter.runtime import llm, workflow

say = llm("Say {{ text }}.")

@workflow
def NAME(text: str) -> str:
    return say(text=text)
"""
YAML = """\
version: 1
name: yaml_flow
inputs: {text: string}
steps: {say: {llm: "Say {{ text }}."}}
output: "{{ say }}"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "flow.yaml").write_text(YAML)
    (tmp_path / "one.py").write_text(FLOW.replace("NAME", "alone"))
    (tmp_path / "two.py").write_text(FLOW.replace("NAME", "left") + FLOW.replace("NAME", "right"))
    (tmp_path / "none.py").write_text("left = 3\n")
    (tmp_path / "uses.py").write_text("import one\n" + FLOW.replace("NAME", "using"))
    (tmp_path / "shared.py").write_text("from one import alone\n" + FLOW.replace("NAME", "own"))
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "raises.py").write_text("x = 1\n\nraise KeyError('gone')\n")
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("flow.yaml", "yaml_flow"),
        ("one.py", "alone"),
        ("one.py:alone", "alone"),
        ("two.py:right", "right"),
        ("uses.py", "using"),
        ("shared.py", "own"),
        ("shared.py:alone", "alone"),
    ],
)
def test_a_reference_names_a_workflow(reference: str, name: str) -> None:
    assert load_workflow(reference).name == name


def test_a_module_is_found_from_the_working_folder(folder: Path) -> None:
    (folder / "as_module.py").write_text(FLOW.replace("NAME", "alone"))

    assert load_workflow("as_module:alone").name == "alone"


def test_a_whole_path_works_from_elsewhere(folder: Path) -> None:
    assert load_workflow(str(folder / "one.py")).name == "alone"
    assert load_workflow(f"{folder / 'two.py'}:left").name == "left"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("flow.yml", "there is no file flow.yml; did you mean 'flow.yaml'?"),
        ("flow.yaml:x", "a YAML file holds one workflow"),
        ("absent.py", "there is no file absent.py"),
        ("two.py", "two.py holds 2 workflows; name one: two.py:left, two.py:right"),
        ("two.py:rigth", "did you mean 'right'?"),
        ("none.py", "none.py holds no workflow"),
        ("none.py:left", "none.py:left is no workflow"),
        ("nowhere:flow", "there is no module 'nowhere'; for a file write nowhere.py:name"),
        ("what is this", "names no workflow"),
        (".", "names no workflow"),
    ],
)
def test_what_leads_nowhere_says_what_would_be_right(reference: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_workflow(reference)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("syntax.py", "syntax.py:2:"),
        ("raises.py", "raises.py:3: KeyError: 'gone'"),
    ],
)
def test_a_file_that_fails_names_its_line(reference: str, said: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        load_workflow(reference)

    assert said in str(caught.value)
