"""A small server of the Model Context Protocol, over stdio, or over HTTP at the port given."""

import logging
import os
import sys

import anyio
from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations

logging.disable()
server = MCPServer("shop", log_level="CRITICAL")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def price(item: str, count: int = 1) -> int:
    """What so many of an item cost."""
    return len(item) * count


@server.tool()
def fail() -> str:
    """Never works."""
    raise ValueError("no luck today")


@server.tool()
def large() -> str:
    """Says too much."""
    return "x" * 1_000_000


@server.tool()
def variables() -> list[str]:
    """What the server sees of the environment."""
    return sorted(os.environ)


@server.tool()
async def steps(context: Context) -> str:
    """Tells how far it has come."""
    await context.report_progress(1, 4)
    await context.report_progress(2)
    return "done"


@server.tool()
async def refuse(code: int) -> str:
    """Says no by an error of the protocol."""
    raise MCPError(code=code, message="not today")


held = anyio.Event()


@server.tool()
async def hold() -> str:
    """Answers when it is released."""
    await held.wait()
    return "held"


@server.tool()
async def release() -> str:
    """Releases it."""
    held.set()
    return "released"


@server.tool()
def die() -> str:
    """Takes the server with it."""
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run(transport="streamable-http", port=int(sys.argv[1]))
    else:
        server.run(transport="stdio")
