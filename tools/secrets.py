"""Secrets by reference: "env:NAME" stands for what the environment variable holds when it is used.

So no secret is written in a workflow, compared, hashed or shown; what a tool sends back is searched
for the secrets that it was given.
"""

import os
import re
from collections.abc import Iterable, Mapping

REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
SHOWN = "[secret]"
MIN_LENGTH = 4  # a shorter text is in too many others to be a secret


class SecretMissing(ValueError):
    """The environment has no such variable."""


def resolve(text: str, environment: Mapping[str, str] | None = None) -> tuple[str, list[str]]:
    """`text` with every "env:NAME" replaced, and the secrets that were put in."""
    found: list[str] = []
    known = os.environ if environment is None else environment

    def put(match: re.Match[str]) -> str:
        value = known.get(match[1])
        if value is None:
            raise SecretMissing(f"the environment variable {match[1]} is not set")
        found.append(value)
        return value

    return REFERENCE.sub(put, text), found


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` without the secrets."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= MIN_LENGTH:
            text = text.replace(secret, SHOWN)
    return text
