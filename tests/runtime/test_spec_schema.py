"""The JSON Schema for editors says what the validator does."""

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tenter.runtime.errors import InvalidWorkflow
from tenter.runtime.schema import json_schema
from tenter.runtime.spec import dump, load, loads
from tenter.runtime.spec.keys import BLOCK, BRANCH_STEP, STEP_KINDS, TOOL_KINDS, TOP
from tenter.runtime.spec.reader import Reader

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOOD = sorted((FIXTURES / "good").glob("*.yaml"))
SCHEMA = Draft202012Validator(json_schema())


def data_of(text: str) -> Any:
    return Reader().read(text).data


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_it_accepts_what_is_right(path: Path) -> None:
    errors = [error.message for error in SCHEMA.iter_errors(data_of(path.read_text()))]
    written = [error.message for error in SCHEMA.iter_errors(data_of(dump(load(path))))]

    assert errors == written == []


def test_it_has_the_validators_keys_and_their_docs() -> None:
    schema = json_schema()
    steps = {f"{kind}_step": table for kind, table in STEP_KINDS.items()}
    tools = {f"{kind}_tool": table for kind, table in TOOL_KINDS.items()}
    tables = {"branch_step": BRANCH_STEP, "block": BLOCK, **tools, **steps}
    made = {name: schema["$defs"][name] for name in tables} | {"": schema}

    for name, table in {**tables, "": TOP}.items():
        assert list(made[name]["properties"]) == list(table)
        assert made[name]["required"] == [key for key, entry in table.items() if entry.required]
        for key, entry in table.items():
            assert made[name]["properties"][key]["description"] == entry.doc


WRONG = [
    "version: 2",
    "name: ''",
    "name: [a]",
    "nam: x",
    "steps: [a]",
    "steps: {a: {llm: x, max_tokens: 0}}",
    "steps: {a: {llm: x, max_tokens: many}}",
    "steps: {a: {llm: x, top_p: 0}}",
    "steps: {a: {llm: x, top_p: 1.1}}",
    "steps: {a: {llm: x, temperature: -0.1}}",
    "steps: {a: {llm: x, choices: [1, 2]}}",
    "steps: {a: {llm: x, choices: [a]}}",
    "steps: {a: {llm: x, choices: [a, a]}}",
    "steps: {a: {llm: x, stop: 3}}",
    "steps: {a: {llm: x, tool: y}}",
    "steps: {a: {llm: x, max_token: 5}}",
    "steps: {a: {}}",
    "steps: {a: {agent: x, max_turns: 0}}",
    "steps: {a: {agent: x, max_tokens: many}}",
    "steps: {a: {agent: x, turn_tokens: 0}}",
    "steps: {a: {agent: x, tools: 3}}",
    "steps: {a: {agent: x, allow: {a: b}}}",
    "steps: {a: {agent: x, choices: [a, b]}}",
    "steps: {a: {agent: x, llm: y}}",
    "steps: {a: {agent: ''}}",
    "steps: {my-step: {llm: x}}",
    "steps: {a: {each: 3, result: x}}",
    "steps: {a: {when: 3, then: x}}",
    "steps: {a: {when: true, else: x}}",
    "steps: {a: {llm: x, ignore_eos: 1}}",
    "tools: {a: {effect: pure}}",
    "tools: {a: {python: 'a:b', effect: sometimes}}",
    "tools: {a: {python: 'a:b', retries: -1}}",
    "tools: {a: {python: 'a:b', timeout_s: 0}}",
    "models: {a: 3}",
    "inputs: {a: strng}",
    "inputs: [a]",
]


@pytest.mark.parametrize("part", WRONG)
def test_both_refuse_what_is_wrong(part: str) -> None:
    key = part.partition(":")[0]
    rest = {"version": "1", "name": "x", "steps": "{a: {llm: x}}", "output": "'{{ a }}'"}
    text = (
        "\n".join(f"{name}: {value}" for name, value in rest.items() if name != key) + "\n" + part
    )

    assert not SCHEMA.is_valid(data_of(text))
    with pytest.raises(InvalidWorkflow):
        loads(text)


def test_the_frame_of_these_is_right() -> None:
    text = "version: 1\nname: x\nsteps: {a: {llm: x}}\noutput: '{{ a }}'\n"

    assert SCHEMA.is_valid(data_of(text))
    assert loads(text).name == "x"
