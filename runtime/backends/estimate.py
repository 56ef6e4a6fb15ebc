"""A tokenizer for models whose own is not known: counts are estimates, text comes back exactly.

Four bytes of UTF-8 make a token, about what English text has in the vocabularies of today.
"""

from ..calls import Message, ToolSpec

TOKEN_BYTES = 4
_PAD = b"\xff"  # no byte of UTF-8, so that a short last token can be told from a whole one
_END = int.from_bytes(_PAD * TOKEN_BYTES, "big")


class EstimatedTokenizer:
    """Implements `calls.Tokenizer`. Equal beginnings of texts have equal beginnings of tokens.

    `chat` writes roles and contents down; no model's template is known.
    """

    eos_ids: frozenset[int] = frozenset({_END})
    end_of_turn_ids: tuple[int, ...] = (_END,)

    def encode(self, text: str) -> list[int]:
        """Token ids below 2**32; a lone surrogate becomes a question mark."""
        data = text.encode("utf-8", "replace")
        data += _PAD * (-len(data) % TOKEN_BYTES)
        starts = range(0, len(data), TOKEN_BYTES)
        return [int.from_bytes(data[start : start + TOKEN_BYTES], "big") for start in starts]

    def decode(self, token_ids: list[int]) -> str:
        """The text that `token_ids` were made of, without the end of a turn."""
        data = b"".join(token.to_bytes(TOKEN_BYTES, "big") for token in token_ids)
        return data.replace(_PAD, b"").decode("utf-8", "replace")

    def chat(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int]:
        """Token ids of a chat; its next turn begins where this ends."""
        lines = [f"tool: {tool.name} {tool.description} {tool.parameters}" for tool in tools]
        for message in messages:
            calls = "".join(f" {name}{arguments}" for name, arguments in message.tool_calls)
            lines.append(f"{message.role}: {message.content}{calls}")
        return self.encode("\n".join([*lines, ""]))

    def follow(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int] | None:
        """None: a server that takes messages renders the whole chat itself."""
        return None
