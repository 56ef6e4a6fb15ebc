"""What a client asks of the pins: the actions of one `kv_hints` envelope, checked. Pure.

Every payload carries `now_s`, the client's clock in seconds since 1970.

    tenter.clock    {now_s}
    kv.retain       {now_s, scope, directives: [{start, end, covers_output, priority, duration}]}
    tenter.extend   {now_s, scope, duration, priority}
    kv.deref        {now_s, scope}

The names of `kv.retain` and its directive follow vLLM's draft of it (RFC 37003) and those of the
envelope SGLang's (RFC 36224), by which a consumer ignores the actions that it does not implement.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

VERSION = "1.0"  # of every action
MAX_ACTIONS = 16  # read from one envelope
MAX_SCOPE = 256  # characters
MAX_PRIORITY = 100
MAX_DURATION_S = 30 * 86_400.0
MAX_NOW_S = 1e11  # some 3,000 years: what is above is no clock in seconds
MAX_TOKENS = 1 << 40


class BadHint(ValueError):
    """An action that is known but malformed. The message names the field."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Only tells the time."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Retain:
    """Pin the path of this request when it finishes, under a scope's name.

    `duration_s` None: until released. `end` None: the whole prompt, with `covers_output` the
    answer too; otherwise at most so many tokens of it. Priority 0 releases.
    """

    now_s: float
    scope: str
    duration_s: float | None
    priority: int
    end: int | None
    covers_output: bool


@dataclass(frozen=True, slots=True)
class Extend:
    """Give the scope's pin another end, in seconds from `now_s`; priority None: as it was."""

    now_s: float
    scope: str
    duration_s: float | None
    priority: int | None


@dataclass(frozen=True, slots=True)
class Deref:
    """Drop the scope's pin."""

    now_s: float
    scope: str


Action = Clock | Retain | Extend | Deref


def read(envelope: Any) -> tuple[list[Action], int]:
    """The actions of an envelope that are ours, in order, and how many were refused.

    Whatever the envelope is, nothing is raised. Actions of other types or versions are skipped.
    """
    actions: list[Action] = []
    refused = 0
    for item in islice(_listed(envelope), MAX_ACTIONS):
        reader = _READERS.get(_text(item, "action_type"))
        if reader is None or _text(item, "action_version") != VERSION:
            continue
        try:
            actions.append(reader(_mapping(getattr(item, "payload", None), "payload")))
        except BadHint:
            refused += 1
    return actions, refused


def _listed(envelope: Any) -> Iterable[Any]:
    actions: object = getattr(envelope, "actions", None)
    return cast(list[Any], actions) if isinstance(actions, list) else []


def _text(item: Any, name: str) -> str:
    value: object = getattr(item, name, None)
    return value if isinstance(value, str) else ""


# ---- one reader per action ----------------------------------------------------------------------


def _clock(payload: Mapping[str, Any]) -> Clock:
    return Clock(_now(payload))


def _retain(payload: Mapping[str, Any]) -> Retain:
    directives = payload.get("directives")
    if not isinstance(directives, list) or len(cast(list[Any], directives)) != 1:
        raise BadHint("directives: one is wanted, since a scope has one pin")
    directive = _mapping(cast(list[Any], directives)[0], "directive")
    _number(directive, "start", MAX_TOKENS, default=0)  # a pin begins at the root in any case
    end = directive.get("end")
    covers_output: object = directive.get("covers_output", False)
    if not isinstance(covers_output, bool):
        raise BadHint("covers_output: true or false")
    return Retain(
        now_s=_now(payload),
        scope=_scope(payload),
        duration_s=_duration(directive),
        priority=_whole(directive, "priority", MAX_PRIORITY),
        end=None if end is None else _whole(directive, "end", MAX_TOKENS),
        covers_output=covers_output,
    )


def _extend(payload: Mapping[str, Any]) -> Extend:
    given = payload.get("priority") is not None
    return Extend(
        now_s=_now(payload),
        scope=_scope(payload),
        duration_s=_duration(payload),
        priority=_whole(payload, "priority", MAX_PRIORITY) if given else None,
    )


def _deref(payload: Mapping[str, Any]) -> Deref:
    return Deref(_now(payload), _scope(payload))


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Action]] = {
    "tenter.clock": _clock,
    "kv.retain": _retain,
    "tenter.extend": _extend,
    "kv.deref": _deref,
}


# ---- fields -------------------------------------------------------------------------------------


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadHint(f"{name}: an object is wanted")
    return cast(dict[str, Any], value)


def _number(
    fields: Mapping[str, Any], name: str, highest: float, default: float | None = None
) -> float:
    """A number from 0 to `highest`. Compared before it is converted: NaN and 10**400 fail too."""
    value: object = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise BadHint(f"{name}: a number from 0 to {highest:g} is wanted")
    return float(value)


def _whole(fields: Mapping[str, Any], name: str, highest: int) -> int:
    value = _number(fields, name, highest)
    if value != int(value):
        raise BadHint(f"{name}: a whole number is wanted")
    return int(value)


def _now(payload: Mapping[str, Any]) -> float:
    return _number(payload, "now_s", MAX_NOW_S)


def _duration(fields: Mapping[str, Any]) -> float | None:
    if "duration" in fields and fields["duration"] is None:
        return None
    return _number(fields, "duration", MAX_DURATION_S)


def _scope(payload: Mapping[str, Any]) -> str:
    value: object = payload.get("scope")
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SCOPE:
        raise BadHint(f"scope: a text of 1 to {MAX_SCOPE} characters is wanted")
    return value
