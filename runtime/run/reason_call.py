"""One call of a reasoning step on its way through the scheduler."""

import asyncio

from ..calls import Chunk, Request, Tokenizer
from ..reasoning.answers import trial
from ..scheduler.loop import Answer


class ReasonCall:
    """A piece of a thought, a probe or a judgement (a `Submission`).

    `heard_tokens` counts what has come of a streamed answer: an aborted one is in the account.
    """

    shared_tokens = 0

    def __init__(
        self, request: Request, program: str, step: str, model: str, gang: int = 0
    ) -> None:
        self.request = request
        self.program = program
        self.step = step
        self.model = model
        self.gang = gang
        self.heard_tokens = 0
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def heard(self, chunk: Chunk) -> None:
        """Count what came."""
        self.heard_tokens += len(chunk.token_ids)

    def lost(self) -> None:
        """The answer begins anew."""
        self.heard_tokens = 0

    def done(self, answer: Answer) -> None:
        """Hand the answer over, if somebody still waits."""
        if not self.answer.done():
            self.answer.set_result(answer)


def told_logprobs(answer: Answer, tokenizer: Tokenizer) -> tuple[float, ...]:
    """The log-probabilities of a trial answer's tokens, and of the one that ends it: not of what a
    model says behind it."""
    given = answer.logprobs or ()
    wanted = trial(answer.text)
    for count in range(1, len(given)):
        said = tokenizer.decode(list(answer.token_ids[:count])).strip()
        if len(said) > len(wanted) and trial(said) == wanted:
            return given[:count]
    return given


def computed_tokens(answer: Answer) -> int:
    """The tokens of its prompt that were not in the cache."""
    return max(0, answer.usage.prompt_tokens - answer.usage.cached_tokens)
