"""What strangers wrote is data: in rows, results and plans (X3), and in a journal that was forged (X4)."""

import asyncio
import json
import pickle
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tenter.runtime import plan_and_run, run_workflow, session, tool, workflow
from tenter.runtime.approvals import questions
from tenter.runtime.backends.fake import FakeBackend
from tenter.runtime.calls import Chunk, Request
from tenter.runtime.clock import VirtualLoop
from tenter.runtime.errors import JournalError
from tenter.runtime.journal.base import Manifest, StepRecord
from tenter.runtime.journal.store import Store
from tenter.runtime.run.chat_work import read_said
from tenter.runtime.run.codec import is_json
from tenter.runtime.run.draft import Draft
from tenter.runtime.run.tool_failures import failed_before
from tenter.runtime.spec import loads

from .lives import Book, OneRun


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


NAMES = ("secret", "self", "config", "x.__class__.__mro__", "cycler.__init__.__globals__")
FORMS = (
    "{{{{ {} }}}}",
    "{{% if {} %}}yes{{% endif %}}",
    "{{{{- {} -}}}} {{# {} #}}",
    "${{{}}} #{{{}}} <%= {} %>",
    "{{{{ 7 * 7 }}}} {{% for a in {} %}}{{{{ a }}}}{{% endfor %}}",
)
PAYLOADS = tuple(form.format(*[name] * form.count("{}")) for name in NAMES for form in FORMS)

ROWS = """
version: 1
name: rows
inputs: {secret: string, text: string}
steps:
  said: {llm: "It says: {{ text }}", system: "You know {{ secret | length }} letters."}
  lines:
    each: "{{ [text] }}"
    steps: {one: {llm: "One: {{ item }}"}}
    result: "{{ [one, item] }}"
output: "{{ [text, said, lines[0][1]] }}"
"""
HANDED_ON = """
version: 1
name: handed_on
inputs: {secret: string, text: string}
steps:
  a: {llm: "{{ both }} {{ secret_letters }}", with: {both: "{{ [text, text] }}", secret_letters: "{{ secret | length }}"}}
output: "{{ a }}"
"""


class Hears(FakeBackend):
    """Calls the tool once where there is one. Called a fake."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    async def generate(self, request: Request) -> Any:
        told = [message.content for message in request.messages]
        self.messages += told
        calls = bool(request.tools) and len(told) == 1
        text = '<tool_call>{"name": "page", "arguments": {}}</tool_call>' if calls else "done"
        async for chunk in super().generate(request):
            yield Chunk(text, (*text.encode(), 256), finish=chunk.finish, usage=chunk.usage)


async def row(payload: str, backend: FakeBackend) -> None:
    """As the cell of a row, in prompts and as the row's result."""
    inputs = {"secret": "hidden", "text": payload}
    said = await run_workflow(loads(ROWS), inputs, backends={"default": backend})
    assert said == [payload, "done", payload]


async def result(payload: str, backend: FakeBackend) -> None:
    """As what a tool returns to the model."""

    @tool(effect="pure")
    async def page() -> str:
        return payload

    @workflow
    async def reads(secret: str) -> str:
        return await session().run("Read the page.", [page])

    await run_workflow(reads.workflow, {"secret": "hidden"}, backends={"default": backend})


async def plan(payload: str, backend: FakeBackend) -> None:
    """As a prompt that a model planned."""

    @workflow
    async def planned(secret: str) -> Any:
        return await plan_and_run([{"id": "a", "kind": "llm", "prompt": payload}])

    await run_workflow(planned.workflow, {"secret": "hidden"}, backends={"default": backend})


async def yaml_value(payload: str, backend: FakeBackend) -> None:
    """As what a step in YAML hands to the next: made by the author's template, not read as one."""
    inputs = {"secret": "hidden", "text": payload}
    await run_workflow(loads(HANDED_ON), inputs, backends={"default": backend})


