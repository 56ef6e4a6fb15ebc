"""Answers that are the same have the same key, those that are none have none, nothing is raised."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.runtime.reasoning.answers import (
    choice_of,
    exact,
    extract,
    json_value,
    math_value,
    same_as,
    trial,
)

SAME = [
    ("1/2", "0.5", r"\frac12", r"\\frac{1}{2}", "frac{1}{2}", r"\dfrac{1}{2}", r"\frac{2}{4}"),
    ("1,234", "1234", r"\$1,234", "1234.0"),
    (r"(3,\frac{\pi}{2})", r"3,\\frac{\\pi}{2}", r"\left(3, \frac{\pi}{2}\right)"),
    (r"3\sqrt{2}", r"\sqrt{18}", r"3 \cdot \sqrt{2}"),
    (r"1\frac{1}{2}", "1 1/2", "3/2"),
    (r"\{1,2\}", r"\{2, 1\}"),
    (r"90^\circ", "90", "x = 90"),
    (r"p - q", "p-q"),
    ("2/3", "0.6666666667"),
    ("-5", r"\text{-5}", "-5."),
    (r"2^{10}", "1024"),
    (r"\sqrt[3]{8}", "2"),
]
DIFFERENT = [
    ("256", "-256"),
    (r"\sqrt{51}", "51"),
    ("[2,7]", "(2,7)"),
    ("12345678901", "12345678902"),
    ("11/2", "1 1/2"),
    ("(1,2)", "(2,1)"),
    ("0.33", "1/3"),
]
NONE = [
    "",
    "D",
    "(C)",
    r"\text{(C)}",
    "FinalAnswer**",
    "5 but wait",
    "((((",
    r"\frac{14}{3",
    "the sum of all of them",
    "?",
    "--50",
]


@pytest.mark.parametrize("group", SAME, ids=lambda group: group[0])
def test_spellings_of_one_value_share_a_key(group: tuple[str, ...]) -> None:
    keys = {math_value(text) for text in group}

    assert len(keys) == 1
    assert None not in keys


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_values_have_other_keys(one: str, other: str) -> None:
    assert math_value(one) != math_value(other)


@pytest.mark.parametrize("text", NONE, ids=lambda text: text or "empty")
def test_what_is_no_value_has_no_key(text: str) -> None:
    assert math_value(text) is None


@given(st.text(alphabet=r"0123456789+-*/^().,{}[]\ fracsqtpie=e", max_size=120))
def test_no_text_raises(text: str) -> None:
    hash(math_value(text))
    extract(text)
    trial(text)
    json_value(text)


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**6))
def test_fractions_equal_their_latex(above: int, below: int) -> None:
    sign = "-" if above < 0 else ""
    latex = rf"{sign}\frac{{{abs(above)}}}{{{below}}}"

    assert math_value(f"{above}/{below}") == math_value(latex) is not None


@pytest.mark.parametrize(
    "text",
    [
        "9" * 400,
        "9^9^9^9^9",
        "(" * 399,
        "\\frac" * 79,
        "\\sqrt{" * 60,
        "1^{" * 100,
        "[" * 9_999,
        "2^{64}" * 60,
        "x" * 1_000_000,
        "\\text{" * 60,
    ],
    ids=lambda text: f"{text[:8]}x{len(text)}",
)
def test_hostile_text_is_cheap(text: str) -> None:
    began = time.process_time()

    math_value(text)
    json_value(text)
    extract(text)

    assert time.process_time() - began < 1.0


def test_json_ignores_order_and_blanks() -> None:
    assert json_value('{"a": 1, "b": [1, 2]}') == json_value('{"b":[1,2],"a":1}')
    assert json_value('{"a": 1}') != json_value('{"a": 2}')
    assert json_value("{'a': 1}") is None


def test_choices_are_told_apart_from_anything_else() -> None:
    key = choice_of(["A", "B"])

    assert key("(a)") == key("A.") == "A"
    assert key("C") is None


def test_an_authors_function_groups() -> None:
    key = same_as(lambda one, other: one.lower() == other.lower())

    assert key("Paris") == key("PARIS") != key("Rome")
    assert key("  ") is None


def test_exact_is_the_text() -> None:
    assert exact(" 0.50 ") == "0.50" != exact("0.5")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1} or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("Thus the answer is 12.", "12"),
        ("a\nAnswer: yes", "yes"),
        ("first\nlast", "last"),
        ("", ""),
    ],
    ids=["boxed", "is", "colon", "line", "empty"],
)
def test_the_answer_of_a_finished_thought(text: str, answer: str) -> None:
    assert extract(text) == answer


def test_a_trial_ends_with_the_brace_that_its_suffix_opened() -> None:
    assert trial(r"\frac{1}{2}} \]") == r"\frac{1}{2}"
    assert trial("12") == "12"
