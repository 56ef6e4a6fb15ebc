"""The book's counts among SGLang's own metrics, at /metrics of a server with --enable-metrics.

Gauges `tenter:pins` and `tenter:pinned_tokens`; counters `tenter:pins_*_total` and
`tenter:hints_refused_total`.
"""

from dataclasses import asdict
from importlib import import_module
from typing import Any

from .pins import Counts, PinBook

_COUNTERS = {
    "taken": ("pins_taken", "Pins taken."),
    "superseded": ("pins_superseded", "Pins replaced by a newer one of their scope."),
    "expired": ("pins_expired", "Pins whose time ran out."),
    "dereferenced": ("pins_dereferenced", "Pins released by their client."),
    "released_under_pressure": (
        "pins_released_under_pressure",
        "Pins given up for an allocation, an admission or a dearer pin.",
    ),
    "flushed": ("pins_flushed", "Pins lost to a flush of the cache."),
    "refused_budget": ("pins_refused", "Pins refused because they were over the budget."),
    "refused_malformed": ("hints_refused", "Hints ignored because they were malformed."),
}


class PinMetrics:
    """Prometheus metrics with the labels of SGLang's own tree-cache metrics.

    To be made in the scheduler's process, after SGLang has set up its multiprocess folder.
    """

    def __init__(self, labels: dict[str, Any]) -> None:
        prometheus = import_module("prometheus_client")
        names = list(labels)
        self._held = prometheus.Gauge(
            "tenter:pins", "Pins held.", names, multiprocess_mode="mostrecent"
        ).labels(**labels)
        self._tokens = prometheus.Gauge(
            "tenter:pinned_tokens",
            "Tokens of KV that pins hold, shared ones counted once.",
            names,
            multiprocess_mode="mostrecent",
        ).labels(**labels)
        self._counters = {
            field: prometheus.Counter(f"tenter:{name}", text, names).labels(**labels)
            for field, (name, text) in _COUNTERS.items()
        }
        self._shown = asdict(Counts())

    def show(self, book: PinBook[Any]) -> None:
        """Bring what is exported up to date. Cheap where nothing has changed."""
        counts = asdict(book.counts)
        if counts == self._shown:
            return
        for field, count in counts.items():
            if count > self._shown[field]:
                self._counters[field].inc(count - self._shown[field])
        self._shown = counts
        self._held.set(len(book))
        self._tokens.set(book.held_tokens)
