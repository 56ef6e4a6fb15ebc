"""How often a call is tried, and how long it rests between two attempts."""

from zlib import crc32

MAX_ATTEMPTS = 4  # of a call whose answers come to nothing
MAX_LOSSES = 5  # workers that may die under a call before it is thought to kill them
BREAKS = 5  # attempts in a row without an answer: the worker is probed before it gets another
FIRST_S, LONGEST_S = 0.25, 20.0


def backoff_s(call: str, breaks: int) -> float:
    """Doubling, with a jitter of half to one and a half that the call's name decides.

    So a thousand calls that broke together do not come back together, and a replay waits the same.
    """
    jitter = 0.5 + crc32(f"{call}/{breaks}".encode()) / 2**32
    return min(LONGEST_S, FIRST_S * 2 ** (breaks - 1)) * jitter
