"""The value of a closed expression in LaTeX or plain text: a recursive descent over few tokens.

Numbers, `+ - * / ^`, \\frac, \\sqrt, \\pi, \\cdot, \\times, \\div, brackets,
mixed numbers. Exact with fractions while it can be, a float beyond. Sizes are bounded before
anything is computed; what is not such an expression is None, and nothing is raised.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)|(?P<command>\\[A-Za-z]+)|(?P<sign>[-+*/^(){}\[\]]))"
)
_TIMES = {"*", "\\cdot", "\\times"}
_OVER = {"/", "\\div"}
_MAX_DIGITS = 60
_MAX_POWER = 64
_MAX_BITS = 512
_MAX_DEPTH = 24

Number: TypeAlias = Fraction | float


class _NoNumber(Exception):
    """The text is no closed expression, or too large a one."""


def number_of(text: str) -> str | None:
    """The value as text, equal for equal values: exact for integers, else 9 significant digits."""
    try:
        tokens = _tokens(text)
        reader = _Reader(tokens)
        value = reader.sum()
        if reader.at != len(tokens):
            return None
        return _shown(value)
    except (_NoNumber, ZeroDivisionError, OverflowError, ValueError):
        return None


def _shown(value: Number) -> str:
    if isinstance(value, Fraction) and value.denominator == 1:
        return str(value.numerator)
    real = float(value)
    if not math.isfinite(real):
        raise _NoNumber
    near = round(real)
    if abs(real - near) <= 1e-12 * max(1.0, abs(real)):
        return str(near)
    return f"{real:.9g}"


def _tokens(text: str) -> list[str]:
    found, at, text = list[str](), 0, text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(match.group(0)) > _MAX_DIGITS:
            raise _NoNumber
        found.append(match.group(0).strip())
        at = match.end()
    if not found:
        raise _NoNumber
    return found


def _bounded(value: Number) -> Number:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
            return float(value)
    elif not math.isfinite(value):
        raise _NoNumber
    return value


@dataclass(slots=True)
class _Reader:
    """A position in the tokens of one expression."""

    tokens: list[str]
    at: int = 0
    depth: int = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise _NoNumber
        self.at += 1
        return token

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NoNumber
        value = self.product()
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value = _bounded(value + sign * self.product())
        self.depth -= 1
        return value

    def product(self) -> Number:
        sign = 1
        if self.peek() in ("+", "-"):
            sign = -1 if self.take() == "-" else 1
        value = self.power()
        while True:
            token = self.peek()
            if token in _TIMES:
                self.take()
                value = _bounded(value * self.signed_power())
            elif token in _OVER:
                self.take()
                value = _bounded(value / self.signed_power())
            elif token == "\\frac" and self.tokens[self.at - 1].isdigit() and value >= 0:
                value = _bounded(value + self.power())  # a mixed number, 1\frac{1}{2}
            elif token in ("\\frac", "\\sqrt", "\\pi", "("):
                value = _bounded(value * self.power())
            else:
                return sign * value

    def signed_power(self) -> Number:
        if self.peek() == "-":
            self.take()
            return -self.power()
        return self.power()

    def power(self) -> Number:
        base = self.atom()
        if self.peek() != "^":
            return base
        self.take()
        exponent = self.signed_atom()
        if abs(exponent) > _MAX_POWER:
            raise _NoNumber
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return _bounded(base ** int(exponent))
        if base < 0:
            raise _NoNumber
        return _bounded(float(base) ** float(exponent))

    def signed_atom(self) -> Number:
        if self.peek() == "-":
            self.take()
            return -self.atom()
        return self.atom()

    def atom(self) -> Number:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return self.number(token)
        if token == "\\pi":
            return math.pi
        if token == "\\frac":
            above, below = self.argument(), self.argument()
            return _bounded(above / below)
        if token == "\\sqrt":
            return self.root()
        if token in ("(", "{"):
            value = self.sum()
            self.take(")" if token == "(" else "}")
            return value
        raise _NoNumber

    def number(self, token: str) -> Number:
        """A number; `1 1/2`, which a blank sets apart, is a mixed one."""
        following = self.tokens[self.at : self.at + 3]
        if token.isdigit() and len(following) == 3 and following[1] == "/":
            whole, above, below = token, following[0], following[2]
            if above.isdigit() and below.isdigit() and int(below):
                self.at += 3
                return Fraction(int(whole)) + Fraction(int(above), int(below))
        return Fraction(token)

    def argument(self) -> Number:
        r"""A braced group, or the single digit of \frac12."""
        token = self.peek()
        if token.isdigit():
            if len(token) > 1:
                self.tokens[self.at : self.at + 1] = list(token)
            return Fraction(self.take())
        return self.atom()

    def root(self) -> Number:
        degree: Number = Fraction(2)
        if self.peek() == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        value = self.argument()
        if value < 0 or degree <= 0:
            raise _NoNumber
        return _bounded(float(value) ** (1 / float(degree)))
