"""Secrets by reference: "env:NAME" stands for what the environment variable holds when it is used.

So no secret is written in a workflow, compared, hashed or shown; what a tool sends back is searched
for the secrets that it was given. What leaves a tool is also searched for all secrets that the
process knows of: those that references stood for, and what environment variables hold whose names
say so (API_KEY, DB_PASSWORD, the password in DATABASE_URL), since a tool's own code may read them.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

from .registry import NoEffect

REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
SHOWN = "[secret]"
MIN_LENGTH = 4  # a shorter text is in too many others to be a secret
SECRET_NAME = re.compile(
    r"(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|(?:^|_)KEY|(?:^|_)CREDENTIALS?|_PWD)$", re.IGNORECASE
)
ADDRESS_NAME = re.compile(r"(?:^|_)(?:URL|URI|DSN)$", re.IGNORECASE)  # may hold a password
MIN_NAMED = 8  # of the value of a variable that only sounds like a secret

_used: set[str] = set()  # what references stood for in this process


class SecretMissing(NoEffect, ValueError):
    """The environment has no such variable."""


def resolve(
    text: str, environment: Mapping[str, str] | None = None, *, quoted: bool = False
) -> tuple[str, list[str]]:
    """`text` with every "env:NAME" replaced, `quoted` as a part of a URL, and the secrets in it."""
    found: list[str] = []
    known = os.environ if environment is None else environment

    def put(match: re.Match[str]) -> str:
        value = known.get(match[1])
        if value is None:
            raise SecretMissing(f"the environment variable {match[1]} is not set")
        found.append(value)
        if len(value) >= MIN_LENGTH:
            _used.add(value)
        return quote(value, safe="") if quoted else value

    return REFERENCE.sub(put, text), found


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` without the secrets."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= MIN_LENGTH:
            text = text.replace(secret, SHOWN)
    return text


def known(environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """All secrets that this process knows of."""
    return named(environment) | used()


def named(environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """What environment variables hold whose names say that it is a secret, or an address: of that
    the password."""
    variables = os.environ if environment is None else environment
    found = {
        each
        for name, value in variables.items()
        for each in (
            *([value] if SECRET_NAME.search(name) and not _is_path(value) else []),
            *(_passwords(value) if ADDRESS_NAME.search(name) else []),
        )
    }
    return frozenset(each for each in found if len(each) >= MIN_NAMED)


def _is_path(value: str) -> bool:
    return value.startswith("/") and os.path.exists(value)


def _passwords(address: str) -> list[str]:
    """The password in a URL, as it is written and as it is meant."""
    try:
        password = urlsplit(address).password or ""
    except ValueError:
        return []
    return [password, unquote(password)]


def used() -> frozenset[str]:
    """What references have stood for in this process."""
    return frozenset(_used)


def redact_data(value: Any, spelled: bytes, secrets: Iterable[str]) -> Any:
    """Plain data, `spelled` as JSON, its texts and keys without the secrets."""
    known = frozenset(secrets)
    return _redacted(value, known) if any(each in spelled for each in _spelled(known)) else value


def _redacted(value: Any, secrets: frozenset[str]) -> Any:
    match value:
        case str():
            return redact(value, secrets)
        case list():
            return [_redacted(each, secrets) for each in cast("list[Any]", value)]
        case dict():
            pairs = cast("dict[str, Any]", value).items()
            return {redact(key, secrets): _redacted(each, secrets) for key, each in pairs}
        case _:
            return value


@lru_cache(maxsize=16)
def _spelled(secrets: frozenset[str]) -> tuple[bytes, ...]:
    """The secrets as JSON texts hold them."""
    texts = (
        json.dumps(each, ensure_ascii=ascii)[1:-1] for each in secrets for ascii in (False, True)
    )
    return tuple({text.encode("utf-8", "surrogatepass") for text in texts})
