"""Prompts as the planner sees them: a Jinja template split into static text, fields and code.

The static prefix and the order of the fields are what prefix sharing is planned from.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from . import template
from .errors import PromptError

if TYPE_CHECKING:
    from jinja2 import Template, nodes


@dataclass(frozen=True, slots=True)
class Static:
    """Text that is the same in every call."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """A plain output, `{{ name }}` or `{{ name.part[0] }}`."""

    name: str
    path: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Any other Jinja code: the names it reads, and how much text of its own it may print."""

    uses: tuple[str, ...]
    chars: int = 0


Segment = Static | Field | Dynamic


@dataclass(frozen=True, slots=True)
class Prompt:
    """A Jinja2 template, sandboxed and strict about undefined names.

    `Prompt(source)` checks nothing; a syntax error is raised by whatever looks inside first.
    What is found is kept, so that looking again costs nothing.
    """

    source: str

    @classmethod
    def parse(cls, source: str) -> "Prompt":
        """A prompt whose syntax has been checked; raises `PromptError`."""
        prompt = cls(source)
        _analyse(source)
        return prompt

    @classmethod
    def literal(cls, text: str) -> "Prompt":
        """A prompt that prints `text` as it is, braces and all."""
        return cls(re.sub(r"\{[{%#]", r"{{ '\g<0>' }}", text))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of the template in order; neighbouring texts are joined."""
        return _analyse(self.source).segments

    @property
    def fields(self) -> tuple[str, ...]:
        """The names that the template must be given, in order of first appearance."""
        return _analyse(self.source).fields

    @property
    def static_prefix(self) -> str:
        """The text before the first field or code."""
        match self.segments:
            case (Static(text), *_):
                return text
            case _:
                return ""

    @property
    def simple(self) -> bool:
        """Whether there is nothing but text and whole fields."""
        return all(
            isinstance(part, Static) or (isinstance(part, Field) and not part.path)
            for part in self.segments
        )

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt's text for these values, each printed as Python's `str` does.

        JSON data is printed as JSON with the filter `tojson`. Raises `PromptError`, also where a
        name is undefined.
        """
        return _renderer(self.source)(values)


@dataclass(frozen=True, slots=True)
class _Analysis:
    segments: tuple[Segment, ...]
    fields: tuple[str, ...]


@lru_cache(maxsize=4096)
def _analyse(source: str) -> _Analysis:
    if not any(mark in source for mark in ("{{", "{%", "{#", "\r")):
        return _Analysis((Static(source),) if source else (), ())  # and no Jinja is imported
    parsed = _parse(source)
    fields = template.undeclared(parsed)
    return _Analysis(tuple(_segments(parsed, frozenset(fields))), fields)


def _parse(source: str) -> "nodes.Template":
    from jinja2 import TemplateSyntaxError

    try:
        parsed = template.environment().parse(source)
        _refuse_loading(parsed)
        template.undeclared(parsed)
    except TemplateSyntaxError as error:
        raise PromptError(error.message or "syntax error", error.lineno) from None
    except RecursionError:
        raise PromptError("the template is nested too deeply") from None
    return parsed


def _refuse_loading(parsed: "nodes.Template") -> None:
    """Refuses what would need another template."""
    from jinja2 import nodes

    kinds = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
    for node in parsed.find_all(kinds):
        name = "from" if isinstance(node, nodes.FromImport) else type(node).__name__.lower()
        raise PromptError(
            f"'{{% {name} %}}' cannot be used: a prompt is one template; put the text in it, or "
            "pass it as a field",
            node.lineno,
        )


def _segments(parsed: "nodes.Template", fields: frozenset[str]) -> Iterator[Segment]:
    """The parts of a template, neighbouring texts joined."""
    from jinja2 import nodes

    assigned = {name.name for name in parsed.find_all(nodes.Name) if name.ctx != "load"}
    text = ""
    for node in _outputs(parsed):
        part = _segment(node, fields, fields - assigned)
        if isinstance(part, Static):
            text += part.text
            continue
        if text:
            yield Static(text)
            text = ""
        yield part
    if text:
        yield Static(text)


