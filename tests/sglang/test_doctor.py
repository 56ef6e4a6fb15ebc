"""`tenter doctor --backend URL` on real servers, one of another kind, and none."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tenter.runtime.backends.registry import open_replicas
from tenter.runtime.errors import InvalidConfig
from tenter.runtime.models import tiny_path
from tenter.runtime.workflow import ModelSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))  # for the fake server

from bad_server import BadServer, status

if TYPE_CHECKING:
    from bad_server import Fault
    from servers import Server

NOBODY = 5  # the exit code where no server answers


async def doctor(*arguments: str, key: str = "") -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "tenter.runtime", "doctor", *arguments]
    return await anyio.run_process(command, check=False, env={**os.environ, "A_KEY": key})


async def found(url: str, *more: str, key: str = "") -> dict[str, dict[str, Any]]:
    """The findings by name; all of them are well."""
    done = await doctor("--backend", url, "--json", *more, key=key)
    assert done.returncode == 0, done.stderr.decode()
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(finding["ok"] and finding["type"] == "finding" for finding in findings)
    return {finding["name"]: finding for finding in findings}


@pytest.mark.sglang
async def test_a_stock_server_is_told_what_would_make_it_better(sglang_stock: "Server") -> None:
    told = await found(sglang_stock.url)
    assert str(tiny_path().name) in told["server"]["detail"]
    assert "4096 KV tokens" in told["capacity"]["detail"]
    assert "evicts what was used least recently" in told["pins"]["detail"]
    assert "--radix-cache-backend tenter" in told["pins"]["better"]
    assert "--enable-session-radix-cache" in told["pins"]["better"]
    assert "--enable-priority-scheduling" in told["priority"]["better"]
    assert told["metrics"]["better"] == "--enable-metrics"


@pytest.mark.sglang
async def test_a_server_with_the_plugin_has_nothing_to_gain_in_pins(
    sglang_plugin: "Server",
) -> None:
    told = await found(sglang_plugin.url)
    assert "plugin" in told["pins"]["detail"]
    assert told["pins"]["better"] == told["metrics"]["better"] == ""


@pytest.mark.sglang
async def test_a_server_with_sessions_orders_by_priority(sglang_sessions: "Server") -> None:
    told = await found(sglang_sessions.url)
    assert "named sessions" in told["pins"]["detail"]
    assert "--radix-cache-backend tenter" in told["pins"]["better"]
    assert "orders its queue by priority" in told["priority"]["detail"]
    assert told["priority"]["better"] == ""


@pytest.mark.sglang
async def test_as_text_each_finding_has_its_line_and_its_flag_below(
    sglang_stock: "Server",
) -> None:
    done = await doctor("--backend", sglang_stock.url)
    lines = done.stdout.decode().splitlines()
    (place,) = [place for place, line in enumerate(lines) if line.startswith("ok  metrics")]
    assert lines[place + 1].strip() == "better with: --enable-metrics"
    assert not done.stderr


def only_v1(path: str, body: Any) -> "Fault | None":
    return None if path.startswith("/v1/") and path != "/v1/loads" else status(404)


@pytest.fixture
async def other() -> AsyncIterator[BadServer]:
    """A server that speaks OpenAI's dialect alone."""
    async with BadServer("some-model") as server:
        server.choose = only_v1
        yield server


async def test_a_server_of_another_kind_is_told_apart(other: BadServer) -> None:
    told = await found(other.url)
    assert "OpenAI-compatible" in told["server"]["detail"]
    assert "some-model, up to 8192 tokens" in told["model"]["detail"]
    assert told["pins"]["detail"].startswith("none")
    assert told["priority"]["detail"].startswith("none")


@pytest.mark.slow
async def test_the_key_is_read_from_the_environment_and_never_shown(other: BadServer) -> None:
    other.api_key = "canary-1234"
    told = await found(other.url, "--api-key", "A_KEY", key="canary-1234")
    assert "OpenAI-compatible" in told["server"]["detail"]

    refused = await doctor("--backend", other.url, "--api-key", "A_KEY", key="canary-9876")
    said = (refused.stdout + refused.stderr).decode()
    assert refused.returncode != 0
    assert "canary" not in said
    assert "A_KEY" in said or "api_key" in said


@pytest.mark.slow
async def test_where_nobody_answers_it_says_so_and_asks_the_others(other: BadServer) -> None:
    with socket.socket() as bound:  # bound, not listening: nobody answers there
        bound.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{bound.getsockname()[1]}"
        done = await doctor("--backend", nobody, "--backend", other.url)
        told = await doctor("--backend", nobody, "--json")
    assert done.returncode == told.returncode == NOBODY
    said = done.stdout.decode()
    assert said.startswith("no  server") and nobody in said
    assert "OpenAI-compatible" in said
    assert json.loads(told.stdout)["ok"] is False


@pytest.mark.parametrize("backend", ["sglang", "openai"])
async def test_a_model_s_key_is_named_and_never_written_down(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "canary-1234")
    async with BadServer(str(tiny_path())) as server:
        server.server_info = {"tokenizer_path": str(tiny_path())}
        server.api_key = "canary-1234"
        options = {"url": server.url, "api_key": "A_KEY"}
        async with open_replicas(ModelSpec(backend=backend, options=options)) as (opened,):
            assert opened.failure is None
        with pytest.raises(InvalidConfig, match="set api_key to a key") as refused:
            monkeypatch.setenv("A_KEY", "canary-9876")
            async with open_replicas(ModelSpec(backend=backend, options=options)):
                pass
    assert "canary" not in str(refused.value)
