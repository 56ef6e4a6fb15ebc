"""What is looked at when a run is gone on with, and how a journal is let go of."""

from ..errors import JournalError, RunMismatch
from .base import Journal, Manifest

FINGERPRINTS = {
    "workflow_fingerprint": "the workflow (its prompts, steps, sampling or tools)",
    "model_fingerprint": "the model or its tokenizer",
    "input_fingerprint": "the input (its table, or what is read of it)",
}


def compare(then: Manifest, here: Manifest) -> None:
    """Refuse to resume what has changed, with the difference named."""
    changed = [
        what for name, what in FINGERPRINTS.items() if getattr(then, name) != getattr(here, name)
    ]
    if changed:
        raise RunMismatch(
            f"run {then.run} cannot be resumed: {'; '.join(changed)} changed since it began. "
            "Put it back as it was, or start a new run"
        )


async def close_journal(journal: Journal) -> None:
    """Close it; what it fails with is raised where nobody has been told of it yet."""
    try:
        await journal.close()
    except JournalError:
        if journal.on_failure is not None:
            raise
