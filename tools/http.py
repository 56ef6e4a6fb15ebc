"""Tools that make HTTP requests: to one place of the author's, or to pages that a model chooses.

Every hop of a redirect is checked, and the address that is dialled is the one that was checked
(`Reach`). Answers are read up to a limit and within one total deadline, however slowly they come.
"""

import asyncio
import codecs
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urljoin, urlsplit

from .addresses import Reach, Unreachable
from .arguments import arguments
from .capped import Capped
from .context import tool_context
from .registry import Effect, InvalidArguments, InvalidTool, NoEffect, Tool, ToolError
from .secrets import redact, resolve

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
MAX_REDIRECTS = 5
READ_BYTES = 65_536
MAX_URL = 4_096
_ENDPOINT_CHECK = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """What requests go out, and how far."""

    tool: str
    url: str
    method: Method
    headers: Mapping[str, str] = field(repr=False)
    effect: Effect
    reach: Reach
    max_bytes: int
    timeout_s: float

    async def ask(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """One request, its redirects followed; {"status", "type", "body"}, and "json" if it is."""
        from aiohttp import ClientConnectorError, ClientError

        url, rest = _fill(self.tool, self.url, values)
        resolved = {name: resolve(value) for name, value in self.headers.items()}
        headers = {name: value for name, (value, _) in resolved.items()}
        secrets = [secret for _, found in resolved.values() for secret in found]
        key = tool_context().key
        if key and self.effect == "idempotent":
            headers.setdefault("Idempotency-Key", key)
        answered: list[str] = []  # what was asked and has answered, of several with redirects
        try:
            async with asyncio.timeout(self.timeout_s), _session(self.reach) as session:
                found = await self._follow(session, url, headers, rest, answered)
        except TimeoutError:
            raise ToolError(self.tool, f"no whole answer within {self.timeout_s:g} s") from None
        except (ClientError, OSError, ValueError) as error:
            refused = isinstance(error, Unreachable | ClientConnectorError)
            why = error.__cause__ if isinstance(error.__cause__, Unreachable) else error
            text = redact(f"{type(error).__name__}: {error}", secrets)
            said = str(why) if isinstance(why, Unreachable) else f"the request failed: {text}"
            nothing_sent = refused and not answered
            raise (NoEffect(said) if nothing_sent else ToolError(self.tool, said)) from None
        return {key: redact(v, secrets) if isinstance(v, str) else v for key, v in found.items()}

    async def _follow(
        self,
        session: "ClientSession",
        url: str,
        headers: dict[str, str],
        rest: dict[str, Any],
        answered: list[str],
    ) -> dict[str, Any]:
        method: str = self.method
        body = rest if rest and method != "GET" else None
        query = {name: _text(value) for name, value in rest.items()} if method == "GET" else None
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url)
            async with session.request(
                method, url, headers=headers, json=body, params=query, allow_redirects=False
            ) as response:
                answered.append(url)
                to = response.headers.get("Location")
                if response.status not in (301, 302, 303, 307, 308) or not to:
                    return await self._read(response)
                target = urljoin(str(response.url), to)
                if response.status == 303 or (response.status in (301, 302) and method == "POST"):
                    method, body = "GET", None
                if _origin(target) != _origin(url):
                    headers = {}  # what is meant for one server is not shown to another
                    if body is not None:
                        raise Unreachable("a redirect would send the request to another server")
                url, query = target, None
        raise Unreachable(f"more than {MAX_REDIRECTS} redirects")

    def _check(self, url: str) -> None:
        """Raise `Unreachable` unless the URL may be asked; its addresses are checked when dialled."""
        if len(url) > MAX_URL:
            raise Unreachable(f"the URL is longer than {MAX_URL} characters")
        try:
            parts = urlsplit(url)
            port = parts.port or _ENDPOINT_CHECK.get(parts.scheme, 0)
        except ValueError:
            raise Unreachable("the URL cannot be read") from None
        if parts.scheme not in self.reach.schemes:
            allowed = ", ".join(self.reach.schemes)
            raise Unreachable(f"the scheme {parts.scheme!r} is not allowed; allowed: {allowed}")
        if not parts.hostname or "@" in parts.netloc or "\\" in url:
            raise Unreachable("the URL needs a host, and no user name before it")
        self.reach.check_host(parts.hostname)
        self.reach.check_port(port)

    async def _read(self, response: "ClientResponse") -> dict[str, Any]:
        kept = Capped(self.max_bytes)
        async for data in response.content.iter_chunked(READ_BYTES):
            kept.write(data)
            if kept.cut:
                break  # the rest is not waited for: it may never end
        found: dict[str, Any] = {
            "status": response.status,
            "type": response.content_type,
            "body": kept.text(_charset(response)),
        }
        if kept.cut:
            found["cut"] = f"only the first {self.max_bytes} bytes were read"
        elif response.content_type.endswith("json"):
            try:
                found["json"] = json.loads(found.pop("body"))
            except (ValueError, RecursionError):
                raise ToolError(self.tool, "the answer says it is JSON, and is not") from None
        return found


