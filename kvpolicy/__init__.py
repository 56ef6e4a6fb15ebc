"""How long to keep KV while nobody computes with it. Pure; imports nothing of ours.

    state.py         the nouns: Pause, Decision, Policy, Pin; whose pin goes first
    policies.py      the policies by name; the default is "shadow-price"
    shadow_price.py  the default: keep while the expected saving exceeds the price of memory
    price.py         what memory costs, read from the queue
    ttl.py           Continuum's time to live
    durations.py     how long tools take: a history of seconds
    history.py       amounts seen per key, shrunk toward all keys, conditional on progress
    curve.py         the tails of such a distribution, for one who waits for its end
    predict.py       what is left of answers and programs: calibrated quantiles
    peak.py          how much KV the running calls will come to hold
    window.py        the last amounts of one kind

A policy answers from what it is handed; it reads no clock and no configuration.
"""

from .curve import Curve
from .durations import Durations
from .history import History, key
from .peak import Future, outputs_seen, peak_tokens, sample_length
from .policies import DEFAULT_POLICY, POLICIES, fixed_ttl, named, tiered
from .predict import Predictor, coverage
from .price import FREE, Memory, Price, memory_price
from .shadow_price import benefit_s, clairvoyant, shadow_price
from .state import Decision, Hold, Pause, Pin, Policy, cheapest_first, expired, to_release
from .ttl import QueueDelay, continuum_ttl, turns_eta
from .window import Window

__all__ = [
    "DEFAULT_POLICY",
    "FREE",
    "POLICIES",
    "Curve",
    "Decision",
    "Durations",
    "Future",
    "History",
    "Hold",
    "Memory",
    "Pause",
    "Pin",
    "Policy",
    "Predictor",
    "Price",
    "QueueDelay",
    "Window",
    "benefit_s",
    "cheapest_first",
    "clairvoyant",
    "continuum_ttl",
    "coverage",
    "expired",
    "fixed_ttl",
    "key",
    "memory_price",
    "named",
    "outputs_seen",
    "peak_tokens",
    "sample_length",
    "shadow_price",
    "tiered",
    "to_release",
    "turns_eta",
]
