"""The replicas of a simulation: what each was told in this instant, and when its steps are over."""

from collections.abc import Iterator, Mapping

from ..backends.replica import Replica
from ..engine.state import Sequence
from .result import Result


class Engines:
    """Replicas by name. Tell one something by way of `told`; when the instant is over, `look`."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self.by_name = replicas
        self.stirred: dict[str, Replica] = {}  # to be looked at when this instant is over
        self._due: dict[str, float] = {}  # when the steps under way are over, as far as is known

    def told(self, name: str) -> Replica:
        """The replica `name`, which is about to be told something."""
        replica = self.stirred[name] = self.by_name[name]
        return replica

    def look(self, now_s: float) -> Iterator[tuple[str, float]]:
        """Idle replicas begin, disturbed ones end sooner: whose steps are over when, if that is new."""
        for name, replica in self.stirred.items():
            if replica.end_s is None:
                replica.start(now_s)
            if replica.end_s is not None and replica.end_s != self._due.get(name):
                self._due[name] = replica.end_s
                yield name, replica.end_s
        self.stirred.clear()

    def over(self, name: str, end_s: float) -> list[Sequence]:
        """The answers that the steps of a replica that end at `end_s` complete.

        None, where something has made them end sooner than was thought.
        """
        if self.by_name[name].end_s != end_s:
            return []
        return self.told(name).end()

    def add_to(self, result: Result) -> None:
        """What they have done, into the sums of `result`."""
        for replica in self.by_name.values():
            result.computed_tokens += replica.prefilled_tokens
            result.loaded_tokens += replica.loaded_tokens
            result.preemptions += replica.batch.preemptions
            result.busy_s += replica.busy_s
            result.steps += replica.steps

    def __str__(self) -> str:
        """What each of them holds."""
        return ", ".join(
            f"{name} has {replica.cache.available * replica.cache.page_tokens:,} free tokens of "
            f"{replica.kv_tokens:,}, {len(replica.batch.running)} running and "
            f"{len(replica.batch.waiting)} waiting calls"
            for name, replica in self.by_name.items()
        )
