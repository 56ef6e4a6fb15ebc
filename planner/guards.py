"""Conditions of steps: whether one holds wherever another does, as far as their texts tell."""

from functools import lru_cache
from typing import TYPE_CHECKING

from . import template
from .graph import Value
from .values import spell

if TYPE_CHECKING:
    from jinja2 import nodes


def implies(have: Value, guard: Value) -> bool:
    """Whether `guard` holds wherever `have` does: all that it joins by `and`, `have` joins too."""
    if have == guard:
        return True
    held = _conjuncts(spell(have))
    return all(part in held for part in _conjuncts(spell(guard)) or (None,))


@lru_cache(maxsize=1024)
def _conjuncts(source: str) -> "tuple[nodes.Expr, ...]":
    """The conditions that an expression joins by `and`; none if it does not parse.

    Jinja's nodes are equal where they mean the same, whatever the brackets and the spaces.
    """
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.parser import Parser

    try:
        tree = Parser(template.environment(), source, state="variable").parse_expression()
    except (TemplateSyntaxError, RecursionError):
        return ()
    parts: list[nodes.Expr] = []
    stack: list[nodes.Expr] = [tree]
    while stack:
        part = stack.pop()
        if isinstance(part, nodes.And):
            stack += (part.right, part.left)
        else:
            parts.append(part)
    return tuple(parts)
