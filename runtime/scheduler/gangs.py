"""Gangs: calls that enter one worker together or not at all (Dynasor, 2412.20993, section 4)."""

from dataclasses import dataclass, field

from .events import CallReady


@dataclass(slots=True)
class _Gang:
    size: int  # members still to be expected, those that are here included
    calls: list[str] = field(default_factory=list[str])  # ready, and not dispatched


class Gangs:
    """The gangs that are not dispatched yet, by their program and group."""

    def __init__(self) -> None:
        self._gangs: dict[tuple[str, str], _Gang] = {}

    def join(self, call: CallReady) -> str | None:
        """A member is ready; once all are, the one that stands for them in the queue."""
        gang = self._gangs.setdefault(_name(call), _Gang(call.gang))
        gang.calls.append(call.call)
        return gang.calls[0] if len(gang.calls) == gang.size else None

    def leave(self, call: CallReady) -> str | None:
        """A member that waited was dropped; returns who stands now for those that are complete."""
        gang = self._gangs.get(_name(call))
        if gang is None or call.call not in gang.calls:
            return None
        gang.calls.remove(call.call)
        return self._shrink(call, gang)

    def refuse(self, call: CallReady) -> str | None:
        """A member will never be ready; returns who stands now for those that are complete."""
        return self._shrink(call, self._gangs.setdefault(_name(call), _Gang(call.gang)))

    def _shrink(self, call: CallReady, gang: _Gang) -> str | None:
        gang.size -= 1
        if not gang.size:
            del self._gangs[_name(call)]
        return gang.calls[0] if gang.calls and len(gang.calls) == gang.size else None

    def members(self, call: CallReady) -> list[str]:
        """All that go together with `call`, itself first; none if it goes alone."""
        gang = self._gangs.get(_name(call)) if call.gang > 1 else None
        return list(gang.calls) if gang is not None and call.call in gang.calls else []

    def dissolve(self, call: CallReady) -> None:
        """They have been dispatched, or go one by one from now on."""
        if call.gang > 1:
            self._gangs.pop(_name(call), None)

    def forget_program(self, program: str) -> None:
        """No more members will come."""
        for name in [name for name in self._gangs if name[0] == program]:
            del self._gangs[name]


def _name(call: CallReady) -> tuple[str, str]:
    return call.program, call.group or ""
