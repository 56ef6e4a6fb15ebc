"""A small server of the Model Context Protocol, over stdio, or over HTTP at the port given."""

import logging
import os
import sys

from mcp.server import MCPServer
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
def die() -> str:
    """Takes the server with it."""
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run(transport="streamable-http", port=int(sys.argv[1]))
    else:
        server.run(transport="stdio")
