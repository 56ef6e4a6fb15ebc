"""When two answers are the same: a key per answer, equal for equal answers, None for no answer.

A key rather than a comparison, so that grouping is transitive and linear. Text comes from a model:
it is bounded in length, depth and size of numbers, and never evaluated as code.
"""

import json
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

from .latex import number_of

Key: TypeAlias = Hashable
Equivalence: TypeAlias = Callable[[str], Key | None]

MAX_CHARS = 10_000
MAX_DEPTH = 64
_MATH_CHARS = 400

# Words with which a model takes an answer back (Dynasor's list; ALGORITHMS 7).
_HEDGE = re.compile(r"\b(wait|hold|but|okay|no|hmm|hmmm)\b", re.IGNORECASE)
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\s+")
_WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}")
_DROPPED = re.compile(r"\\left|\\right|\\displaystyle|\^\{?\\circ\}?|\\degree|\\\$|\$|\\?%|°")
_DOUBLED = re.compile(r"\\\\+(?=[A-Za-z(){}\[\],])")
_NAMED = re.compile(r"^[A-Za-z](?:_\{?\w+\}?)?\s*(?:=|\\in(?![a-z]))")
_LOST_BACKSLASH = re.compile(r"^([+-]?)(?=(?:frac|sqrt|pi)\b|(?:frac|sqrt)\{)")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_MOST_WORDS = 3


def exact(text: str) -> Key | None:
    """The text itself, without the blanks around it."""
    return text.strip() or None


def choice_of(options: Iterable[str]) -> Equivalence:
    """One of `options`, whatever its case, brackets and full stop; anything else is no answer."""
    known = {_bare(option): option for option in options}
    return lambda text: known.get(_bare(text))


def json_value(text: str) -> Key | None:
    """A JSON document, whatever the order of its keys and its blanks; None if it is none."""
    if len(text) > MAX_CHARS or _depth(text) > MAX_DEPTH:
        return None
    try:
        return "json", json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None


@lru_cache(maxsize=65_536)
def math_value(text: str) -> Key | None:
    """A number, fraction, closed LaTeX expression, tuple, interval or set; or a canonical formula.

    None for what is no such value: nothing, a hedge, a sentence, a lone letter (a model that is
    forced into a box before it knows the answer writes the letter of a choice that nobody gave).
    """
    if len(text) > _MATH_CHARS or hedged(text):
        return None
    if len(_WORD.findall(_COMMAND.sub(" ", text))) > _MOST_WORDS:
        return None
    plain = canonical(text)
    if _THOUSANDS.fullmatch(plain):
        plain = plain.replace(",", "")
    return _value(plain) if _depth(plain) <= MAX_DEPTH else None


def same_as(same: Callable[[str, str], bool], *, most: int = 256) -> Equivalence:
    """Groups by an author's function: the key is the first answer that `same` holds for.

    Holds the representatives it has met, `most` of them; further ones are keys of their own.
    Make one for each step: it remembers.
    """
    known: list[str] = []

    def key(text: str) -> Key | None:
        if not text.strip():
            return None
        for first in known:
            if same(first, text):
                return first
        if len(known) < most:
            known.append(text)
        return text

    return key


def hedged(text: str) -> bool:
    """Whether the answer takes itself back (`wait`, `but`, `hmm`, ...)."""
    return _HEDGE.search(text[:MAX_CHARS]) is not None


def canonical(text: str) -> str:
    """LaTeX without what does not change its value: spacing, sizes, units, doubled backslashes."""
    plain = _DOUBLED.sub(r"\\", text.strip())
    plain = _WRAPPERS.sub(r"\1", plain)
    plain = _SPACING.sub(" ", _DROPPED.sub("", plain)).strip()
    plain = re.sub(r"\\[dtc]frac", r"\\frac", plain)
    plain = _LOST_BACKSLASH.sub(r"\1\\", plain)
    plain = re.sub(r"(?<!\d) | (?!\d)", "", plain).rstrip(".\\ ")
    return _NAMED.sub("", plain)


def extract(text: str) -> str:
    r"""The answer of a finished thought: its last `\boxed{...}`, else what follows `answer is` or
    `answer:`, else its last line."""
    tail = text[-MAX_CHARS:]
    at = tail.rfind("\\boxed{")
    if at >= 0:
        return _braced(tail, at + len("\\boxed{"))
    said = re.findall(r"answer(?:\s+is|\s*:)\s*([^\n]+)", tail, re.IGNORECASE)
    if said:
        return said[-1].strip().rstrip(".")
    lines = tail.strip().splitlines()
    return lines[-1].strip() if lines else ""


def trial(text: str) -> str:
    r"""The answer of a probe whose suffix opened `\boxed{`: all before the brace that closes it."""
    return _braced(text[:MAX_CHARS], 0)


def _braced(text: str, start: int) -> str:
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if not depth:
            return text[start:at].strip()
    return text[start:].strip()


def _bare(text: str) -> str:
    return text.strip().strip("()[]{}*.:$ ").casefold()


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth -= 1
    return deepest


def _value(plain: str) -> Key | None:
    number = number_of(plain)
    if number is not None:
        return "number", number
    items = _items(plain)
    if items is not None:
        kind, parts = items
        keys = [_part(part) for part in parts]
        if kind == "{}":
            return kind, tuple(sorted(map(str, keys)))
        return kind, tuple(keys)
    return _formula(plain)


def _part(text: str) -> Key:
    number = number_of(text)
    return text if number is None else number


def _items(plain: str) -> tuple[str, Sequence[str]] | None:
    """The brackets and the parts of a tuple, an interval or a set; a bare list is a tuple."""
    inner, kind = plain, "()"
    if plain.startswith("\\{") and plain.endswith("\\}"):
        inner, kind = plain[2:-2], "{}"
    elif plain[:1] in ("(", "[") and plain[-1:] in (")", "]") and _one_bracket(plain):
        inner, kind = plain[1:-1], plain[0] + plain[-1]
    parts = _split(inner)
    return (kind, parts) if len(parts) > 1 and all(parts) else None


def _one_bracket(plain: str) -> bool:
    """Whether the first bracket closes with the last character."""
    depth = 0
    for at, char in enumerate(plain):
        depth += (char in "([{") - (char in ")]}")
        if not depth:
            return at == len(plain) - 1
    return False


def _split(text: str) -> list[str]:
    parts, depth, start = list[str](), 0, 0
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _formula(plain: str) -> Key | None:
    """A formula or a word by its spelling; None for a lone letter, a sentence, broken brackets."""
    words = re.findall(r"[A-Za-z]{3,}", _COMMAND.sub(" ", plain))
    if re.fullmatch(r"[A-Za-z]{2,}", plain):
        return "word", plain.casefold()
    if plain.startswith("\\begin{") and plain.count("{") == plain.count("}"):
        return "formula", plain
    odd = words or any(mark in plain for mark in ("?", "=", "**", "--"))
    if odd or len(plain.strip("()[]")) < 2 or not _balanced(plain):
        return None
    return "formula", plain


def _balanced(text: str) -> bool:
    """Whether every bracket is closed; a half-open interval closes `(` with `]`."""
    opened = text.count("(") + text.count("[")
    return text.count("{") == text.count("}") and opened == text.count(")") + text.count("]")
