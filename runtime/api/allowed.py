"""What the author of a step allows a plan to change, although answers may change by it."""

from collections.abc import Mapping
from typing import Any, cast

from ...planner.graph import Cascade, Pack
from .places import refuse
from .prompts import whole


def pack_of(rows: Any, votes: Any) -> Pack | None:
    """How many rows may share a prompt; None where none may."""
    if rows is not None:
        return Pack(whole("pack", rows), whole("votes", votes))
    if votes != 1:
        raise refuse("votes are those of a pack: give the step pack= too")
    return None


def cascade_of(given: Any) -> Cascade | None:
    """The smaller model that may answer, by its name or with its settings."""
    if given is None:
        return None
    settings: Any = {"model": given} if isinstance(given, str) else given
    wrong = not isinstance(settings, Mapping)
    if not wrong:
        settings = dict(cast("Mapping[str, Any]", settings))
        kinds: dict[str, Any] = {"model": str, "sample": int}
        wrong = "model" not in settings or any(
            name not in ("model", "target", "confidence", "sample")
            or isinstance(value, bool)
            or not isinstance(value, kinds.get(name, int | float))
            for name, value in settings.items()
        )
    if wrong:
        raise refuse(
            'a cascade is a model\'s name or a dict such as {"model": "small", "target": 0.95, '
            f'"confidence": 0.9, "sample": 200}}, not {given!r}'
        )
    return Cascade(**settings)


def free_of(fields: Any) -> tuple[str, ...]:
    """The fields of a prompt whose order is open."""
    if isinstance(fields, str) or not all(isinstance(each, str) for each in fields):
        raise refuse('free_fields is a list of fields, such as free_fields=["name", "city"]')
    return tuple(fields)
