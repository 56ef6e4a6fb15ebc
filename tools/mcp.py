"""Tools of a server that speaks the Model Context Protocol, over stdio or HTTP.

What a server says of its tools (names, schemas, hints) and what they return comes from a stranger:
descriptions are cut, hints are believed only where the author trusts them, and every tool has
effect "once" and is sensitive unless the author says otherwise.
"""

import asyncio
import json
import os
import threading
from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import anyio

from .arguments import by_schema
from .capped import Capped
from .context import ToolContext, tool_context
from .lifetime import forget, kept_open
from .registry import Effect, InvalidArguments, InvalidTool, NoEffect, Tool, ToolError
from .secrets import redact, resolve

if TYPE_CHECKING:
    from mcp import Client
    from mcp.shared.dispatcher import ProgressFnT
    from mcp.types import CallToolResult
    from mcp.types import Tool as Offered

MAX_TOOLS = 1_000
MAX_DESCRIPTION = 4_000  # characters, of a model's prompt
MAX_SCHEMA = 65_536
DISCOVERY_S = 60.0
PROBE_S = 5.0  # a server that is merely busy is left alone


def mcp_tools(
    server: str | Sequence[str],
    *,
    only: Sequence[str] | None = None,
    effects: Mapping[str, Effect] | None = None,
    trusted: bool = False,
    prefix: str = "",
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    output_bytes: int = 65_536,
    max_concurrency: int | None = 8,
) -> list[Tool]:
    """The tools of `server`: a URL (streamable HTTP), or a command with its arguments (stdio).

    The server is asked at once which tools it has, and its connection is opened again by the first
    call of a run. `only`: those wanted. `effects`: of tools by name; where the server is `trusted`
    its own hints fill in the rest (read-only or idempotent: may be repeated). `environment` is what
    a command sees beside PATH and HOME; values may refer to ours as "env:NAME". `prefix` begins the
    tools' names here. Raises `InvalidTool` where the server cannot be asked.
    """
    try:
        import mcp  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise InvalidTool("mcp", "needs the package mcp: pip install 'tenter[mcp]'") from None
    server = server if isinstance(server, str) else tuple(server)
    if not server:
        raise InvalidTool("mcp", "server is a URL, or a command and its arguments")
    connection = _Connection(server, dict(environment or {}), timeout_s, output_bytes)
    offered = _discover(connection)
    if len(offered) > MAX_TOOLS:
        raise InvalidTool("mcp", f"{connection.shown} offers more than {MAX_TOOLS} tools")
    missing = [name for name in only or () if name not in {tool.name for tool in offered}]
    if missing:
        known = ", ".join(tool.name for tool in offered) or "none"
        raise InvalidTool(missing[0], f"{connection.shown} has no such tool; it has {known}")
    return [
        _tool(tool, connection, effects or {}, trusted, prefix, timeout_s, max_concurrency)
        for tool in offered
        if only is None or tool.name in only
    ]


class _Connection:
    """How a server is reached, and one call of a tool of it."""

    def __init__(
        self,
        server: str | tuple[str, ...],
        environment: dict[str, str],
        timeout_s: float,
        output_bytes: int,
    ) -> None:
        self.server = server
        self.shown = server.split("?")[0] if isinstance(server, str) else server[0]
        self._environment = environment
        self._timeout_s = timeout_s
        self._output_bytes = output_bytes

    def client(self) -> "Client":
        """A client that is not yet connected."""
        from mcp import Client, StdioServerParameters

        if isinstance(self.server, str):
            return Client(self.server, read_timeout_seconds=self._timeout_s)
        base = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        given = {name: resolve(value)[0] for name, value in self._environment.items()}
        command = StdioServerParameters(
            command=self.server[0], args=list(self.server[1:]), env={**base, **given}
        )
        return Client(command, read_timeout_seconds=self._timeout_s)

    async def call(self, tool: str, name: str, values: dict[str, Any]) -> Any:
        """One call; what the server says is an error raises `ToolError`."""
        from mcp import MCPError
        from mcp.types import INVALID_PARAMS

        secrets = [each for value in self._environment.values() for each in resolve(value)[1]]
        client: Client | None = None
        try:
            client = await kept_open(self, self.client)
            result = await client.call_tool(name, values, self._timeout_s, _told(tool_context()))
        except Exception as error:  # noqa: BLE001 (of the library, the process, the network)
            if client is not None and not await _alive(client, error):
                await forget(self, client)
            if not isinstance(error, MCPError):
                text = redact(f"{type(error).__name__}: {error}", secrets)
                said = f"{self.shown} cannot be asked: {text}"
                raise (NoEffect(said) if client is None else ToolError(tool, said)) from None
            if error.error.code == INVALID_PARAMS:
                raise InvalidArguments(tool, redact(str(error), secrets)) from None
            raise ToolError(tool, redact(f"{self.shown}: {error}", secrets)) from None
        value = _value(result, self._output_bytes)
        if result.is_error:
            raise ToolError(tool, redact(value if isinstance(value, str) else str(value), secrets))
        return value


