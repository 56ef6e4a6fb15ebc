"""Which functions a SQL text calls, and whether it may: those that are known, and the author's.

The text is cut into lexemes that every database of ours cuts alike: what one reads as a string and
another as code is refused, and so is what the parser cuts otherwise. Then nothing that has a
parenthesis behind it is anything but a known function, a word of the language, or a name that the
statement itself gives to a table.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from .sql_functions import ALLOWED, SYNTAX

_STRING = r"'(?:[^']|'')*+'"
_PARTS = {
    "blank": r"[ \t\n\r]+",
    "comment": r"--[^\n\r]*|/\*(?:(?!/\*|\*/).)*+\*/",
    "text": rf"[xX]'[0-9a-fA-F]*'|{_STRING}",
    "quoted": r'"(?:[^"]|"")*+"',
    "number": r"0[xX][0-9a-fA-F]+(?!\w)|[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?(?!\w)",
    "word": r"(?![uU]&['\"])(?![bBeEnNrRxX]['\"])[^\W\d]\w*",
    "sign": r"[-+*/<>=~!@#%^&|?:;,.(){}\[\]]",
}
_ESCAPED = r"[eE]'(?:[^'\\]|''|\\[^'])*+'"
_NAMES = {  # what else quotes text and names
    "postgres": {"text": rf"{_ESCAPED}|{_PARTS['text']}"},
    "duckdb": {"text": rf"{_ESCAPED}|{_PARTS['text']}"},
    "sqlite": {"quoted": rf"{_PARTS['quoted']}|`(?:[^`]|``)*+`|\[[^\]]*\]"},
}
_LEXEMES = {
    dialect: re.compile(
        "|".join(f"(?P<{kind}>{form})" for kind, form in {**_PARTS, **own}.items()), re.DOTALL
    )
    for dialect, own in _NAMES.items()
}
_FIELDS = frozenset({"key", "value", "ordinality"})  # of what functions of JSON return


class _Lexeme:
    """A piece of the text that is neither blank nor comment."""

    __slots__ = ("end", "kind", "start", "text")

    def __init__(self, match: re.Match[str]) -> None:
        self.kind = match.lastgroup or ""
        self.text = match[0]
        self.start, self.end = match.span()

    @property
    def name(self) -> str:
        """The name that it is, in small letters, or ""."""
        if self.kind == "word":
            return self.text.lower()
        quote = self.text[-1:]
        inner = self.text[1:-1].replace(quote * 2, quote) if quote != "]" else self.text[1:-1]
        return inner.lower() if self.kind == "quoted" else ""


def refused_call(
    sql: str, root: Any, tokens: list[Any], dialect: str, functions: frozenset[str]
) -> str | None:
    """Why `sql`, parsed as `root` from `tokens`, may call what only the author can allow."""
    lexemes: list[_Lexeme] = []
    at = 0
    while at < len(sql):
        match = _LEXEMES[dialect].match(sql, at)
        if match is None:
            return f"it has {sql[at : at + 12]!r}, which is not read alike everywhere"
        if match.lastgroup not in ("blank", "comment"):
            lexemes.append(_Lexeme(match))
        at = match.end()
    if not _cut_alike(lexemes, tokens):
        return "its quotes or comments are not read alike everywhere"
    for name in _not_allowed(lexemes, root, dialect, functions):
        cure = f"its author may allow it by functions=[{name!r}]"
        return f"it calls {name}, which may reach beyond the tables; {cure}"
    return _by_a_point(root, functions) if dialect == "postgres" else None


def calls_foreign(root: Any, functions: frozenset[str]) -> bool:
    """Whether it calls one that only the author knows."""
    return any(name not in ALLOWED and name in functions for name in _unknown_calls(root))


def _cut_alike(lexemes: list[_Lexeme], tokens: list[Any]) -> bool:
    """Whether the parser's tokens begin and end where lexemes do, and leave none out."""
    starts = {each.start for each in lexemes}
    ends = {each.end for each in lexemes}
    if not all(token.start in starts and token.end + 1 in ends for token in tokens):
        return False
    spans = [(token.start, token.end + 1) for token in tokens]
    at = 0
    for each in lexemes:
        while at < len(spans) and spans[at][1] <= each.start:
            at += 1
        if at == len(spans) or each.start < spans[at][0] or each.end > spans[at][1]:
            return False
    return True


