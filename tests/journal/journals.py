"""What the journal's tests share."""

from tenter.runtime.journal import Manifest


def made_manifest(run: str = "run_1") -> Manifest:
    return Manifest(run, "triage", "wf", "model", "input", {"in": "a.csv"}, "2026-01-01T00:00:00Z")
