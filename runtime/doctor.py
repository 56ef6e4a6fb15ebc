"""What this machine can do, checked one thing at a time, each with what would change it."""

import importlib.util
import json as jsonlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import anyio

from .backends.registry import open_replicas
from .calls import CallId, Message, Request
from .errors import CallFailed, TenterError, TryAgain
from .journal.store import Store
from .workflow import ModelSpec

if TYPE_CHECKING:
    from .backends.sglang import Finding as ServerFinding

EXTRAS = {
    "embedded": ("torch", "tokenizers", "safetensors", "llguidance", "numpy"),
    "tables": ("pyarrow",),
    "sglang": ("aiohttp", "tokenizers", "huggingface_hub", "zmq"),
    "http": ("aiohttp",),
    "sql": ("sqlglot", "psycopg", "duckdb"),
    "mcp": ("mcp",),
    "redis": ("redis",),
    "ray": ("ray", "pandas", "pyarrow"),
}
DISTRIBUTIONS = {"zmq": "pyzmq", "huggingface_hub": "huggingface-hub"}  # other than the module
LOW_DISK_BYTES = 1 << 30
KEEPS = {
    "no": "which keeps little on its disk: its death may take runs with it",
    "everysec": "which keeps all on its disk but the last second or two",
    "waitaof": "which keeps all on its disk but the last second or two",
    "always": "which keeps all on its disk",
}
BETTER_KEPT = "appendonly yes and appendfsync always in its settings"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. `cure` says what to do where it is not `ok`.

    `better`: what would change what is well as it is.
    """

    name: str
    ok: bool
    detail: str
    cure: str = ""
    better: str = ""


def report(home: str | None, json: bool) -> int:
    """`tenter doctor`: one line per finding; 1 if something is amiss."""
    fine = True
    for finding in findings(home):
        fine &= finding.ok
        sys.stdout.write(_json(finding) if json else _line(finding))
        sys.stdout.flush()
    return 0 if fine else 1


def report_servers(urls: tuple[str, ...], api_key: str | None, json: bool) -> int:
    """`tenter doctor --backend URL`: what each server can do, and the flags that would change it.

    Returns 5 if one of them does not answer. `api_key` names an environment variable.
    """
    code = 0
    for url in urls:
        try:
            found = anyio.run(_ask_server, url, api_key)
        except TenterError as error:
            found = [Finding("server", False, str(error))]
            code = error.exit_code
        for finding in found:
            sys.stdout.write(_json(finding) if json else _line(finding))
    return code


async def _ask_server(url: str, api_key: str | None) -> list[Finding]:
    """What the server says of itself; one that is no SGLang is asked for its models."""
    from .backends.http_text import key_from
    from .backends.openai import OpenAIBackend
    from .backends.sglang import ask_server, findings

    try:
        info = await ask_server(url, key_from(api_key))
    except (CallFailed, TryAgain) as stranger:
        async with OpenAIBackend(url, api_key=api_key) as backend:
            able = backend.capabilities
            return [
                Finding("server", True, f"{url}: OpenAI-compatible, no SGLang ({stranger})"),
                Finding("model", True, f"{able.model}, up to {able.context_tokens} tokens a call"),
                Finding("pins", True, "none: what the server caches it keeps as it likes"),
                Finding("priority", True, "none: calls are ordered before they are sent"),
            ]
    server = Finding("server", True, f"{url}: {info.model_path}")
    return [server, *(_found(each) for each in findings(info))]


def _found(finding: "ServerFinding") -> Finding:
    """Nothing is amiss with a server that could do more; the flag is told all the same."""
    return Finding(finding.topic, True, f"{finding.does}: {finding.means}", better=finding.flag)


def _json(finding: Finding) -> str:
    return jsonlib.dumps({"type": "finding", **asdict(finding)}) + "\n"


def _line(finding: Finding) -> str:
    text = f"{'ok' if finding.ok else 'no':<4}{finding.name:<12}{finding.detail}\n"
    hint = finding.better if finding.ok else finding.cure
    return text + (f"{'':16}{'better with: ' if finding.ok else ''}{hint}\n" if hint else "")


def findings(home: str | None) -> Iterator[Finding]:
    """Each check as it is done; the last ones take a second or two."""
    yield Finding("python", True, f"{sys.version.split()[0]} at {sys.executable}")
    for extra in EXTRAS:
        yield _extra(extra)
    yield from _redis(home)
    yield _home(home)
    yield _disk(home)
    if _missing(EXTRAS["embedded"]):
        return
    yield _threads()
    yield _device()
    yield _tiny_model()


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _extra(extra: str) -> Finding:
    missing = _missing(EXTRAS[extra])
    if missing:
        cure = f"pip install 'tenter[{extra}]' (missing: {', '.join(missing)})"
        return Finding(extra, False, "not installed", cure)
    packages = [DISTRIBUTIONS.get(name, name) for name in EXTRAS[extra]]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return Finding(extra, True, versions)


def _home(home: str | None) -> Finding:
    folder = Store(home).home
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Finding("home", True, f"{folder.resolve()} can be written")
    except OSError as error:
        cure = "choose another with --home or TENTER_HOME"
        return Finding("home", False, f"{folder}: {error.strerror or error}", cure)


def _redis(home: str | None) -> Iterator[Finding]:
    """The Redis that keeps the runs, if one does."""
    from .journal.redis_runs import RedisRuns

    runs = Store(home).runs
    if not isinstance(runs, RedisRuns):
        return
    try:
        server = runs.server()
    except TenterError as error:
        yield Finding("runs", False, str(error), "see docs/journal.md")
        return
    version = ".".join(str(part) for part in server.version)
    detail = f"{runs.shown}: Redis {version}, {KEEPS[server.keeps]}"
    yield Finding("runs", True, detail, better="" if server.keeps == "always" else BETTER_KEPT)


def _disk(home: str | None) -> Finding:
    folder = Store(home).home
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    detail = f"{free_bytes / 1e9:,.1f} GB free"
    cure = "journals need room; remove old runs or choose another home"
    return Finding("disk", free_bytes > LOW_DISK_BYTES, detail, cure)


def _threads() -> Finding:
    import torch

    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    detail = f"{threads} for torch, {cores} cores for this process"
    return Finding("threads", threads <= cores, detail, f"set OMP_NUM_THREADS={cores}")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", True, torch.cuda.get_device_name(0))
    return Finding("device", True, "CPU (no GPU is visible to torch)")


def _tiny_model() -> Finding:
    try:
        answer = anyio.run(_ask_tiny)
    except (TenterError, OSError, RuntimeError, ValueError) as error:
        cure = "install again: pip install --force-reinstall --no-deps tenter"
        return Finding("tiny model", False, f"{type(error).__name__}: {error}", cure)
    return Finding("tiny model", bool(answer), f"asked 'Compute 12 + 30.', answered {answer!r}")


async def _ask_tiny() -> str:
    async with open_replicas(ModelSpec()) as (backend,):
        prompt = backend.tokenizer.chat([Message("user", "Compute 12 + 30.")])
        parts = [
            chunk async for chunk in backend.generate(Request(CallId("doctor"), tuple(prompt)))
        ]
    return "".join(part.text for part in parts).split("</think>")[-1].strip()
