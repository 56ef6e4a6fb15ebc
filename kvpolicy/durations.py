"""How long tools take, in seconds, per tool and first argument word: a history of durations.

The key of a call is `key("shell", "pytest -q")`, "shell pytest", or the tool's name alone.
"""

from .history import KEPT, KEYS, POOL_KEPT, PRIOR, History, key

__all__ = ["KEPT", "KEYS", "POOL_KEPT", "PRIOR", "Durations", "key"]


class Durations(History):
    """Seconds that tools took. Every answer is conditional on the seconds elapsed, if given."""
