"""Values: constants, references and expressions, worked out over names."""

from types import SimpleNamespace
from typing import Any

import pytest

from tenter.planner.errors import EvaluationError, PromptError
from tenter.planner.graph import Const, DictOf, Expr, ListOf, Ref, Value
from tenter.planner.values import check_expression, compile_args, compile_value, evaluate, spell

NAMES: dict[str, Any] = {
    "n": 3,
    "text": "abc",
    "order": {"items": [{"id": 7}], "0": "zero"},
    "thing": SimpleNamespace(size=5, _secret=1, call=lambda: 1),
    "result": 1,
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Const('{"a": [1, null]}'), {"a": [1, None]}),
        (Const('"x"'), "x"),
        (Ref("n"), 3),
        (Ref("order", ("items", 0, "id")), 7),
        (Ref("order", ("items", -1, "id")), 7),
        (Ref("order", ("0",)), "zero"),
        (Ref("thing", ("size",)), 5),
        (Expr("n + 1", ("n",)), 4),
        (Expr("order.items[0].id == 7 and n > 2", ("order", "n")), True),
        (Expr("result + 1", ("result",)), 2),
        (Expr("[text]|map('upper')", ("text",)), ["ABC"]),
        (Expr("range(n)", ("n",)), [0, 1, 2]),
        (Expr("missing is defined", ("missing",)), False),
        (Expr("missing|default('x')", ("missing",)), "x"),
        (Expr("none", ()), None),
        (ListOf((Ref("n"), Const("1"))), [3, 1]),
        (DictOf((("a", Ref("n")), ("b", ListOf(())))), {"a": 3, "b": []}),
    ],
    ids=lambda value: spell(value) if isinstance(value, Value) else None,
)
def test_values(value: Value, expected: Any) -> None:
    assert evaluate(value, NAMES) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Ref("nope"), "nope: 'nope' is undefined; known: n, order, result, text, thing"),
        (Ref("order", ("nope",)), "order.nope: there is no 'nope'; there is 'items', '0'"),
        (Ref("order", ("items", 1)), "order.items[1]: there is no 1 in a list of 1"),
        (Ref("order", ("items", "x")), "order.items.x: there is no 'x' in a list of 1"),
        (Ref("text", ("upper",)), "text.upper: there is no 'upper' in a str"),
        (Ref("thing", ("_secret",)), "thing._secret: there is no '_secret' in a SimpleNamespace"),
        (Ref("thing", ("call",)), "there is no 'call'"),
        (Expr("n + nope", ()), "n + nope: 'nope' is undefined; known: n,"),
        (Expr("[order.nope]", ()), "no attribute 'nope'"),
        (Expr("n / 0", ()), "ZeroDivisionError"),
        (Expr("1 if n > 5", ()), "may lack its 'else'"),
        (Expr("text.__class__", ()), "unsafe"),
        (Expr("text * 10 ** 9", ()), "a product has more than"),
    ],
    ids=lambda value: spell(value) if isinstance(value, Value) else None,
)
def test_what_is_missing_is_named(value: Value, message: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        evaluate(value, NAMES)

    assert message in str(caught.value)


def test_a_constant_list_is_new_each_time() -> None:
    make = compile_value(Const("[1]"))
    make({}).append(2)

    assert make({}) == [1]


def test_arguments() -> None:
    assert compile_args((("a", Ref("n")), ("b", Const("2"))))(NAMES) == {"a": 3, "b": 2}


def test_an_expression_names_what_it_reads() -> None:
    assert check_expression("a.b if c else range(d)|list") == ("a", "c", "d")


@pytest.mark.parametrize("source", ["", "a b", "a }}{{ b", "a|nope", "a is nope", "(" * 5000])
def test_a_wrong_expression(source: str) -> None:
    with pytest.raises(PromptError):
        check_expression(source)
    with pytest.raises(EvaluationError):
        compile_value(Expr(source, ()))


@pytest.mark.parametrize(
    "source",
    [
        "'%999999999d' % 1",
        "'%*d' % (999999999, 1)",
        "'a' | center(1000000000)",
        "'a'.rjust(1000000000)",
        "'{:>1000000000}'.format('a')",
        "'a' | indent(1000000000)",
        "'%999999999d' | format(1)",
    ],
)
def test_padding_cannot_fill_the_memory(source: str) -> None:
    with pytest.raises(EvaluationError, match="width"):
        evaluate(Expr(source, ()), {})


def test_padding_and_formats_work_within_bounds() -> None:
    for source, value in (
        ("'a' | center(5)", "  a  "),
        ("'%05d' % 7", "00007"),
        ("'%s-%s' | format('a', 'b')", "a-b"),
        ("'{:>3}'.format('a')", "  a"),
        ("17 % 5", 2),
        ("[1, 2, 3] | batch(2) | list", [[1, 2], [3]]),
        ("'a b c' | truncate(3, true, '', 0)", "a b"),
        ("'x' | indent(2, true)", "  x"),
    ):
        assert evaluate(Expr(source, ()), {}) == value
