"""Prefix groups of a plan: the leader computes what all of them begin with, the others follow.

BatchLLM (2412.03594), section 4. A worker whose calls share what they compute needs no leader: there
followers go at once. Elsewhere they wait until the leader's first token tells that the prefix is in
the cache, but no longer than it would take to compute it twice. The first call of a group to go is
the leader, whichever the plan had in mind.
"""

from .events import CallReady


class PrefixGroups:
    """The groups whose prefix is being computed, or is there."""

    def __init__(self) -> None:
        self._computing: dict[str, str] = {}  # group -> the call that computes its prefix
        self._there: set[str] = set()

    def waits(self, call: CallReady) -> bool:
        """Whether the prefix of a call that waits is being computed by another one."""
        return call.group in self._computing

    def computes(self, call: CallReady) -> bool:
        """Whether a call that runs computes the prefix for others, who wait."""
        return call.group is not None and self._computing.get(call.group) == call.call

    def go(self, call: CallReady, alone: bool) -> bool:
        """A member is dispatched; whether it leads. `alone`: others have to wait for it."""
        group = call.group
        if group is None or group in self._there or group in self._computing:
            return False
        if alone:
            self._computing[group] = call.call
        else:
            self._there.add(group)
        return True

    def begun(self, call: CallReady, there: bool) -> bool:
        """The prefix is `there`, or its leader has come to nothing; whether that changes anything."""
        group = call.group
        if group is None or self._computing.get(group) != call.call:
            return False
        del self._computing[group]
        if there:
            self._there.add(group)
        return True

    def late(self, group: str) -> None:
        """Others go without waiting any longer."""
        if self._computing.pop(group, None) is not None:
            self._there.add(group)

    def computing(self, group: str) -> bool:
        """Whether others wait for its leader."""
        return group in self._computing

    def forget(self, group: str) -> None:
        """No more calls of it will come."""
        self._computing.pop(group, None)
        self._there.discard(group)


def hold_reason(group: str) -> str:
    """What a line calls the wait for a group's leader."""
    return f"prefix {group}"
