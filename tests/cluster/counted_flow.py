"""A workflow whose engines count, outside their processes, every token that they draw.

The backend `counted` is there wherever this file is loaded, and so in every process of a cluster.
"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))  # for the module there

from counted_job import CountedBackend

from tenter.runtime import llm, workflow
from tenter.runtime.backends import registry


def made(counts: str) -> CountedBackend:
    """An engine that counts in a file of its process's, in the folder `counts`."""
    return CountedBackend(str(Path(counts) / str(os.getpid())))


registry.BACKENDS["counted"] = made

kind = llm(
    "Which team handles this ticket?\n\n{{ ticket }}",
    choices=["billing", "bug", "shipping", "sales", "other"],
)
answer = llm("Compute {{ sum }}. Think hard.", max_tokens=64)
note = llm("Classify the review: {{ kind }} said {{ answer }}", max_tokens=8)


@workflow
def counted(ticket: str, sum: str) -> dict[str, Any]:
    """Three calls, of which the last needs the others."""
    team, said = kind(ticket=ticket), answer(sum=sum)
    return {"kind": team, "answer": said, "note": note(kind=team, answer=said)}


@workflow
async def deadly(ticket: str, sum: str) -> str:
    """Ends its whole process at the row that says so."""
    if "deadly" in ticket:
        os._exit(1)
    return await answer(sum=sum)
