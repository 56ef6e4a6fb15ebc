"""Prompts as the planner sees them: a Jinja template split into static text and fields."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A Jinja2 template, sandboxed and strict about undefined names. Placeholder: the planner helper
    completes it (parse, segments, fields, static_prefix, render)."""

    source: str
