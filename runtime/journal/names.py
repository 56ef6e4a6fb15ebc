"""The names of runs: they sort by the time at which they were made."""

import random
import re

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: sorts as its numbers do
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


def new_run_id(epoch_s: float, rng: random.Random) -> str:
    """A run's name: 48 bits of milliseconds, then 32 random bits; names sort by time."""
    number = (int(epoch_s * 1000) & ((1 << 48) - 1)) << 32 | rng.getrandbits(32)
    return "run_" + "".join(_BASE32[number >> shift & 31] for shift in range(75, -1, -5))


def is_dated(name: str) -> bool:
    """Whether it is a name that `new_run_id` made, and not one that somebody gave."""
    return re.fullmatch(f"run_[{_BASE32}]{{16}}", name) is not None


def is_run(name: str) -> bool:
    """Whether a run may have this name, which is a folder's and part of a key."""
    return _RUN.fullmatch(name) is not None
