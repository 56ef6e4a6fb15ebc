"""Self-consistency by hand: ask the same question several times and take the most frequent answer.

    tenter run examples/vote.py question="Compute 38 * 24." samples=5

Each sample has a seed of its own, so the same run gives the same votes again. All samples share
one prompt: it is computed once, and the engine decodes them together.
"""

import asyncio
from collections import Counter

from tenter.runtime import llm, workflow


@workflow
async def vote(question: str, samples: int = 5) -> dict[str, int]:
    """How many samples gave each answer, the winner first."""
    asks = [
        llm("{{ question }}", temperature=0.8, seed=seed, max_tokens=200) for seed in range(samples)
    ]
    answers = await asyncio.gather(*(ask(question=question) for ask in asks))
    return dict(Counter(answers).most_common())
