"""Sessions: which tokens a name stands for, and until when their KV is promised."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ..calls import SessionId
from .cache import PageCache

_REMEMBERED = 4096  # sessions that no promise keeps


@dataclass(slots=True)
class Session:
    """The tokens of a context, and until when its KV is promised (None: it is not)."""

    tokens: list[int] = field(default_factory=list[int])
    until_s: float | None = None


class Sessions:
    """Names contexts, and turns promises about them into pins of the cache.

    A session is its tokens; the pages are found in the tree. So a fork copies nothing, and a
    session whose pages were evicted is still known.
    """

    def __init__(self, cache: PageCache, clock: Callable[[], float]) -> None:
        self._cache, self._clock = cache, clock
        self._known: dict[SessionId, Session] = {}  # the one used last is last

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, session: SessionId) -> bool:
        return session in self._known

    def retain(self, session: SessionId, until_s: float | None) -> None:
        """Promise the KV of `session` until `until_s` (None: until released)."""
        record = self._known.setdefault(session, Session())
        record.until_s = math.inf if until_s is None else until_s
        self._pin(session, record)

    def release(self, session: SessionId) -> None:
        """Forget `session` and its promise."""
        self._known.pop(session, None)
        self._cache.unpin(session)

    def fork(self, session: SessionId, child: SessionId) -> None:
        """Let `child` name what `session` names now."""
        self._cache.unpin(child)
        self._known[child] = Session(self._known.get(session, Session()).tokens)

    def extend(self, session: SessionId, tokens: list[int]) -> None:
        """A call of `session` has ended: its context is `tokens` from now on.

        A call that ended early, before it was past what is known, takes nothing away.
        """
        record = self._known.pop(session, None) or Session()
        if record.tokens[: len(tokens)] != tokens:
            record.tokens = tokens
        self._known[session] = record
        self._pin(session, record)
        if len(self._known) > _REMEMBERED:
            for name, known in self._known.items():
                if known.until_s is None:
                    del self._known[name]
                    break

    def expire(self, now_s: float) -> None:
        """End the promises whose time has come."""
        for name in self._cache.expire(now_s):
            self._known[SessionId(name)].until_s = None

    def _pin(self, session: SessionId, record: Session) -> None:
        """Renew the pin of `session` over what is cached of it now."""
        if record.until_s is None:
            return
        if record.until_s <= self._clock():
            record.until_s = None
            self._cache.unpin(session)
            return
        path = self._cache.match(record.tokens, len(record.tokens) // self._cache.page_tokens)
        self._cache.pin(session, [page for page in path if page.ready], record.until_s)
