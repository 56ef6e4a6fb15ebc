"""What tools are and how to call them safely.

registry.py   the nouns: a tool, its side-effect class, its limits, what can go wrong
python.py     tools from Python functions
http.py       requests to one place, and pages that a model chooses; addresses.py: where to
sql.py        PostgreSQL (sql_postgres.py), SQLite, DuckDB (sql_embedded.py);
              sql_rows.py: what they answer; sql_text.py: what a statement is before it runs;
              sql_calls.py: and what it calls
shell.py      programs under limits; shell_guard.py: the process between
files.py      files below one folder
mcp.py        tools of servers that speak the Model Context Protocol
call.py       calling a tool: arguments, time, concurrency, retries
lifetime.py   what stays open between calls; ending.py: what a cancel must not break off
context.py    what a tool may know of its call, and tell of it
"""

from .addresses import Reach
from .call import call
from .context import ToolContext, tool_context
from .files import file_tools
from .http import fetch_tool, http_tool
from .mcp import mcp_tools
from .python import python_tool
from .registry import (
    Effect,
    InvalidArguments,
    InvalidResult,
    InvalidTool,
    NoEffect,
    Tool,
    ToolError,
    ToolTimeout,
)
from .shell import shell_tool
from .sql import sql_tool

__all__ = [
    "Effect",
    "InvalidArguments",
    "InvalidResult",
    "InvalidTool",
    "NoEffect",
    "Reach",
    "Tool",
    "ToolContext",
    "ToolError",
    "ToolTimeout",
    "call",
    "fetch_tool",
    "file_tools",
    "http_tool",
    "mcp_tools",
    "python_tool",
    "shell_tool",
    "sql_tool",
    "tool_context",
]
