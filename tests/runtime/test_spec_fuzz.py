"""Whatever is read, the only errors are those that name what the author has to mend."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenter.runtime.errors import InvalidInput
from tenter.runtime.spec import dump, loads
from tenter.runtime.spec.keys import STEP_KINDS, TOOL_KINDS, TOP
from tenter.tools import InvalidTool

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOOD = [path.read_text() for path in sorted((FIXTURES / "good").glob("*.yaml"))]
BAD = [path.read_text(errors="replace") for path in sorted((FIXTURES / "bad").glob("*.yaml"))]
FILE = str(FIXTURES / "good" / "fuzzed.yaml")

relaxed = settings(
    deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(autouse=True)
def _no_command_of_a_fuzzer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(server: Any) -> Any:
        raise InvalidTool("mcp", "not asked in this test")

    monkeypatch.setattr("tenter.tools.mcp._discover", refuse)


def survives(text: str) -> None:
    """Reads a text; what it accepts can be written and read again."""
    try:
        workflow = loads(text, FILE)
    except InvalidInput as error:
        assert str(error)
        assert all(line.strip() for line in str(error).splitlines()[:1])
        return
    assert workflow.graph is not None
    assert loads(dump(workflow), FILE).graph == workflow.graph


TABLES = (TOP, *STEP_KINDS.values(), *TOOL_KINDS.values())
KEYS = sorted({key for table in TABLES for key in table})
words = st.sampled_from(
    [*KEYS, "x", "ticket", "string", "{{ x }}", "{{ ticket.a }}", "{% if x %}", "{{", "yes", "a b"]
)
scalars = st.one_of(
    words, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)
)
data: Any = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(words | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=25,
)


@relaxed
@given(st.text(max_size=300))
def test_random_texts(text: str) -> None:
    survives(text)


@relaxed
@given(st.text(alphabet="[]{}:,-&*!|>'\"#%@` \n\tab01?", max_size=120))
def test_random_signs(text: str) -> None:
    survives(text)


@relaxed
@given(data)
def test_random_data(value: Any) -> None:
    survives(yaml.safe_dump(value))


names = st.sampled_from(["x", "y", "z", "ticket", "my-step", "class"])


@st.composite
def steps(draw: st.DrawFn) -> dict[str, Any]:
    """A step of some kind, with some of its keys, most of them wrong."""
    kind = draw(st.sampled_from(sorted(STEP_KINDS)))
    keys = draw(st.lists(st.sampled_from(sorted(STEP_KINDS[kind])), max_size=4))
    made = {key: draw(words if draw(st.booleans()) else data) for key in {kind, *keys}}
    if draw(st.booleans()):
        made["steps"] = {draw(names): {"llm": draw(words)}}
    return made


@st.composite
def tools(draw: st.DrawFn) -> dict[str, Any]:
    """A tool of some kind, with some of its keys, most of them wrong."""
    kind = draw(st.sampled_from(sorted(TOOL_KINDS)))
    keys = draw(st.lists(st.sampled_from(sorted(TOOL_KINDS[kind])), max_size=4))
    return {key: draw(words if draw(st.booleans()) else data) for key in {kind, *keys}}


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    """A workflow whose frame is right."""
    made: dict[str, Any] = {"version": 1, "name": "fuzz"}
    for key in draw(st.sets(st.sampled_from(["models", "description"]))):
        made[key] = draw(data)
    if draw(st.booleans()):
        made["inputs"] = draw(st.dictionaries(names, data, max_size=3))
    if draw(st.booleans()):
        made["tools"] = draw(st.dictionaries(names, data | tools(), max_size=3))
    made["steps"] = draw(st.dictionaries(names, steps(), max_size=4))
    made["output"] = draw(words | data)
    return made


@relaxed
@given(workflows())
def test_random_workflows(value: Any) -> None:
    survives(yaml.safe_dump(value, sort_keys=False))


TOKENS = [
    *("x", "ticket", "loop", "none", "true", "1", "2.5", "1e999", "'a'", '"b', "\\", "and", "or"),
    *("not", "in", "is", "defined", "if", "else", "(", ")", "[", "]", "{", "}", ",", ":", ".", "|"),
    *(
        "upper",
        "shout",
        "join",
        "+",
        "-",
        "*",
        "**",
        "//",
        "%",
        "~",
        "==",
        "<",
        "=",
        "{{",
        "}}",
        "#",
    ),
    *("range", "namespace", "__class__", "for", "set", "_", "é", "\n", "0x1"),
]


@settings(relaxed, max_examples=250)
@given(st.lists(st.sampled_from(TOKENS), max_size=12))
def test_random_expressions(tokens: list[str]) -> None:
    source = " ".join(tokens)
    top = {"version": 1, "name": "x", "inputs": {"x": "any", "ticket": "string"}}
    step = {"value": "{{ " + source + " }}"}
    prompt = {"llm": "{{ x }}{{ ticket }}", "with": {"x": source}, "when": source or "x"}
    text = {**top, "steps": {"y": step, "z": prompt}, "output": ["{{ y }}", "{{ z }}", source]}
    survives(yaml.safe_dump(text, sort_keys=False))


@pytest.mark.parametrize(
    "sign", ["(", "[", "{1:", "-", "not ", "x.a", "x+", "x if ", "x|upper", "'"]
)
def test_expressions_of_great_depth(sign: str) -> None:
    for count in (150, 2_000):
        survives(
            "version: 1\nname: x\ninputs: {x: any}\nsteps: {}\n"
            + yaml.safe_dump({"output": "{{ x ~ " + sign * count + " x }}"}, width=10**6)
        )


PIECES = ["{{", "}}", "{%", "%}", ":", "\n", "  ", "- ", "'", '"', "&a ", "*a", "!!x ", "~", "yes"]


@pytest.mark.parametrize("seed", range(12))
def test_mutated_workflows(seed: int) -> None:
    chance = random.Random(seed)
    for source in (*GOOD, chance.choice(BAD)):
        for _ in range(12):
            text = source
            for _ in range(chance.randint(1, 4)):
                text = mutated(text, chance)
            survives(text)


def mutated(text: str, chance: random.Random) -> str:
    """The text with a piece cut out, put in, doubled, or its lines exchanged."""
    at, length = chance.randrange(len(text) + 1), chance.randint(1, 20)
    match chance.randrange(5):
        case 0:
            return text[:at] + text[at + length :]
        case 1:
            return text[:at] + chance.choice(PIECES) + text[at:]
        case 2:
            return text[:at] + text[at : at + length] + text[at:]
        case 3:
            other = chance.randrange(len(text) + 1)
            return text[:at] + text[other : other + length] + text[at:]
        case _:
            lines = text.split("\n")
            one, two = chance.randrange(len(lines)), chance.randrange(len(lines))
            lines[one], lines[two] = lines[two], lines[one]
            return "\n".join(lines)


@relaxed
@given(st.text(max_size=40), st.text(max_size=40))
def test_all_texts_come_back_from_yaml(prompt: str, value: str) -> None:
    from tenter.planner.graph import LLM, Compute, Graph, ListOf, Ref
    from tenter.planner.prompt import Prompt
    from tenter.runtime.api.source import const
    from tenter.runtime.workflow import Workflow

    source = Prompt.literal(prompt or "x")
    if not source.source.strip():
        return
    steps = (LLM(id="a", prompt=source), Compute(id="b", value=const([value, {"k": value}])))
    graph = Graph("texts", (), steps, ListOf((Ref("a"), Ref("b"))))
    try:
        text = dump(Workflow("texts", (), graph))
    except InvalidInput:
        return
    assert loads(text).graph == graph
