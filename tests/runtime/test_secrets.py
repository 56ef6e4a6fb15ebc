"""Secrets stay where they are: 20 canaries, and everything that a run writes or says (X5)."""

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tenter.runtime.cli import main
from tenter.tools.secrets import known, redact_data

CANARIES = [f"canary-{n:02}-x{n * 7919:08x}" for n in range(20)]

WORKFLOW = """
import logging, os
from tenter.runtime import agent, session, tool, workflow
from tenter.tools import http_tool, mcp_tools, shell_tool, sql_tool

URL = {url!r}
log = logging.getLogger("tenter.user")

def secret(n):
    return os.environ[f"CANARY_{{n}}_KEY"]

def ask(name, path, n, **more):
    headers = {{"Authorization": f"Bearer env:CANARY_{{n}}_KEY", "X-Key": f"env:CANARY_{{n + 1}}_KEY"}}
    return tool(http_tool(name, URL + path, {{"q": str}}, headers=headers, **more))

echo = ask("echo", "/echo", 0)
broken = ask("broken", "/broken", 2)
refused = ask("refused", "/refused", 4, retries=2)
closed = tool(http_tool("closed", "http://127.0.0.1:9/{{q}}", {{"q": str}},
    headers={{"X-Key": "env:CANARY_6_KEY"}}))
away = ask("away", "/away", 7)
base = tool(sql_tool("base", "postgresql://me:env:CANARY_9_KEY@127.0.0.1:9/x"))
run = tool(shell_tool(["sh"], ".", environment={{"MINE": "env:CANARY_10_KEY"}}))

@tool(effect="once")
async def raises(q: str) -> str:
    raise ValueError(f"cannot log in with {{q}} or {{secret(11)}}")

@tool(effect="pure")
async def returns(q: str = "x") -> dict:
    return {{"q": q, "key": secret(12), "list": [f"a {{secret(13)}} b"], secret(14): 1}}

@tool(effect="pure")
async def typed(n: int) -> int:
    return n

@tool(effect="pure", retries=1)
def nested(q: str) -> str:
    try:
        raise KeyError(secret(15))
    except KeyError as error:
        raise RuntimeError(f"while using {{secret(16)}}") from error

helper = agent("{{{{ q }}}}", tools=[returns, raises], allow=["raises"], max_turns=3)
STEPS = {{
    "echo": lambda: echo(q="x"), "broken": lambda: broken(q=secret(17)),
    "refused": lambda: refused(q="x"), "closed": lambda: closed(q=secret(18)),
    "away": lambda: away(q="x"), "base": lambda: base(sql="SELECT 1"),
    "run": lambda: run(argv=["sh", "-c", "echo $MINE; echo $MINE >&2"]),
    "raises": lambda: raises(q=secret(19)), "returns": lambda: returns(q=secret(19)),
    "typed": lambda: typed(n=secret(19)), "nested": lambda: nested(q="x"),
    "helper": lambda: helper(q="go"), "author": lambda: author(),
}}

async def author():
    raise LookupError(f"no account for {{secret(19)}}")

@workflow
async def leak(step: str) -> object:
    return await STEPS[step]()
"""
STEPS = [
    "echo",
    "broken",
    "refused",
    "closed",
    "away",
    "base",
    "run",
    "raises",
    "returns",
    "typed",
    "nested",
    "helper",
    "author",
]


