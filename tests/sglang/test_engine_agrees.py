"""The embedded engine and SGLang draw the same tokens: greedy, float32, the shipped tiny model."""

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tenter.runtime.backends.embedded import EmbeddedBackend
from tenter.runtime.calls import CallId, Message, Request, Sampling
from tenter.runtime.models import tiny_path
from tenter.runtime.tokenizer import HFTokenizer

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.sglang

NEW_TOKENS = 48
BATCH = 8
TICKET = "Dear team, the parcel 7 never arrived. Thanks, Ada"
EXAMPLES = Path(__file__).parents[2] / "examples" / "tickets.csv"
TICKETS = "\n".join(EXAMPLES.read_text().splitlines()[1:31])  # about a thousand tokens
CHATS = {
    "team": f"Which team handles this ticket?\n\n{TICKET}",
    "reply": f"Answer this billing ticket:\n{TICKET}",
    "sum": "Compute 17 + 25 + 9. Think hard.",
    "short sum": "Compute 4 + 5.",
    "review": "Classify the review: good taste, bad smell",
    "beer": "Describe this style of beer in a few words: Russian Imperial Stout",
    "long ticket": f"{TICKETS}\n\nWhich team handles these tickets?",
    "long review": f"Classify the review: {TICKETS}",
}
PLAIN = {
    "one word": "The",
    "a line": "Dear team, the parcel",
    "code": "def total(prices):\n    return",
    "long": TICKETS,
}

Prompt = tuple[int, ...]


@pytest.fixture(scope="module")
def prompts() -> dict[str, Prompt]:
    tokenizer = HFTokenizer(tiny_path())
    chats = {name: tokenizer.chat([Message("user", text)]) for name, text in CHATS.items()}
    plain = {name: tokenizer.encode(text) for name, text in PLAIN.items()}
    found = {name: tuple(ids) for name, ids in (chats | plain).items()}
    assert all(900 < len(ids) < 1200 for name, ids in found.items() if name.startswith("long"))
    return found


@pytest.fixture(scope="module")
def drawn(prompts: dict[str, Prompt]) -> dict[bool, dict[str, Prompt]]:
    """What the embedded engine draws for all prompts at once: to the end of turn, and beyond it."""
    return {beyond: anyio.run(embedded, prompts, beyond) for beyond in (False, True)}


async def embedded(prompts: dict[str, Prompt], beyond: bool) -> dict[str, Prompt]:
    sampling = Sampling(max_tokens=NEW_TOKENS, ignore_eos=beyond)
    answers: dict[str, Prompt] = {}

    async def ask(backend: EmbeddedBackend, name: str) -> None:
        request = Request(CallId(name), prompts[name], sampling)
        answers[name] = tuple(
            [token async for chunk in backend.generate(request) for token in chunk.token_ids]
        )

    async with (
        EmbeddedBackend(tiny_path(), dtype="float32", kv_tokens=16384) as backend,
        anyio.create_task_group() as tasks,
    ):
        for name in prompts:
            tasks.start_soon(ask, backend, name)
    return answers


def post(server: "Server", path: str, body: object) -> Any:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = answer.read()
    return json.loads(text) if text.startswith((b"{", b"[")) else text


def generate(server: "Server", prompts: Sequence[Prompt], beyond: bool) -> list[Prompt]:
    """What SGLang draws for `prompts`, asked as one batch and with nothing in its cache."""
    post(server, "/flush_cache", {})
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": beyond}
    answers = post(server, "/generate", {"input_ids": prompts, "sampling_params": sampling})
    return [tuple(answer["output_ids"]) for answer in answers]


@pytest.mark.parametrize("beyond", [False, True], ids=["to the end of turn", "beyond it"])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_greedy_answers_agree_token_for_token(
    sglang_stock: "Server",
    prompts: dict[str, Prompt],
    drawn: dict[bool, dict[str, Prompt]],
    batch: int,
    beyond: bool,
) -> None:
    names = list(prompts)
    answers: dict[str, Prompt] = {}
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        found = generate(sglang_stock, [prompts[name] for name in part], beyond)
        answers.update(zip(part, found, strict=True))

    assert answers == drawn[beyond]
    assert len(answers) == 12
    assert not beyond or {len(answer) for answer in answers.values()} == {NEW_TOKENS}
