"""What of a run may be changed while it goes on, and what it may be."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from ...kvpolicy import DEFAULT_POLICY, named
from ..errors import InvalidConfig, InvalidInput
from ..scheduler.limits import ALL, Limits
from ..scheduler.policies import DEFAULT_ORDER, ordered

LEAST = {"limit": 1, "concurrency": 1, "max_errors": 0, "token_budget": 1}  # whole numbers
SECONDS = ("call_timeout_s", "time_limit_s")
POLICIES = {"order": ordered, "retention": named}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a live run. `token_budget` and `time_limit_s` count from its last start.

    `limits` are those of calls and programs, as JSON.
    """

    concurrency: int
    order: str = DEFAULT_ORDER
    retention: str = DEFAULT_POLICY
    max_errors: int | None = None
    token_budget: int | None = None
    time_limit_s: float | None = None
    limits: str = "{}"


def check(values: Mapping[str, Any]) -> None:
    """Refuse what cannot be, by the name of its option; None is no value. Raises InvalidInput."""
    for name, value in values.items():
        if value is None:
            continue
        option = "--" + name.removesuffix("_s").replace("_", "-")
        if name in LEAST:
            if type(value) is not int:
                raise InvalidInput(f"{option} {value!r}: it must be a whole number")
            if value < LEAST[name]:
                raise InvalidInput(f"{option} {value}: it must be at least {LEAST[name]}")
        elif name in SECONDS:
            if type(value) not in (int, float):
                raise InvalidInput(f"{option} {value!r}: it must be a number of seconds")
            if not 0 < value < inf:
                raise InvalidInput(f"{option} {value}: it must be more than 0 s")
        elif name in POLICIES:
            _check_policy(option, name, value)


def _check_policy(option: str, name: str, value: Any) -> None:
    try:
        POLICIES[name](str(value))
    except ValueError as error:
        raise InvalidInput(f"{option}: {error}") from None


def check_change(values: Mapping[str, Any]) -> None:
    """Refuse to change what is no setting, nothing, or into what cannot be. Raises InvalidInput."""
    known = Settings.__slots__
    for name in values:
        if name not in known:
            raise InvalidInput(f"there is no setting {name!r}; there is {', '.join(known)}")
    if not values:
        raise InvalidInput("name what is to change, as in --concurrency 8")
    check(values)
    if values.get("limits") is not None:
        read_limits(values["limits"])


def read_limits(text: Any) -> dict[str, Any]:
    """The limits that `text` writes in JSON. Raises InvalidInput for what cannot be."""
    try:
        found: Any = json.loads(text)
        Limits.read(found)
    except (ValueError, TypeError, RecursionError):
        raise InvalidInput("--limits: write a mapping, as in {working_set: 0.9}") from None
    except InvalidConfig as error:
        raise InvalidInput(f"--{error}") from None
    return found


def check_limited(limits: Mapping[str, Any], pools: Mapping[str, str]) -> None:
    """Refuse limits of models that nothing would heed.

    `pools` says for each model of the run which one's workers serve it: itself, or the first of
    those with equal settings, whose limits hold for all of them. Raises InvalidInput.
    """
    for name in map(str, limits.get("models", {})):
        if name == ALL or pools.get(name) == name:
            continue
        if name in pools:
            cure = f"{name!r} is served by the workers of {pools[name]!r}; limit that one"
        else:
            cure = f"the workflow uses no such model; it uses {', '.join(sorted(pools)) or 'none'}"
        raise InvalidInput(f"limits.models.{name}: {cure}")


def changed_limits(before: str, text: str, pools: Mapping[str, str]) -> dict[str, Any]:
    """Limits in force, where `text` names those that change, by their first keys."""
    old, given = read_limits(before), read_limits(text)
    new = {**old, **given}
    check_limited(given, pools)
    if Limits.read(new).past_future != Limits.read(old).past_future:
        raise InvalidInput("--limits: past_future cannot be changed while a run goes on")
    return new
