"""A step that is many calls: a part of its program that runs beside it."""

from typing import TYPE_CHECKING, Any

from .owner import Owner
from .sharing import Settled
from .speech import ListenerFailed

if TYPE_CHECKING:
    from .host import Host


class LongStep:
    """One such step of one program; what it does is `_act`.

    What it does is recorded below the step's path, so that it goes on where it was stopped, and it
    is cancelled with its program.
    """

    def __init__(
        self, host: "Host", owner: Owner, path: str, signature: bytes | None, done: Settled
    ) -> None:
        self._host = host
        self._owner = owner
        self._path = path
        self._done = done
        self.signature = signature

    def start(self) -> None:
        """Let it run, unless its program has ended."""
        if self._owner.ended:
            self._host.abandon(self.signature)
        else:
            self._host.run_for(self._owner, self._run(), signature=self.signature, path=self._path)

    async def _run(self) -> None:
        host, owner = self._host, self._owner
        error: Exception | None = None
        value: Any = None
        try:
            value = await self._act()
        except Exception as failure:
            error = self._told(failure)
            owner.note(error)
        if owner.ended:
            host.abandon(self.signature)
        elif isinstance(error, ListenerFailed):
            host.abandon(self.signature)
            self._done(None, error)
        elif error is not None:
            host.failed(self.signature, error, self._done)
        else:
            host.record(owner, self._path, value, self.signature, self._done)

    async def _act(self) -> Any:
        """The step's value."""
        raise NotImplementedError

    def _told(self, error: Exception) -> Exception:
        """The error as its program hears of it."""
        return error
