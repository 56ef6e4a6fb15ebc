"""Jinja as Tenter uses it: in a sandbox, strict about undefined names, the same each time.

Templates and expressions come from the author of a workflow; values come from rows, tools and
models, and are never compiled. There is no loader, nothing random, and what could fill the memory
(long products, powers, outputs) is refused. Jinja is imported on first use, since a plan without
Jinja code needs none of it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from .errors import PromptError

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.sandbox import SandboxedEnvironment

MAX_OUTPUT_CHARS = 10_000_000
_MAX_EXPONENT = 1_000
_MAX_BITS = 100_000

_MAX_WIDTH = 10_000  # of a padded text or a format
_WIDTH = re.compile(r"\d{5,}|\*")  # in a format: a width or a precision above it, or a given one
_PADDING = ("center", "indent", "wordwrap", "truncate", "format", "batch", "slice")  # filters

GLOBALS = frozenset({"range", "namespace"})
_RANDOM = ("random",)


@cache
def environment() -> "SandboxedEnvironment":
    """The one environment that all templates and expressions are compiled in."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Jinja's sandbox, with a limit on products and with JSON data in mind."""

        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_size(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            bare = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
            if isinstance(owner := getattr(bare, "__self__", None), str | bytes):
                _check_widths(owner, *args, *kwargs.values())
            return super().call(context, obj, *args, **kwargs)

        def getattr(self, obj: Any, attribute: str) -> Any:
            """A dict's item before its method, so that `order.items` is what the data says."""
            if isinstance(obj, dict) and attribute in obj:
                return obj[attribute]  # pyright: ignore[reportUnknownVariableType]
            return super().getattr(obj, attribute)

    made = Sandbox(autoescape=False, keep_trailing_newline=True, undefined=StrictUndefined)
    for name in set(made.globals) - GLOBALS:
        del made.globals[name]
    for name in _RANDOM:
        del made.filters[name]
    for name in _PADDING:
        made.filters[name] = _bounded(made.filters[name])
    return made


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pads no further than _MAX_WIDTH, and is not worked out ahead of time."""
    from jinja2 import pass_context

    wants = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def bounded(context: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths(*args, *kwargs.values())
        first = {"environment": context.environment, "eval_context": context.eval_ctx}
        lead = () if wants is None else (first.get(wants.name, context),)
        return function(*lead, *args, **kwargs)

    return bounded


def _check_widths(*values: Any) -> None:
    """Refuses a width that a text would be padded to, as a number or within a format."""
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_WIDTH:
            raise OverflowError(f"a width of {value} is above {_MAX_WIDTH:,}")
        if isinstance(value, str) and ("%" in value or "{" in value) and _WIDTH.search(value):
            raise OverflowError(f"a format with a width above {_MAX_WIDTH:,}, or one by '*'")


def _check_size(operator: str, left: Any, right: Any) -> None:
    """Refuses a product or a power that would not fit."""
    if operator == "%" and isinstance(left, str | bytes):
        _check_widths(left)
        return
    if operator == "**":
        if isinstance(right, int) and abs(right) > _MAX_EXPONENT:
            raise OverflowError(f"the exponent {right} is above {_MAX_EXPONENT}")
        if isinstance(left, int) and isinstance(right, int):
            left, right = 1 << min(left.bit_length() * abs(right), 2 * _MAX_BITS), 1
    for one, other in ((left, right), (right, left)):
        if isinstance(one, int) and one.bit_length() > _MAX_BITS:
            raise OverflowError("a number is too long")
        if isinstance(one, str | bytes | list | tuple) and isinstance(other, int):
            count: int = len(one)  # pyright: ignore[reportUnknownArgumentType]
            if count * other > MAX_OUTPUT_CHARS:
                raise OverflowError(f"a product has more than {MAX_OUTPUT_CHARS:,} items")


def loads(node: "nodes.Node") -> Iterator[str]:
    """The names that `node` reads, in order of appearance; a call of a global is not a read."""
    from jinja2 import nodes

    called: set[int] = set()
    stack: list[nodes.Node] = [node]
    while stack:
        at = stack.pop()
        if isinstance(at, nodes.Call) and isinstance(at.node, nodes.Name):
            if at.node.name in GLOBALS:
                called.add(id(at.node))
        elif isinstance(at, nodes.Name) and at.ctx == "load" and id(at) not in called:
            yield at.name
        stack.extend(reversed(_children(at)))


def _children(node: "nodes.Node") -> list["nodes.Node"]:
    """The nodes below `node` as they are written: `a if b else c` lists its test first in Jinja."""
    from jinja2 import nodes

    if isinstance(node, nodes.CondExpr):
        return [part for part in (node.expr1, node.test, node.expr2) if part is not None]
    return list(node.iter_child_nodes())


def undeclared(template: "nodes.Template") -> tuple[str, ...]:
    """The names that a template needs to be given, in order of first appearance.

    Also checks that its filters and tests exist.
    """
    from jinja2.meta import TrackingCodeGenerator

    generator = TrackingCodeGenerator(environment())
    generator.visit(template)
    needed = generator.undeclared_identifiers | GLOBALS
    return tuple(dict.fromkeys(name for name in loads(template) if name in needed))


def line_of(error: BaseException, template: Any) -> int:
    """The line of a template that raised `error`; 0 if that is not known."""
    line, traceback = 0, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = int(template.get_corresponding_lineno(traceback.tb_lineno))
        traceback = traceback.tb_next
    return line


def join(chunks: Iterable[str]) -> str:
    """The chunks of a rendered template as one text, unless it gets too long."""
    parts: list[str] = []
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_OUTPUT_CHARS:
            raise too_long()
        parts.append(chunk)
    return "".join(parts)


def too_long() -> PromptError:
    return PromptError(f"the rendered prompt is longer than {MAX_OUTPUT_CHARS:,} characters")


def tell_undefined(error: Exception, values: Mapping[str, Any]) -> str:
    """What an `UndefinedError` says, with the known names where a name was not found."""
    message = str(error)
    return f"{message}; known: {known(values)}" if message.endswith(" is undefined") else message


def known(values: Mapping[str, Any]) -> str:
    """The names in `values`, for the end of an error's message."""
    return ", ".join(sorted(values)) or "none"