def _outputs(parsed: "nodes.Template") -> Iterator["nodes.Node"]:
    from jinja2 import nodes

    for node in parsed.body:
        if isinstance(node, nodes.Output):
            yield from node.nodes
        else:
            yield node


def _segment(node: "nodes.Node", fields: frozenset[str], plain: frozenset[str]) -> Segment:
    from jinja2 import nodes

    match node:
        case nodes.TemplateData():
            return Static(node.data)
        case nodes.Const(value=str(text)):
            return Static(text)
        case nodes.Name() | nodes.Getattr() | nodes.Getitem():
            field = _field(node)
            if field is not None and field.name in plain:
                return field
        case _:
            pass
    uses = tuple(dict.fromkeys(name for name in template.loads(node) if name in fields))
    return Dynamic(uses, sum(len(data.data) for data in node.find_all(nodes.TemplateData)))


def _field(node: "nodes.Node") -> Field | None:
    """A name and the constant path below it."""
    from jinja2 import nodes

    match node:
        case nodes.Name(name=str(name)):
            return Field(name)
        case nodes.Getattr(node=nodes.Node() as inner, attr=str(part)):
            below = _field(inner)
        case nodes.Getitem(
            node=nodes.Node() as inner, arg=nodes.Const(value=str() | int() as part)
        ):
            below = _field(inner)
        case _:
            return None
    return below and replace(below, path=(*below.path, part))


# ---- rendering ----------------------------------------------------------------------------------

Render = Callable[[Mapping[str, Any]], str]


@lru_cache(maxsize=4096)
def _renderer(source: str) -> Render:
    prompt = Prompt(source)
    return _join_fields(prompt) if prompt.simple else _run_template(source)


def _join_fields(prompt: Prompt) -> Render:
    """Renders texts and whole fields by one `%`: about a twentieth of Jinja's time."""
    form, names = "", list[str]()
    for part in prompt.segments:
        if isinstance(part, Static):
            form += part.text.replace("%", "%%")
        elif isinstance(part, Field):
            form += "%s"
            names.append(part.name)
    if not names:
        text = form.replace("%%", "%")
        return lambda values: text
    pick = itemgetter(*names)
    single = len(names) == 1

    def render(values: Mapping[str, Any]) -> str:
        try:
            picked = pick(values)
        except KeyError as error:
            raise _undefined(prompt, str(error.args[0]), values) from None
        text = form % ((picked,) if single else picked)
        if len(text) > template.MAX_OUTPUT_CHARS:
            raise template.too_long()
        return text

    return render


def _undefined(prompt: Prompt, name: str, values: Mapping[str, Any]) -> PromptError:
    found = re.search(r"\{\{[-+]?\s*" + re.escape(name) + r"\b", prompt.source)
    line = prompt.source.count("\n", 0, found.start()) + 1 if found else 0
    return PromptError(f"'{name}' is undefined; known: {template.known(values)}", line)


def _run_template(source: str) -> Render:
    """Renders with Jinja."""
    _analyse(source)
    compiled = template.environment().from_string(source)

    def render(values: Mapping[str, Any]) -> str:
        try:
            return template.join(compiled.root_render_func(compiled.new_context(dict(values))))
        except PromptError:
            raise
        except Exception as error:
            raise _failed(error, compiled, values) from error

    return render


def _failed(error: Exception, compiled: "Template", values: Mapping[str, Any]) -> PromptError:
    from jinja2 import UndefinedError

    message = str(error) or type(error).__name__
    if isinstance(error, UndefinedError):
        message = template.tell_undefined(error, values)
    elif isinstance(error, RecursionError):
        message = "the template is nested too deeply"
    elif not isinstance(error, OverflowError):
        message = f"{type(error).__name__}: {message}"
    return PromptError(message, template.line_of(error, compiled))
