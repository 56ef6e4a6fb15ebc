"""What may run at once and per minute: limits of models and of tenants, and the memory that programs
may keep resident. Settings only; `quota.py` and `working_set.py` keep the accounts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, cast

from ..errors import InvalidConfig

ALL = "*"  # stands for every model, or every tenant, that is not named


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds of one model or one tenant; None: there is none.

    `max_running`: calls at once. `max_live`: programs at once, of a tenant those that have started,
    of a model those that are in its working set. `tokens_per_minute`: prompts and answers together,
    counted as a provider does: the longest answer allowed when a call is sent, corrected when it
    ends; unused budget is saved up for a minute.
    """

    max_running: int | None = None
    max_live: int | None = None
    tokens_per_minute: int | None = None


NO_LIMIT = Limit()


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of one scheduler. `"*"` stands for each model or tenant that is not named.

        Limits(models={"default": Limit(tokens_per_minute=200_000)},
               tenants={"*": Limit(max_live=20), "batch": Limit(max_running=4)},
               working_set=0.9)

    `working_set`: the share of a model's KV capacity that the sessions of live programs may keep
    resident; a program whose context would exceed it waits as a whole (ThunderAgent, 2602.13692),
    and where contexts outgrow it, the one that arrived last is paused. "auto": all of it, but no
    bound where a worker has a tier below, from which evicted KV comes back cheaply. None: no bound.
    A session counts while it has a call, for `acting_s` seconds of a tool, and while it is pinned.
    `past_future`: once enough answers were seen, a call enters where the memory that running calls
    are expected to need leaves room (2507.10150); without, only where their longest answers would,
    as an engine needs that cannot preempt. Raises InvalidConfig for what cannot be.
    """

    models: Mapping[str, Limit] = field(default_factory=dict[str, Limit])
    tenants: Mapping[str, Limit] = field(default_factory=dict[str, Limit])
    working_set: float | Literal["auto"] | None = "auto"
    acting_s: float = 10.0
    past_future: bool = True

    def __post_init__(self) -> None:
        for kind, group in (("models", self.models), ("tenants", self.tenants)):
            for name, limit in group.items():
                _check(f"{kind}.{name}", limit)
        share = self.working_set
        if not (share in ("auto", None) or (_number(share) and 0 < float(share) <= 1)):
            raise InvalidConfig(
                'limits: working_set must be above 0 and at most 1, "auto", or null (no bound), '
                f"not {share!r}"
            )
        if not (_number(self.acting_s) and self.acting_s >= 0):
            raise InvalidConfig(
                f"limits: acting_s must be 0 or more seconds, not {self.acting_s!r}"
            )
        if self.past_future not in (True, False):
            raise InvalidConfig(f"limits: past_future is true or false, not {self.past_future!r}")

    def of_model(self, name: str) -> Limit:
        """What bounds the calls of a model."""
        return self.models.get(name) or self.models.get(ALL, NO_LIMIT)

    def of_tenant(self, name: str) -> Limit:
        """What bounds the calls and programs of a tenant."""
        return self.tenants.get(name) or self.tenants.get(ALL, NO_LIMIT)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """The limits that a mapping of plain values describes, as YAML or JSON has it.

        Raises InvalidConfig for a key that is unknown and for what cannot be.
        """
        given = dict(_known("limits", data, cls))
        for kind in ("models", "tenants"):
            group = given.get(kind, {})
            if not isinstance(group, Mapping):
                raise InvalidConfig(
                    f"limits: {kind} maps names to limits, and is no {_kind(group)}"
                )
            named = cast("Mapping[str, Any]", group)
            given[kind] = {
                str(name): Limit(**_known(f"limits.{kind}.{name}", one, Limit))
                for name, one in named.items()
            }
        return cls(**given)


def _known(where: str, data: Any, kind: type[Limit] | type[Limits]) -> dict[str, Any]:
    known = [one.name for one in fields(kind)]
    if not isinstance(data, Mapping):
        raise InvalidConfig(f"{where}: there must be a mapping with {', '.join(known)}")
    given: dict[str, Any] = {str(name): data[name] for name in data}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    for name in given:
        if name not in known:
            raise InvalidConfig(f"{where}: there is no {name!r}; known: {', '.join(known)}")
    return given


def _check(where: str, limit: Any) -> None:
    if not isinstance(limit, Limit):
        raise InvalidConfig(f"limits.{where}: there must be a Limit, not a {_kind(limit)}")
    for one in fields(limit):
        value = getattr(limit, one.name)
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidConfig(
                f"limits.{where}: {one.name} must be a whole number of 1 or more, not {value!r}"
            )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: object) -> str:
    return type(value).__name__