def _not_allowed(
    lexemes: list[_Lexeme], root: Any, dialect: str, functions: frozenset[str]
) -> Iterator[str]:
    """Names with a parenthesis behind them that nobody allows."""
    from sqlglot import exp
    from sqlglot.dialects.dialect import Dialect

    parser: Any = Dialect.get_or_raise(dialect).parser_class
    parsed: set[str] = {name.lower() for name in (*parser.FUNCTIONS, *parser.FUNCTION_PARSERS)}
    aliases = {alias.name.lower() for alias in root.find_all(exp.TableAlias)} - parsed
    for i, (each, after) in enumerate(pairwise(lexemes)):
        if after.text != "(" or not (name := each.name):
            continue
        schema = lexemes[i - 2].name if i > 1 and lexemes[i - 1].text == "." else ""
        if dialect == "postgres" and schema not in ("", "pg_catalog"):
            name = f"{schema}.{name}"
        word = each.kind == "word" and not schema
        if name in ALLOWED or name in functions or (word and name in SYNTAX):
            continue
        if name not in aliases:
            yield name
    yield from (
        name for name in _unknown_calls(root) if name not in ALLOWED and name not in functions
    )


def _unknown_calls(root: Any) -> Iterator[str]:
    """Names of the functions that the parser does not know; with their schema, if they have one."""
    from sqlglot import exp

    for node in root.find_all(exp.Anonymous, exp.AnonymousAggFunc):
        name, dot = str(node.name).lower(), node.parent
        schema = (
            dot.this.name.lower() if isinstance(dot, exp.Dot) and dot.expression is node else ""
        )
        yield name if schema in ("", "pg_catalog") or name in ALLOWED else f"{schema}.{name}"


def _by_a_point(root: Any, functions: frozenset[str]) -> str | None:
    """PostgreSQL calls f(x) for (x).f, and for x.f where x is what a function returned (manual,
    4.2.6 and 38.5.3): why such a name may be a function, unless it is known to be a field."""
    from sqlglot import exp

    known = ALLOWED | _FIELDS | functions
    for dot in root.find_all(exp.Dot):
        field = dot.expression
        if isinstance(field, exp.Identifier) and field.name.lower() not in known:
            cure = f"its author may allow it by functions=[{field.name.lower()!r}]"
            return f"it says .{field.name} of a value, which may call a function; {cure}"
    rows, fields = _sources(root, exp)
    for column in root.find_all(exp.Column):
        source, name = str(column.table).lower(), column.name.lower()
        if not source or isinstance(column.this, exp.Star) or name in known:
            continue
        if source in fields and name not in fields[source]:
            return f"it says {source}.{name}, which may call a function: say AS {source}({name})"
        if source not in fields and source not in rows:
            return f"it says {source}.{name}, and {source} is no table of it"
    return None


def _sources(root: Any, exp: Any) -> tuple[set[str], dict[str, set[str]]]:
    """Names of tables, whose columns are columns; and of what functions return, with its columns."""
    rows: set[str] = {
        each.alias.lower() for each in root.find_all(exp.CTE, exp.Subquery, exp.Values)
    }
    fields: dict[str, set[str]] = {}
    for source in root.find_all(exp.Table, exp.Unnest, exp.Lateral):
        name = str(source.alias or source.name).lower()
        inner = source.this
        if isinstance(inner, exp.Identifier) or isinstance(getattr(inner, "this", None), exp.Query):
            rows.add(name)
            continue
        alias, position = source.args.get("alias"), source.args.get("offset")
        columns: list[Any] = [*(alias.columns if alias is not None else ())]
        columns += [position] if isinstance(position, exp.Identifier) else []
        fields.setdefault(name, {name}).update(column.name.lower() for column in columns)
    return rows, fields
