"""The tokens of a step's samples: each begins at the prompt, or where another one stands, token by
token, so that what they have in common is in the KV cache once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..calls import Message, Tokenizer
from ..reasoning.nouns import Think
from .codec import identity


@dataclass(slots=True)
class Sample:
    """The tokens of one chain of thought, and how many of them are the prompt.

    A `branched` one does not begin at the step's prompt alone.
    """

    tokens: list[int]
    began: int
    branched: bool = False

    @property
    def drawn(self) -> int:
        """How many tokens there are behind the prompt."""
        return len(self.tokens) - self.began

    @property
    def place(self) -> str:
        """Where it stands, for the journal. What a branch goes on from depends on more than its
        number: when a run is resumed, a branch from elsewhere must not be taken for it."""
        return f"{self.drawn}-{identity(self.tokens)}" if self.branched else f"{self.drawn}"


@dataclass(slots=True)
class Samples:
    """All samples of a step that asks `chat`."""

    tokenizer: Tokenizer
    chat: list[Message]
    made: dict[int, Sample] = field(default_factory=dict[int, Sample])

    def get(self, ask: Think) -> Sample:
        """The sample to think on; a new one begins at the prompt, or where its parent stands."""
        sample = self.made.get(ask.sample)
        if sample is None:
            sample = self.made[ask.sample] = self._begun(ask)
        return sample

    def closed(self, token_ids: Sequence[int]) -> bool:
        """Whether the model itself ended an answer, rather than a stop text."""
        return not token_ids or token_ids[-1] in self.tokenizer.eos_ids

    def _begun(self, ask: Think) -> Sample:
        if ask.parent is not None:
            parent = self.made[ask.parent]
            turn = self._turn(ask.instruction, parent) if ask.instruction else []
            return Sample([*parent.tokens, *turn], parent.began, True)
        chat = self.chat
        if ask.instruction:
            *before, last = chat
            chat = [*before, Message(last.role, f"{last.content}\n\n{ask.instruction}")]
        prompt = list(self.tokenizer.chat(chat))
        return Sample(prompt, len(prompt), bool(ask.instruction))

    def _turn(self, instruction: str, parent: Sample) -> list[int]:
        """An instruction as the next turn of the chat, behind what the parent said."""
        eos_ids = self.tokenizer.eos_ids
        turn = self.tokenizer.follow([Message("user", instruction)])
        if turn is None:
            return self.tokenizer.encode(instruction)
        if parent.tokens[-1] in eos_ids:  # the end of its turn is said already
            ends = [place for place, token in enumerate(turn) if token in eos_ids]
            turn = turn[ends[0] + 1 :] if ends else turn
        return turn