@pytest.mark.anyio
@pytest.mark.parametrize("place", [row, result, plan, yaml_value])
@pytest.mark.parametrize("payload", PAYLOADS)
async def test_no_text_of_strangers_is_a_template(payload: str, place: Any) -> None:
    backend = Hears()
    await place(payload, backend)
    heard = "\n".join(backend.messages)
    assert payload in heard or repr(payload) in heard
    assert "hidden" not in heard
    assert "49" not in heard


def test_there_are_a_hundred_of_them() -> None:
    assert len(set(PAYLOADS)) * 4 >= 100


# ---- journals (X4) ---------------------------------------------------------------------------------


class Runs:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def forged(count: int, mark: Path) -> Iterator[bytes]:
    """Values that no Tenter has written: code of other formats, broken JSON, wrong shapes, noise."""
    draw = random.Random(4)
    code = [
        pickle.dumps(Runs(mark)),
        f"!!python/object/apply:pathlib.Path.touch [{mark}]".encode(),
        json.dumps(
            {"py/reduce": [{"py/type": "pathlib.Path"}, {"py/tuple": [str(mark)]}]}
        ).encode(),
        f"__import__('pathlib').Path({str(mark)!r}).touch()".encode(),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(5, pickle.dumps(Runs(mark)))),
    ]
    shapes = [
        b'{"said": 1}', b'{"said": "x", "step": [], "unknown": {}}', b'{"tool": "x"}', b"[[[[", b"",
        b'{"tool": 1, "arguments": [], "sources": {}}', b"{", b'{"text": "x", "token_ids": ["a"]}',
        b'"\\ud800"', b"NaN", b"1e999", b'{"text": {"text": 1}}', b"\xff\xfe", b"[" * 5_000,
    ]  # fmt: skip
    for _ in range(count):
        blob = bytearray(draw.choice(code if draw.random() < 0.3 else shapes))
        for _ in range(draw.randrange(3)):
            place = draw.randrange(len(blob) + 1)
            blob[place:place] = draw.randbytes(draw.randrange(4))
        yield bytes(blob)


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_of_a_forged_record_nothing_runs(count: int, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    refusals = (ValueError, RecursionError, JournalError)
    for blob in forged(count, mark):
        record = StepRecord(0, "pay~", blob)
        is_json(blob)
        with suppress(*refusals):
            assert isinstance(read_said(msgspec.Raw(blob)).text, str)
        with suppress(*refusals):
            failed_before({"pay~": record}, "pay")
        with suppress(*refusals):
            Draft(cast("Any", None), 0, "pay", record)
        book = Book()
        for path in ("approve.pay@0", "pay!"):
            book.steps[path] = StepRecord(0, path, blob)
        with suppress(*refusals):
            questions(cast("Store", OneRun(book)), "run")
    assert not mark.exists()


HOSTILE_KEYS = (
    "x'; DROP TABLE steps; --",
    'x" OR "1"="1',
    "../../../etc/passwd",
    "x\0y",
    "%s{0}{{x}}",
    "a\nb\rc",
    "*?[a-z]",
    "é\u202e\U0001f600",
    "x" * 10_000,
)


def test_keys_are_kept_to_the_letter(tmp_path: Path) -> None:
    async def kept() -> dict[str, bytes]:
        store = Store(tmp_path)
        journal = store.create(Manifest("run_0000000000000000", "w", "", "", "", {}, ""))
        for number, key in enumerate(HOSTILE_KEYS):
            journal.record(StepRecord(0, key, b"%d" % number))
        steps = await journal.steps(0, 0)
        await journal.close()
        return {path: step.value for (_, path), step in steps.items()}

    found = asyncio.run(kept())
    assert found == {key: b"%d" % number for number, key in enumerate(HOSTILE_KEYS)}


def test_a_question_that_cannot_be_read_is_named() -> None:
    book = Book()
    book.steps["approve.pay@0"] = StepRecord(3, "approve.pay@0", b'{"tool": 1}')
    with pytest.raises(JournalError, match="row 3: the question at 'approve.pay@0'"):
        questions(cast("Store", OneRun(book)), "run")
