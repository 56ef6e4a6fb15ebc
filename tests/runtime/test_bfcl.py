"""Multi-turn tool use of BFCL (Berkeley function-calling leaderboard, v4), replayed call by call.

The data has prompts, the state that an environment begins with, and the functions that are right to
call, without their parameters. So each function becomes a tool that works on that state, a script
says the calls, and what is checked is what the runtime owes them: schemas load, arguments are
validated, a wrong call is told and mended, and state and chat are kept over the turns.
"""

import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tenter.runtime import run_workflow
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.run.context import current_program
from tenter.runtime.workflow import Workflow
from tenter.tools import Tool
from tenter.tools.python import python_tool

DATA = Path(__file__).parents[3] / "shared" / "data" / "agents" / "bfcl_multi_turn_base.json.gz"
SLICES = 4


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    if not DATA.exists():
        pytest.skip("the public data is not there: see docs/replay.md")
    with gzip.open(DATA, "rt") as lines:
        return [json.loads(line) for line in lines]


async def shape(turn: int, request: str, parts: list[str] | None = None) -> None:
    """What all functions take."""


SHAPE = python_tool(shape, effect="idempotent")


class Environment:
    """The state of one entry, and its functions as tools."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.state: dict[str, Any] = json.loads(json.dumps(entry["initial_config"]))
        self.called: list[str] = []
        self.tools = [self._tool(name) for name in dict.fromkeys(entry["path"])]

    def _tool(self, name: str) -> Tool:
        of_class, _, function = name.partition(".")

        async def act(turn: int, request: str, parts: list[str] | None = None) -> dict[str, Any]:
            self.called.append(name)
            mine = self.state.setdefault(of_class, {})
            mine["calls"] = [*mine.get("calls", []), function]
            return {"calls": len(mine["calls"]), "knows": sorted(mine)[:3], "turn": turn}

        described = f"{function} of {of_class}."
        return replace(SHAPE, name=name.replace(".", "_"), description=described, function=act)


class Replay(FakeBackend):
    """Says the calls of each turn side by side, the first of them wrongly at first."""

    def __init__(self, turns: list[list[str]]) -> None:
        super().__init__()
        self.turns = turns
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.requests.append(request)
        async for chunk in super().generate(request):
            text = self._says(request)
            yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)

    def _says(self, request: Request) -> str:
        users = [at for at, said in enumerate(request.messages) if said.role == "user"]
        turn, told = len(users) - 1, request.messages[users[-1] + 1 :]
        calls = self.turns[turn]
        asked = sum(1 for said in told if said.role == "assistant")
        if not calls or asked == 2:
            return f"Turn {turn} is done."
        first = {"turn": "the first"} if asked == 0 else {"turn": turn, "request": "again"}
        rest = [{"turn": turn, "request": "go", "parts": ["a"]} for _ in calls[1:]]
        arguments = [first, *rest] if asked == 0 else [first]
        return "".join(
            f"<tool_call>{json.dumps({'name': name, 'arguments': given})}</tool_call>"
            for name, given in zip(calls, arguments, strict=False)
        )


def shares(path: list[str], turns: int) -> list[list[str]]:
    """The functions of a path, spread over its turns in their order."""
    names = [name.replace(".", "_") for name in path]
    return [names[n * len(names) // turns : (n + 1) * len(names) // turns] for n in range(turns)]


async def replay(entry: dict[str, Any]) -> tuple[Environment, Replay, list[str]]:
    environment = Environment(entry)
    questions = ["\n".join(said["content"] for said in turn) for turn in entry["question"]]
    backend = Replay(shares(entry["path"], len(questions)))

    async def work() -> list[str]:
        program: Any = current_program.get()
        chat = program.session("You help with tools.")
        return [await chat.run(question, environment.tools) for question in questions]

    workflow = Workflow("bfcl", (), program=work)
    answers = await run_workflow(workflow, {}, backends={"default": backend})
    return environment, backend, answers


@pytest.mark.parametrize("part", range(SLICES))
async def test_the_prompts_run_to_their_end(entries: list[dict[str, Any]], part: int) -> None:
    assert len(entries) == 200
    for entry in entries[part::SLICES]:
        environment, backend, answers = await replay(entry)

        assert answers == [f"Turn {turn} is done." for turn in range(len(entry["question"]))]
        assert sorted(environment.called) == sorted(entry["path"]), entry["id"]
        for name, state in entry["initial_config"].items():
            kept = {key: value for key, value in environment.state[name].items() if key != "calls"}
            assert kept == state
            made = [each for each in entry["path"] if each.startswith(f"{name}.")]
            assert len(environment.state[name].get("calls", [])) == len(made)
        for earlier, later in pairwise(backend.requests):
            assert later.token_ids[: len(earlier.token_ids)] == earlier.token_ids
        told = [said.content for said in backend.requests[-1].messages if said.role == "tool"]
        refused = [text for text in told if text.startswith("error:")]
        assert len(refused) == sum(1 for calls in backend.turns if calls)
        assert all("turn: Input should be a valid integer" in text for text in refused)


def test_the_schemas_are_what_a_model_is_told(entries: list[dict[str, Any]]) -> None:
    tools = {tool.name: tool for entry in entries for tool in Environment(entry).tools}
    assert len(tools) == 76
    for tool in tools.values():
        schema = json.loads(tool.parameters)
        assert schema["required"] == ["turn", "request"]
        assert schema["additionalProperties"] is False
        assert tool.description