async def _alive(client: "Client", error: Exception) -> bool:
    """Whether calls can go on with `client` after this error of one of them."""
    from mcp import MCPError
    from mcp.types import CONNECTION_CLOSED, INVALID_PARAMS, INVALID_REQUEST, REQUEST_TIMEOUT

    if isinstance(error, MCPError) and error.error.code in (INVALID_PARAMS, REQUEST_TIMEOUT):
        return True
    try:
        with anyio.move_on_after(PROBE_S):
            await client.list_tools(cache_mode="bypass")
    except MCPError as refusal:  # it is gone, or has forgotten the session
        return refusal.error.code not in (CONNECTION_CLOSED, INVALID_REQUEST)
    except Exception:  # noqa: BLE001 (whatever it is, nothing comes through)
        return False
    return True


def _told(context: ToolContext) -> "ProgressFnT":
    """What a server tells of its progress, as the time that it still takes at this pace."""
    since_s = anyio.current_time()

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        if total is not None and 0 < progress <= total < inf:
            context.eta((anyio.current_time() - since_s) * (total - progress) / progress)

    return heard


def _discover(connection: _Connection) -> "list[Offered]":
    """Ask a server for its tools, from wherever we are: in a thread with a loop of its own."""
    found: list[Offered] = []
    failed: list[BaseException] = []

    async def ask() -> None:
        async with asyncio.timeout(DISCOVERY_S), connection.client() as client:
            cursor = None
            while len(found) <= MAX_TOOLS:
                page = await client.list_tools(cursor=cursor)
                found.extend(page.tools)
                cursor = page.next_cursor
                if cursor is None:
                    return

    def run() -> None:
        try:
            asyncio.run(ask())
        except BaseException as error:  # noqa: BLE001 (raised by the caller's thread)
            failed.append(error)

    thread = threading.Thread(target=run, name="mcp-discovery", daemon=True)
    thread.start()
    thread.join()
    if failed:
        error = failed[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        text = f"{type(error).__name__}: {error}"  # pyright: ignore[reportUnknownArgumentType]
        raise InvalidTool("mcp", f"{connection.shown} cannot be asked for its tools: {text}")
    return found


def _tool(
    offered: "Offered",
    connection: _Connection,
    effects: Mapping[str, Effect],
    trusted: bool,
    prefix: str,
    timeout_s: float,
    max_concurrency: int | None,
) -> Tool:
    name = prefix + offered.name
    schema = json.dumps(offered.input_schema, separators=(",", ":"))
    if len(schema) > MAX_SCHEMA:
        raise InvalidTool(name, f"its schema has more than {MAX_SCHEMA} characters")
    hints = offered.annotations if trusted else None
    repeatable = hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)
    harmless = hints is not None and bool(hints.read_only_hint)

    async def run(**values: Any) -> Any:
        return await connection.call(name, offered.name, values)

    return Tool(
        name=name,
        description=(offered.description or "")[:MAX_DESCRIPTION],
        parameters=schema,
        function=run,
        effect=effects.get(offered.name, "idempotent" if repeatable else "once"),
        timeout_s=timeout_s,
        max_concurrency=max_concurrency,
        source_hash=f"mcp/1 {connection.shown} {schema}",
        validate=by_schema(name, offered.input_schema, trusted=trusted),
        sensitive=not harmless,
    )


def _value(result: "CallToolResult", limit: int) -> Any:
    """What a tool returned: its structured content if there is some, else its text."""
    structured = result.structured_content
    if structured is not None and len(json.dumps(structured)) <= limit:
        return structured["result"] if structured.keys() == {"result"} else structured
    kept = Capped(limit)
    for part in result.content:
        text = getattr(part, "text", None)
        shown = text if isinstance(text, str) else f"[{part.type}]"
        kept.write((("\n" if kept.total else "") + shown).encode("utf-8", "replace"))
    return kept.text()
