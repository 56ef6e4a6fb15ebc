"""Models without a worker: who may come back, for how long calls wait for that, and why not."""

from .events import CallReady, WorkerDown, WorkerUp
from .fleet import Fleet

NO_WORKER = "no worker is left"  # begins the reason where nobody can answer any more


class Outages:
    """Which models have lost all their workers, for the moment or for good."""

    def __init__(self, fleet: Fleet, patience_s: float) -> None:
        self._fleet = fleet
        self._patience_s = patience_s
        self._absent: dict[str, tuple[str, float]] = {}  # model -> why, and until when it waits
        self._lost: dict[str, str] = {}  # models whose last worker died, and why

    def up(self, event: WorkerUp) -> None:
        """A worker is there, for the first time or again."""
        self._lost.pop(event.model, None)
        self._absent.pop(event.model, None)

    def wait(self, model: str, event: WorkerDown, now_s: float) -> float | str | None:
        """What calls of `model` are to do now that a worker is gone.

        None: go on, another one is there, or others wait already; a time: wait until then for one
        to come back; a text: give up, and why.
        """
        if self._fleet.of(model):
            return None
        reason = f"{NO_WORKER}: worker {event.worker} died: {event.error}"
        if all(name != model for name, _ in self._fleet.away.values()):
            return reason
        if model in self._absent:
            return None
        self._absent[model] = (reason, now_s + self._patience_s)
        return now_s + self._patience_s

    def absent(self, model: str) -> bool:
        """Whether calls of `model` wait for a worker to come back."""
        return model in self._absent

    def over(self, model: str, now_s: float) -> str | None:
        """Why calls of `model` have waited long enough; None: they have not."""
        reason, until_s = self._absent[model]
        return reason if until_s <= now_s else None  # else it was back meanwhile

    def give_up(self, model: str, reason: str) -> None:
        """Nobody will answer calls of `model` any more."""
        self._absent.pop(model, None)
        self._lost[model] = reason

    def refusal(self, call: CallReady) -> str | None:
        """Why no worker will ever answer a call; None: one may."""
        if self._lost and self._fleet.room(call.model) is None:
            return self._lost.get(call.model)
        return self._fleet.too_large(call)
