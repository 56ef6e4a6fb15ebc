"""What tools are and how to call them safely."""

from .call import call
from .python import python_tool
from .registry import (
    Effect,
    InvalidArguments,
    InvalidResult,
    InvalidTool,
    Tool,
    ToolError,
    ToolTimeout,
)

__all__ = [
    "Effect",
    "InvalidArguments",
    "InvalidResult",
    "InvalidTool",
    "Tool",
    "ToolError",
    "ToolTimeout",
    "call",
    "python_tool",
]
