"""What tools are and how to call them safely."""

from .registry import Tool

__all__ = ["Tool"]
