"""Where runs are kept, as `--home` and TENTER_HOME say it: a folder, or a Redis by its URL.

    redis://[user:]env:NAME@host:6379/0        rediss:// is the same over TLS
    redis+sentinel://env:NAME@host:26379,host:26379/primary/0
    redis+cluster://env:NAME@host:7000,host:7001

A password is named, never written: "env:NAME" stands for what the environment variable holds.
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ...tools.secrets import REFERENCE, SecretMissing, resolve
from ..errors import InvalidConfig

_SCHEME = re.compile(r"(rediss?)(?:\+(sentinel|cluster))?://")
_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}
_DEFAULT_FOLDER = ".tenter"


@dataclass(frozen=True, slots=True)
class Options:
    """What may follow a URL's "?": `redis://localhost/0?patience_s=600&prefix=team`."""

    prefix: str = "tenter"  # of every key
    folder: str = _DEFAULT_FOLDER  # where traces and statistics of tables lie, on this machine
    patience_s: float = 120.0  # how long Redis may be gone before a run ends
    timeout_s: float = 5.0  # for one answer
    ca: str = ""  # TLS: a file of certificates to trust; none: the system's
    cert: str = ""  # TLS: this client's certificate
    key: str = ""  # TLS: and its key
    fleet: str = "on"  # "off": processes share neither servers nor equal work through it


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A Redis server, its Sentinels, or nodes of a Cluster. `shown` is fit for messages."""

    shown: str
    nodes: tuple[tuple[str, int], ...]
    kind: str  # "" (one server), "sentinel" or "cluster"
    tls: bool
    primary: str = ""  # its name among the Sentinels
    database: int = 0
    user: str = ""
    password: str = ""  # "env:NAME"
    options: Options = field(default_factory=Options)

    def secret(self) -> str | None:
        """The password, read when it is used."""
        if not self.password:
            return None
        try:
            return resolve(self.password)[0]
        except SecretMissing as error:
            raise InvalidConfig(f"{self.shown}: {error}") from None


def is_redis(home: Path | str | None) -> bool:
    """Whether `home` is meant as a URL of a Redis."""
    return isinstance(home, str) and home.startswith(("redis:", "rediss:", "redis+", "rediss+"))


def parse_redis(url: str) -> RedisAddress:
    """The address that `url` writes. Raises InvalidConfig, which never repeats a password."""
    scheme = _SCHEME.match(url)
    parts = _split(url)
    if scheme is None or parts is None:
        raise InvalidConfig(
            "home: a Redis is redis://HOST:PORT/DATABASE, rediss:// over TLS, "
            "redis+sentinel://HOSTS/PRIMARY/DATABASE or redis+cluster://HOSTS"
        )
    kind = scheme[2] or ""
    account, _, hosts = parts.netloc.rpartition("@")
    shown = f"{parts.scheme}://{hosts}{parts.path}"
    user, password = _account(account, shown)
    primary, database = _path(parts.path, kind, shown)
    nodes = tuple(_node(text, _PORTS[kind], shown) for text in hosts.split(","))
    if not kind and len(nodes) > 1:
        raise InvalidConfig(f"{shown}: several hosts are redis+sentinel:// or redis+cluster://")
    return RedisAddress(
        shown=shown,
        nodes=nodes,
        kind=kind,
        tls=scheme[1] == "rediss",
        primary=primary,
        database=database,
        user=user,
        password=password,
        options=_options(parts.query, shown),
    )


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # such as half a bracket
        return None


def _account(text: str, shown: str) -> tuple[str, str]:
    """The user and the reference to the password: "user:env:NAME", ":env:NAME" or "env:NAME"."""
    if not text:
        return "", ""
    user, password = ("", text) if REFERENCE.fullmatch(text) else text.partition(":")[::2]
    if not REFERENCE.fullmatch(password):
        raise InvalidConfig(
            f"{shown}: put the password in an environment variable and write env:NAME for it, "
            "as in redis://env:REDIS_PASSWORD@host:6379/0"
        )
    return unquote(user), password


def _path(path: str, kind: str, shown: str) -> tuple[str, int]:
    """The name of the Sentinels' primary, and the database."""
    parts = [part for part in path.split("/") if part]
    primary = ""
    if kind == "sentinel":
        if not parts:
            raise InvalidConfig(f"{shown}: name the primary: redis+sentinel://HOSTS/PRIMARY/0")
        primary = unquote(parts.pop(0))
    database = parts.pop(0) if parts else "0"
    if parts or not database.isdecimal() or (kind == "cluster" and database != "0"):
        right = "a cluster has no databases" if kind == "cluster" else "it is a number, as in /0"
        raise InvalidConfig(f"{shown}: what follows the hosts is no database; {right}")
    return primary, int(database)


def _node(text: str, default_port: int, shown: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or default_port
    except ValueError:
        host, port = None, 0
    if not host:
        raise InvalidConfig(f"{shown}: {text!r} is no HOST:PORT")
    return host, port


def _options(query: str, shown: str) -> Options:
    names = [each.name for each in fields(Options)]
    found: dict[str, str | float] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in names:
            known = ", ".join(names)
            raise InvalidConfig(f"{shown}: there is no option {name!r}; the options: {known}")
        found[name] = _seconds(name, text, shown) if name.endswith("_s") else text
    if not re.fullmatch(r"[\w.:-]{1,64}", str(found.get("prefix", "tenter")), re.ASCII):
        raise InvalidConfig(f"{shown}: prefix: letters, digits and ._:- only, at most 64")
    if found.get("fleet", "on") not in ("on", "off"):
        raise InvalidConfig(f"{shown}: fleet={found['fleet']}: it is on or off")
    return Options(**found)  # pyright: ignore[reportArgumentType]  names and kinds are checked


def _seconds(name: str, text: str, shown: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise InvalidConfig(f"{shown}: {name}={text}: it must be seconds above 0")
    return value