class Server(BaseHTTPRequestHandler):
    """Tells its caller all that it was told. Some answers are no good."""

    def do_GET(self) -> None:
        said = json.dumps({"headers": dict(self.headers), "path": self.path}).encode()
        if self.path == "/refused/models":
            said = b'{"data": [{"id": "m"}]}'
        first = self.path.partition("?")[0].removesuffix("/chat/completions")
        code = {"/refused": 401, "/away": 302}.get(first, 200)
        self.send_response(code)
        if code == 302:
            self.send_header("Location", f"/echo?key={self.headers['X-Key']}")
        length = len(said) + (50 if self.path.startswith("/broken") else 0)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(said)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def project(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENTER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TENTER_DEBUG", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for n, canary in enumerate(CANARIES):
        monkeypatch.setenv(f"CANARY_{n}_KEY", canary)
    (tmp_path / "leak.py").write_text(WORKFLOW.format(url=url))
    (tmp_path / "table.csv").write_text("step\n" + "\n".join(STEPS) + "\n")
    return tmp_path


def test_no_canary_is_written_or_said(
    project: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    call = '<tool_call>{"name": "returns"}</tool_call>'
    given = ["leak.py:leak", "table.csv", "--out", "out.jsonl", "--max-errors", "20", "--show", "9"]
    code = main(["map", *given, "--model", f"default=fake:reply={call}"])
    said = capfd.readouterr()
    for command in (["show", "last"], ["ls"], ["explain", "leak.py:leak"], ["resume", "last"]):
        main(command)
    after = capfd.readouterr()
    for step in STEPS:
        main(["run", "leak.py:leak", f"step={step}", "--model", f"default=fake:reply={call}"])
    monkeypatch.setenv("TENTER_DEBUG", "1")  # raises what was told above
    for step in STEPS:
        try:
            main(["run", "leak.py:leak", f"step={step}", "--model", f"default=fake:reply={call}"])
        except (Exception, SystemExit):  # noqa: BLE001
            traceback.print_exc()
    ran = capfd.readouterr()

    texts = {
        "stdout": said.out + after.out + ran.out,
        "stderr": said.err + after.err + ran.err,
        "log": caplog.text,
        **{
            str(path.relative_to(project)): path.read_bytes().decode("utf-8", "replace")
            for path in project.rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")
        },
    }
    assert code == 3, said.err
    assert any("journal" in name for name in texts), sorted(texts)
    assert any("trace" in name for name in texts), sorted(texts)
    assert "cannot log in with [secret]" in texts["out.jsonl.errors.jsonl"]
    found = {
        (name, canary)
        for name, text in texts.items()
        for canary in CANARIES
        if canary in text or canary.encode().hex() in text
    }
    assert found == set()


@pytest.mark.parametrize("path", ["/refused", "/echo", "/broken"])
def test_a_server_that_repeats_its_key_is_not_quoted(
    project: Path, url: str, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "say.yaml").write_text(
        "version: 1\nname: say\nsteps: {a: {llm: hello}}\noutput: '{{ a }}'\n"
    )
    model = f"default=openai:url={url}{path},model=m,api_key=CANARY_0_KEY"
    assert main(["run", "say.yaml", "--model", model]) != 0
    said = capfd.readouterr()
    assert url in said.err or "401" in said.err, said.err
    assert "canary" not in said.out + said.err


def test_secrets_are_known_by_reference_and_by_name() -> None:
    variables = {
        "API_KEY": "abcdefgh",
        "db_password": "hunter22",
        "KEYBOARD": "qwertyuiop",
        "TOKENIZERS_PARALLELISM": "falsefalse",
        "SHORT_KEY": "abc",
        "SSH_KEY": __file__,
    }
    assert {"abcdefgh", "hunter22"} <= known(variables)
    assert not {"qwertyuiop", "falsefalse", "abc", __file__} & known(variables)


@pytest.mark.parametrize("secret", ['say "hi" \\ now', "schlüssel", "tab\tand\nline"])
@pytest.mark.parametrize("ascii", [True, False])
def test_however_json_spells_it(secret: str, ascii: bool) -> None:
    data = json.dumps({"a": f"x {secret} y"}, ensure_ascii=ascii).encode()
    assert redact_data(json.loads(data), data, [secret]) == {"a": "x [secret] y"}


def test_numbers_are_left_alone() -> None:
    data = b'{"id": 12345678, "12345678": ["x12345678", 1.5, null, true]}'
    found = {"id": 12345678, "[secret]": ["x[secret]", 1.5, None, True]}
    assert redact_data(json.loads(data), data, ["12345678"]) == found


def test_nothing_of_the_environment_is_taken_for_a_secret_without_cause() -> None:
    assert os.environ.get("PATH", "") not in known()
