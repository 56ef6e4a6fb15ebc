"""Who said what a chat has read, and which tools may therefore run.

Labels of trust follow data (SAFEFLOW, 2506.07564). What a tool, a page or a row says is untrusted:
it may be written to make the model call something. A model does not keep apart what it reads, so
the label is on the whole chat: from the first untrusted text on, a tool that has an effect, or is
sensitive, runs only where the author's rule (`allow`) or an approval lets it. Where the author's
own code calls a tool, that call is the author's rule.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from ...tools import Tool

MAX_SOURCES = 8  # that are named in a refusal
ASKS = "approve"  # the step that a question, and then its answer, is recorded at

Approve = Callable[["Approval"], bool | Awaitable[bool]] | Literal["pause"]
"""Who is asked: a function, or "pause": the program stops, and a resumed run has the answer."""


@dataclass(frozen=True, slots=True)
class Approval:
    """What somebody is asked to approve: a call, and whose words the chat had read before it."""

    tool: str
    arguments: Mapping[str, Any]
    sources: tuple[str, ...]

    def question(self) -> dict[str, Any]:
        """As the journal keeps it until somebody answers."""
        return asdict(self)


def approval_id(row: int, path: str) -> str:
    """What a question is called by who answers it."""
    return blake2b(f"{row}/{path}".encode("utf-8", "replace"), digest_size=4).hexdigest()


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What an agent step may use: tools by name, and who approves of calls that need it."""

    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    approve: Approve | None = None


EMPTY = Toolbox()


@dataclass(slots=True)
class Trust:
    """The label of one chat. `sources` are where its untrusted text came from, each once."""

    allow: frozenset[str] = frozenset()
    approve: Approve | None = None
    sources: dict[str, None] = field(default_factory=dict[str, None])

    def taint(self, source: str) -> None:
        """Untrusted text from `source` becomes part of the chat."""
        self.sources[source] = None

    def permits(self, tool: Tool) -> bool:
        """Whether a call of `tool` that the model asks for needs nobody's approval."""
        harmless = tool.effect != "once" and not tool.sensitive
        return harmless or not self.sources or tool.name in self.allow

    def refusal(self, tool: Tool) -> str:
        """Why `tool` may not run: the flow, and the cure."""
        named = list(self.sources)[:MAX_SOURCES]
        more = len(self.sources) - len(named)
        flow = ", ".join(named) + (f" and {more} more" if more else "")
        what = "has an effect" if tool.effect == "once" else "is sensitive"
        return (
            f"tool {tool.name!r} {what}, and this chat has read untrusted text ({flow}): "
            f"allow it by allow=[{tool.name!r}], or approve the call"
        )
