"""How long to keep KV while nobody computes with it. Pure; imports nothing of ours.

    state.py       the nouns: Pause, Pin, Hold (a policy)
    durations.py   how long tools take
    ttl.py         how long to hold a session while its tool runs: the named policies

A policy answers from what it is handed; it reads no clock and no configuration.
"""

from .durations import Durations
from .state import Hold, Pause, Pin, expired
from .ttl import (
    POLICIES,
    QueueDelay,
    continuum_ttl,
    fixed_ttl,
    named,
    turns_eta,
)

__all__ = [
    "POLICIES",
    "Durations",
    "Hold",
    "Pause",
    "Pin",
    "QueueDelay",
    "continuum_ttl",
    "expired",
    "fixed_ttl",
    "named",
    "turns_eta",
]
