"""What HTTP says in text: the URL of a server, an error's message, Retry-After."""

import base64
import os
import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from ..errors import InvalidConfig

PORTS = {"http": 80, "https": 443}
MESSAGE_CHARACTERS = 500  # of a server's message, in ours
RETRY_AFTER_S = 3600.0  # longest wait that a server is granted


def split_url(url: str) -> SplitResult:
    """The parts of a server's URL, or raises InvalidConfig, which shows no more than its host.

    A password whose special characters are not escaped ends up in any of the parts.
    """
    cure = "give the server's URL, such as http://127.0.0.1:30000"
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:  # it quotes the URL
        raise InvalidConfig(f"the server's URL cannot be read: {cure}") from None
    shown = f"{parts.scheme}://{parts.hostname or ''}"
    if "@" in url or not parts.hostname:
        shown = "what is given as the server's URL"
    if parts.scheme not in PORTS or not parts.hostname or port == 0:
        raise InvalidConfig(f"{shown} is not the http or https URL of a server: {cure}")
    if "@" in parts.path + parts.query + parts.fragment:
        raise InvalidConfig(
            f"{shown} has an @ behind its host; in a password, / ? # and @ are written "
            f"%2F %3F %23 and %40: {cure}"
        )
    if parts.query or parts.fragment:
        raise InvalidConfig(f"{shown}: a server's URL has no query and no fragment: {cure}")
    return parts


def authorization(parts: SplitResult, api_key: str | None) -> str | None:
    if parts.username is None and parts.password is None:
        if api_key is not None and (not api_key.isascii() or not api_key.isprintable()):
            raise InvalidConfig("api_key has characters that no HTTP header can carry")
        return f"Bearer {api_key}" if api_key else None
    if api_key:
        raise InvalidConfig("credentials are given twice: in the server's URL and as api_key")
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def secrets_of(parts: SplitResult, sent: str | None) -> tuple[str, ...]:
    """What no message may show: the password, and the credentials as they are sent."""
    password = parts.password or ""
    credentials = (sent or "").partition(" ")[2]
    found = {secret for secret in (credentials, password, unquote(password)) if secret}
    return tuple(sorted(found, key=len, reverse=True))  # one may be a part of another


def redacted(value: Any, secrets: tuple[str, ...], depth: int = 8) -> Any:
    """A value read from JSON without the secrets in its texts, and without its depths."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        return value
    if not isinstance(value, list | dict):
        return value
    if depth == 0:
        return "..."
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [redacted(item, secrets, depth - 1) for item in items]
    pairs = cast("dict[str, Any]", value).items()
    return {redacted(key, secrets): redacted(item, secrets, depth - 1) for key, item in pairs}


def clean(answer: Any, secrets: tuple[str, ...]) -> Any:
    """An answer, or a list of them, whose `error` shows no secrets, if it has one."""
    answers = cast("list[Any]", answer) if isinstance(answer, list) else [answer]
    for one in answers:
        if isinstance(one, dict) and "error" in one:
            one["error"] = redacted(one["error"], secrets)
    return cast("Any", answer)


def message_of(body: bytes, secrets: tuple[str, ...]) -> str:
    """What a server says in an error's body, ready to follow a status: `: ...`, or nothing."""
    try:
        found: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        found = body.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(found, dict):
            found = cast("dict[str, Any]", found).get(key, cast("object", found))
    found = redacted(found, secrets)
    text = shortened(found if isinstance(found, str) else msgspec.json.encode(found).decode())
    return f": {text}" if text else ""


def shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MESSAGE_CHARACTERS else text[:MESSAGE_CHARACTERS] + "..."


def retry_after_s(header: str | None, wall: Callable[[], float]) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3); None: unreadable."""
    if header is None:
        return None
    if header.strip().isdecimal():
        after_s = float(header)
    else:
        try:
            after_s = parsedate_to_datetime(header).timestamp() - wall()
        except (ValueError, OverflowError):
            return None
    return min(max(after_s, 0.0), RETRY_AFTER_S)


def key_from(name: str | None) -> str | None:
    """The key in the environment variable `name`; never shows what may be a key itself."""
    if name is None:
        return None
    shown = f"{name}: this environment variable" if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) else "it"
    key = os.environ.get(name)
    if not key:
        raise InvalidConfig(
            f"api_key names the environment variable with the server's key, and {shown} is not "
            "set; export the key and give the variable's name"
        )
    return key
