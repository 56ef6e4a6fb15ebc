"""Real SGLang servers behind the backend door."""

from .backend import SGLangBackend
from .connect import ask_server, connect, open_backends
from .findings import Finding, findings
from .health import Patience
from .info import ServerInfo

__all__ = [
    "Finding",
    "Patience",
    "SGLangBackend",
    "ServerInfo",
    "ask_server",
    "connect",
    "findings",
    "open_backends",
]
