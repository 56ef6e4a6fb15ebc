"""The checkpoint that ships with Tenter: small enough for a wheel, good enough to run every example."""

from pathlib import Path

__all__ = ["tiny_path"]


def tiny_path() -> Path:
    """The folder of the tiny model, in Hugging Face format."""
    return Path(__file__).parent / "tiny"