def http_tool(
    name: str,
    url: str,
    parameters: Mapping[str, Any],
    *,
    method: Method = "GET",
    description: str = "",
    headers: Mapping[str, str] | None = None,
    effect: Effect | None = None,
    reach: Reach | None = None,
    max_bytes: int = 65_536,
    timeout_s: float = 30.0,
    retries: int = 0,
    max_concurrency: int | None = 16,
    memo_s: float | None = None,
    eta_s: float | None = None,
) -> Tool:
    """A tool that asks one place; raises `InvalidTool`.

    `url` has parameters in braces, as "https://api.example.org/orders/{id}"; what it does not name
    goes into the query (GET) or the JSON body. `parameters` are names and types ({"id": int}).
    `headers` may refer to the environment: {"Authorization": "Bearer env:ORDERS_KEY"}. A GET is
    pure unless `effect` says otherwise, anything else has an effect ("once"); an idempotent one
    carries the header Idempotency-Key, the same after a retry or a resume. `reach` defaults to the
    URL's own host, at whatever address it has: the author chose it.
    """
    parts = urlsplit(url)
    if parts.scheme not in _ENDPOINT_CHECK or not parts.hostname or "{" in parts.netloc:
        raise InvalidTool(name, "url begins with http:// or https:// and a host of your own choice")
    if "@" in parts.netloc:
        raise InvalidTool(name, "url holds a password: put it into headers, as env:NAME")
    if reach is None:
        reach = Reach(
            hosts=(parts.hostname,),
            networks=("0.0.0.0/0", "::/0"),
            ports=(parts.port or _ENDPOINT_CHECK[parts.scheme],),
        )
    missing = [field for field in _fields(url) if field not in parameters]
    if missing:
        raise InvalidTool(name, f"url names {{{missing[0]}}}, which is none of its parameters")
    return _tool(
        _Endpoint(
            tool=name,
            url=url,
            method=method,
            headers=headers or {},
            effect=effect or ("pure" if method == "GET" else "once"),
            reach=reach,
            max_bytes=max_bytes,
            timeout_s=timeout_s,
        ),
        parameters,
        description or f"{method} {parts.hostname}{parts.path}",
        retries=retries,
        max_concurrency=max_concurrency,
        memo_s=memo_s,
        eta_s=eta_s,
        sensitive=method != "GET",
    )


def fetch_tool(
    name: str = "fetch",
    *,
    reach: Reach | None = None,
    description: str = "Read a page of the web. `url` begins with https:// or http://.",
    max_bytes: int = 65_536,
    timeout_s: float = 30.0,
    retries: int = 0,
    max_concurrency: int | None = 16,
    memo_s: float | None = None,
    eta_s: float | None = None,
) -> Tool:
    """A tool that reads a page whose URL a model chooses: public addresses only, unless `reach`.

    It is sensitive: what it asks for can tell the outside what the model has read.
    """
    endpoint = _Endpoint(
        tool=name,
        url="{url}",
        method="GET",
        headers={},
        effect="pure",
        reach=reach or Reach(),
        max_bytes=max_bytes,
        timeout_s=timeout_s,
    )
    return _tool(
        endpoint,
        {"url": str},
        description,
        retries=retries,
        max_concurrency=max_concurrency,
        memo_s=memo_s,
        eta_s=eta_s,
        sensitive=True,
    )


def _tool(
    endpoint: _Endpoint, parameters: Mapping[str, Any], description: str, **limits: Any
) -> Tool:
    try:
        import aiohttp  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise InvalidTool(endpoint.tool, "needs aiohttp: pip install 'tenter[http]'") from None
    schema, validate = arguments(endpoint.tool, parameters)

    async def ask(**values: Any) -> dict[str, Any]:
        return await endpoint.ask(values)

    return Tool(
        name=endpoint.tool,
        description=description,
        parameters=schema,
        function=ask,
        effect=endpoint.effect,
        timeout_s=endpoint.timeout_s * (limits["retries"] + 1) + 1,
        source_hash=f"http/1 {endpoint.method} {endpoint.url}",
        validate=validate,
        **limits,
    )


def _fields(url: str) -> list[str]:
    """Names in braces."""
    return [part.split("}", 1)[0] for part in url.split("{")[1:]]


def _fill(tool: str, url: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The URL with its parameters filled in, each percent-encoded, and those it does not name."""
    names = _fields(url)
    if url == "{url}":
        return str(values["url"]), {}
    for name in names:
        text = _text(values[name])
        if text in ("", ".", ".."):
            raise InvalidArguments(tool, f"{name} is {text!r}, which would lead to another page")
        url = url.replace(f"{{{name}}}", quote(text, safe=""))
    return url, {name: value for name, value in values.items() if name not in names}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or _ENDPOINT_CHECK.get(parts.scheme)
    except ValueError:
        raise Unreachable("a redirect leads to a URL that cannot be read") from None


def _charset(response: "ClientResponse") -> str:
    """The encoding that an answer says it has, if there is such a one."""
    try:
        return codecs.lookup(response.charset or "utf-8").name
    except (LookupError, ValueError):
        return "utf-8"


def _session(reach: Reach) -> "ClientSession":
    """A session whose every connection goes to an address that `reach` allows."""
    import aiohttp

    def dial(address: Any) -> socket.socket:
        family, kind, protocol, _, where = address
        reach.check_address(where[0])
        return socket.socket(family=family, type=kind, proto=protocol)

    connector = aiohttp.TCPConnector(socket_factory=dial, use_dns_cache=False, force_close=True)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": "tenter", "Accept-Encoding": "gzip, deflate"},
    )
