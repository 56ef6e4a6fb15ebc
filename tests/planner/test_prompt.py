"""Prompts: what the planner sees in a template, and that rendering is Jinja's."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tenter.planner.errors import PromptError
from tenter.planner.prompt import Dynamic, Field, Prompt, Static

JINJA = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)


def test_segments_are_texts_fields_and_code() -> None:
    prompt = Prompt.parse(
        "Hi {{ name }}, {{ order.lines[0].text }}{# note #}!\n"
        "{% if vip %}gold {{ name }}{% endif %}{{ name|upper }}"
    )

    assert prompt.segments == (
        Static("Hi "),
        Field("name"),
        Static(", "),
        Field("order", ("lines", 0, "text")),
        Static("!\n"),
        Dynamic(("vip", "name"), chars=5),
        Dynamic(("name",)),
    )
    assert prompt.fields == ("name", "order", "vip")
    assert prompt.static_prefix == "Hi "
    assert not prompt.simple


def test_prompts_are_equal_by_source() -> None:
    assert {Prompt("a {{ b }}"), Prompt.parse("a {{ b }}")} == {Prompt("a {{ b }}")}


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("plain", ()),
        ("{{ a if c else b }}", ("a", "c", "b")),
        ("{% for x in xs %}{{ x }}{{ y }}{% endfor %}", ("xs", "y")),
        ("{% set z = a %}{{ z }}", ("a",)),
        ("{% for i in range(n) %}{{ i }}{% endfor %}", ("n",)),
        ("{{ range }}{{ dict }}{{ lipsum }}", ("range", "dict", "lipsum")),
        ("{% macro m(x) %}{{ x }}{% endmacro %}{{ m(a) }}", ("a",)),
    ],
)
def test_fields_are_what_must_be_given(source: str, fields: tuple[str, ...]) -> None:
    assert Prompt.parse(source).fields == fields


@pytest.mark.parametrize("simple", ["", "text", "{{ a }}", "a {{ b }}{{ c }}\n"])
def test_simple_prompts(simple: str) -> None:
    assert Prompt(simple).simple


def test_a_set_name_is_no_field() -> None:
    assert Prompt("{% set z = 1 %}{{ z }}").segments == (Dynamic(()), Dynamic(()))


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("a\n{{ b", 2, "unexpected end of template"),
        ("a\n\n{% if %}", 3, "Expected an expression"),
        ("{{ a|nope }}", 1, "No filter named 'nope'"),
        ("{{ a is nope }}", 1, "No test named 'nope'"),
        ("{{ a|random }}", 1, "No filter named 'random'"),
        ("\n{% include 'x' %}", 2, "'{% include %}' cannot be used"),
        ("{% extends 'x' %}", 1, "'{% extends %}' cannot be used"),
        ("{% from 'x' import y %}", 1, "'{% from %}' cannot be used"),
        ("{% block x %}{% endblock %}", 1, "'{% block %}' cannot be used"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", 0, "nested too deeply"),
    ],
)
def test_a_wrong_template_says_where(source: str, line: int, message: str) -> None:
    with pytest.raises(PromptError, match=message.replace("{", r"\{").replace("%", "%")) as caught:
        Prompt.parse(source)

    assert caught.value.line == line


def test_values_are_never_templates() -> None:
    assert Prompt("{{ a }}|{{ a|upper }}").render({"a": "{{ b }}"}) == "{{ b }}|{{ B }}"


def test_json_data_wins_over_methods() -> None:
    order = {"items": [1, 2], "keys": None}

    assert Prompt("{{ order.items }} {{ order.keys }}").render({"order": order}) == "[1, 2] None"


@pytest.mark.parametrize("source", ["a\n\n{{ x }}", "a\n\n{{ x|upper }}"])
def test_an_undefined_field_names_what_is_known(source: str) -> None:
    with pytest.raises(PromptError, match="'x' is undefined; known: y, z") as caught:
        Prompt(source).render({"z": 1, "y": 2})

    assert caught.value.line == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'a' * 10**9 }}", "a product has more than"),
        ("{{ [1] * 10**8 }}", "a product has more than"),
        ("{{ 2 ** 100000 }}", "exponent"),
        ("{% for i in range(10**7) %}{% endfor %}", "Range too big"),
        ("{% for i in range(9999) %}{{ x }}{% endfor %}", "longer than 10,000,000"),
        ("{{ x.__class__ }}", "unsafe"),
        ("{{ y.append(1) }}", "unsafe|not safely callable"),
        ("{{ x.nope }}", "no attribute 'nope'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ('%s' * 3) % 1 }}", "TypeError"),
    ],
)
def test_rendering_fails_clearly(source: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prompt(source).render({"x": "x" * 2000, "y": []})


def test_a_simple_prompt_may_not_be_too_long_either() -> None:
    with pytest.raises(PromptError, match="longer than 10,000,000"):
        Prompt("{{ a }}{{ a }}").render({"a": "x" * 6_000_000})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
TEXTS = st.text(alphabet=st.sampled_from("ab %{}#s\n\r\\é"), max_size=8).filter(
    lambda text: not any(mark in text + "{" for mark in ("{{", "{%", "{#"))
)


@given(
    parts=st.lists(TEXTS | st.sampled_from(["{{ a }}", "{{b}}", "{{- a -}}", "{{ c }}\n"])),
    values=st.fixed_dictionaries({"a": VALUES, "b": VALUES, "c": VALUES}),
)
@settings(deadline=None, max_examples=200)
def test_the_fast_path_gives_what_jinja_gives(parts: list[str], values: dict[str, Any]) -> None:
    prompt = Prompt("".join(parts))

    assert prompt.simple
    assert prompt.render(values) == JINJA.from_string(prompt.source).render(values)


@given(text=st.text(alphabet=st.sampled_from("ab{%#}\n'\"\\ "), max_size=30))
@settings(deadline=None)
def test_literal_prints_itself(text: str) -> None:
    prompt = Prompt.literal(text)

    assert prompt.render({}) == text
    assert prompt.fields == ()


def test_looking_at_plain_text_needs_no_jinja() -> None:
    code = (
        "import sys, tenter.planner.optimize, tenter.planner.explain, tenter.planner.validate\n"
        "from tenter.planner.prompt import Prompt\n"
        "assert Prompt('text').render({}) == 'text'\n"
        "found = {'jinja2', 'networkx'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
