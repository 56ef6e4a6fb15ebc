"""One sequence: a request on its way through the engine. No torch here."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Literal

from ..calls import Chunk, FinishReason, Request, Usage
from .cache import Page

if TYPE_CHECKING:
    from .grammar import Matcher
    from .text import TextStream

State = Literal["waiting", "running", "finished"]


@dataclass(frozen=True, slots=True)
class Forks:
    """Choices laid out behind one prompt, as a tree of depth one (the tree attention of
    SpecInfer, 2305.09781, section 4.2): each sees the prompt and itself, none sees another.

    `starts[i]` is where the choice of suffix token i begins; `depths[i]` counts from the prompt.
    `targets` maps a token's place to the (next token, choice) pairs scored by its logits.
    """

    tokens: tuple[int, ...]
    starts: tuple[int, ...]
    depths: tuple[int, ...]
    targets: dict[int, list[tuple[int, int]]]

    @classmethod
    def of(cls, prompt: int, choices: tuple[tuple[int, ...], ...]) -> "Forks":
        """Lay out `choices` behind `prompt` tokens. The last token of each needs no computing."""
        tokens, starts, depths = list[int](), list[int](), list[int]()
        targets = {prompt - 1: [(choice[0], index) for index, choice in enumerate(choices)]}
        for index, choice in enumerate(choices):
            start = prompt + len(tokens)
            for depth, token in enumerate(choice[:-1]):
                targets[start + depth] = [(choice[depth + 1], index)]
                tokens.append(token)
                starts.append(start)
                depths.append(depth)
        return cls(tuple(tokens), tuple(starts), tuple(depths), targets)


@dataclass(eq=False, slots=True)
class Sequence:
    """A request and how far it is. `tokens` are the prompt, then the forks or what was drawn."""

    request: Request
    arrival: int  # a serial number: the tie-break of the order
    arrived_s: float
    max_output: int  # tokens to draw at most
    tokens: list[int] = field(default_factory=list[int])
    prompt: int = 0  # tokens of the prompt
    forks: Forks | None = None
    state: State = "waiting"
    pages: list[Page] = field(default_factory=list[Page])
    table: list[int] = field(default_factory=list[int])  # ids of `pages`
    done: int = 0  # tokens whose KV is in `pages`
    published: int = 0  # leading pages that are in the tree
    computed: int = 0  # tokens computed before the first one was drawn, at the latest attempt
    started_s: float | None = None
    first_s: float | None = None  # when the first token was drawn
    logprobs: list[float] = field(default_factory=list[float])
    scores: list[float] = field(default_factory=list[float])  # one per choice
    random: Random | None = None
    cached: int = 0  # of the prompt, not computed for this sequence
    grammar: "Matcher | None" = None
    text: "TextStream | None" = None
    said: str = ""  # text that was set free and not handed out yet
    handed: int = 0  # output tokens that were handed out

    def __post_init__(self) -> None:
        request = self.request
        self.tokens = list(request.token_ids)
        self.prompt = len(self.tokens)
        if request.choices is not None:
            self.forks = Forks.of(self.prompt, request.choices)
            self.tokens += self.forks.tokens
            self.scores = [0.0] * len(request.choices)
        if request.sampling.temperature > 0:
            self.random = Random(request.sampling.seed)

    @property
    def order(self) -> tuple[float, float, int]:
        """Smaller goes first: priority, then deadline, then arrival."""
        deadline_s = self.request.deadline_s
        return self.request.priority, math.inf if deadline_s is None else deadline_s, self.arrival

    @property
    def draws(self) -> bool:
        """Whether tokens are to be drawn (not only a prompt warmed or choices scored)."""
        return self.forks is None and self.max_output > 0

    @property
    def outputs(self) -> int:
        """Tokens drawn so far."""
        return 0 if self.forks else len(self.tokens) - self.prompt

    @property
    def sharable(self) -> int:
        """Leading tokens that other sequences may reuse: all but the forks."""
        return self.prompt if self.forks else len(self.tokens)

    @property
    def decoding(self) -> bool:
        """Whether only the token drawn last is left to compute."""
        return self.forks is None and self.prompt < len(self.tokens) == self.done + 1

    def positions(self, start: int, stop: int) -> Iterable[int]:
        """Positions (for rotation) of the tokens from `start` to `stop`."""
        if self.forks is None or stop <= self.prompt:
            return range(start, stop)
        depths = self.forks.depths
        plain = list(range(start, min(stop, self.prompt)))
        first = max(start, self.prompt)
        return plain + [self.prompt + depths[i - self.prompt] for i in range(first, stop)]

    # -- the answer

    def accept(self, token: int, eos_ids: frozenset[int]) -> FinishReason | None:
        """Add a drawn token to the answer; why it ends with it, if it does."""
        self.tokens.append(token)
        if self.grammar is not None:
            self.grammar.advance(token)
            if self.grammar.failure is not None:
                return "error"
        if token in eos_ids and not self.request.sampling.ignore_eos:
            return "stop"
        if self.text is not None:
            self.said += self.text.push(token)
            if self.text.stopped:
                return "stop"
        return "length" if self.outputs >= self.max_output else None

    def chunk(self) -> Chunk:
        """What is new in the answer since the last chunk."""
        first, self.handed = self.handed, self.outputs
        text, self.said = self.said, ""
        return Chunk(
            text=text,
            token_ids=tuple(self.tokens[self.prompt + first : self.prompt + self.handed]),
            logprobs=tuple(self.logprobs[first:]) if self.request.logprobs else None,
        )

    def last_chunk(self, finish: FinishReason, now_s: float) -> Chunk:
        """The rest of the answer, and how it came about."""
        if self.text is not None:
            self.said += self.text.finish()
        scored = self.forks is not None and finish == "stop"
        rest = self.chunk()
        return Chunk(
            text=rest.text,
            token_ids=rest.token_ids,
            logprobs=rest.logprobs,
            finish=finish,
            usage=self._usage(now_s),
            choice_logprobs=tuple(self.scores) if scored else None,
            error=self.grammar.failure if finish == "error" and self.grammar else None,
        )

    def _usage(self, now_s: float) -> Usage:
        started_s = now_s if self.started_s is None else self.started_s
        first_s = now_s if self.first_s is None else self.first_s
        return Usage(
            prompt_tokens=len(self.request.token_ids),
            cached_tokens=self.cached,
            output_tokens=self.outputs - len(self.request.drawn),
            queue_s=started_s - self.arrived_s,
            prefill_s=first_s - started_s,
            decode_s=now_s - first_s,
        )
