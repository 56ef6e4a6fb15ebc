"""A tool that runs programs: argument lists, never a shell string, under limits.

A model chooses the arguments, so the author says which programs there are, where they run and how
much they may use. The environment is empty but for what the author names: no secret leaks into a
child. Whatever the command has started is killed when it ends, is cancelled or takes too long, and
when the runtime itself dies.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from .arguments import arguments, optional
from .capped import Capped
from .ending import to_its_end
from .registry import Effect, InvalidArguments, InvalidTool, NoEffect, Tool, ToolError
from .secrets import SecretMissing, redact, resolve

GUARD = Path(__file__).with_name("shell_guard.py")
READ_BYTES = 65_536
GRACE_S = 5.0  # for a guard to end its command, and then for its output to end
MAX_ARGUMENTS = 1_000
MAX_ARGUMENT_BYTES = 100_000  # Linux allows 131,072 for one


_ARGUMENTS: dict[str, Any] = {
    "argv": Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=MAX_ARGUMENTS,
            description="the program and its arguments, one per item; no shell reads them",
        ),
    ],
    "stdin": optional(Annotated[str, Field(description="text for the program's standard input")]),
}


@dataclass(frozen=True, slots=True)
class _Shell:
    """Where and under which limits programs run."""

    programs: dict[str, str] | None  # name -> path; None: any
    folder: Path
    environment: dict[str, str]
    output_bytes: int
    memory_bytes: int
    file_bytes: int
    processes: int

    def resolved(self, tool: str) -> tuple[dict[str, str], list[str]]:
        """The environment with its secrets put in, and the secrets."""
        secrets: list[str] = []
        environment: dict[str, str] = {}
        try:
            for name, value in self.environment.items():
                environment[name], found = resolve(value)
                secrets += found
        except SecretMissing as error:
            raise NoEffect(f"environment: {error}") from None
        return environment, secrets

    def path_of(self, tool: str, program: str) -> str:
        if self.programs is not None:
            if program not in self.programs:
                known = ", ".join(sorted(self.programs))
                raise InvalidArguments(tool, f"there is no program {program!r}; there is {known}")
            return self.programs[program]
        found = shutil.which(program, path=self.environment.get("PATH"))
        if found is None:
            raise InvalidArguments(tool, f"there is no program {program!r}")
        return os.path.abspath(found)

    async def run(self, tool: str, argv: list[str], stdin: str) -> dict[str, Any]:
        """Run one command to its end; kills it on the way out, whatever the reason."""
        for argument in argv:
            if "\0" in argument or len(os.fsencode(argument)) > MAX_ARGUMENT_BYTES:
                raise InvalidArguments(tool, "an argument is too long, or contains a NUL")
        command = [self.path_of(tool, argv[0]), *argv[1:]]
        limits = {
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
            "processes": self.processes,
        }
        environment, secrets = self.resolved(tool)
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                transport, output = await loop.subprocess_exec(
                    lambda: _Output(self.output_bytes),
                    *(sys.executable, "-I", "-S", str(GUARD), str(theirs.fileno())),
                    *(json.dumps(limits), *command),
                    cwd=self.folder,
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            try:
                _feed(transport, stdin)
                await output.guard_gone.wait()
            finally:
                told = await to_its_end(_ended(transport, output, ours))
        if "exit" not in told:
            why = told.get("stopped", "its guard was killed")
            raise ToolError(tool, f"{argv[0]} was stopped: {why}")
        out, err = (redact(kept.text(), secrets) for kept in output.kept)
        return {"exit": told["exit"], "stdout": out, "stderr": err}


class _Output(asyncio.SubprocessProtocol):
    """What a guarded command writes, and how far it is from its end."""

    def __init__(self, limit: int) -> None:
        self.kept = Capped(limit), Capped(limit)  # standard output, standard error
        self.guard_gone = asyncio.Event()
        self.closed = asyncio.Event()  # the guard is gone, and nobody can write any more

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.kept[fd - 1].write(data)

    def process_exited(self) -> None:
        self.guard_gone.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


def shell_tool(
    programs: Sequence[str] | Literal["any"],
    folder: str | os.PathLike[str],
    *,
    name: str = "shell",
    description: str = "",
    effect: Effect = "once",
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    output_bytes: int = 32_768,
    memory_bytes: int = 2 << 30,
    file_bytes: int = 1 << 30,
    processes: int = 64,
    retries: int = 0,
    max_concurrency: int | None = 4,
    eta_s: float | None = None,
) -> Tool:
    """A tool that runs one of `programs` in `folder`; raises `InvalidTool`.

    `programs` are names found on PATH now, or paths; "any" leaves the choice to the model, which is
    right only where the whole machine is a sandbox. `environment` is all that a program sees of
    it, beside PATH, HOME (the folder) and LANG; values may refer to ours as "env:NAME". Limits: `timeout_s` for a command, `output_bytes`
    kept of each of its two outputs (the middle is left out, and marked), `memory_bytes` of address
    space of each process, `file_bytes` of each file that it writes, `processes` at once.
    The result is {"exit": status, "stdout": text, "stderr": text}; 128 + n: ended by signal n.
    """
    home = Path(folder).resolve()
    if not home.is_dir():
        raise InvalidTool(name, f"there is no folder {home}")
    for limit, value in {
        "output_bytes": output_bytes,
        "memory_bytes": memory_bytes,
        "file_bytes": file_bytes,
        "processes": processes,
    }.items():
        if value < 1:
            raise InvalidTool(name, f"{limit} is above 0, not {value}")
    shell = _Shell(
        programs=None if programs == "any" else _find(name, programs),
        folder=home,
        environment={
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            **(environment or {}),
        },
        output_bytes=output_bytes,
        memory_bytes=memory_bytes,
        file_bytes=file_bytes,
        processes=processes,
    )
    schema, validate = arguments(name, _ARGUMENTS)
    known = "any program" if shell.programs is None else ", ".join(sorted(shell.programs))

    async def run(argv: list[str], stdin: str = "") -> dict[str, Any]:
        return await shell.run(name, argv, stdin)

    return Tool(
        name=name,
        description=description or f"Run a program and read its output. There is {known}.",
        parameters=schema,
        function=run,
        effect=effect,
        timeout_s=timeout_s,
        retries=retries,
        max_concurrency=max_concurrency,
        eta_s=eta_s,
        source_hash=f"shell/1 {known}",
        validate=validate,
        sensitive=True,
    )


def _find(tool: str, programs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for program in programs:
        path = shutil.which(program)
        if path is None:
            raise InvalidTool(tool, f"there is no program {program!r} on this machine's PATH")
        found[program] = os.path.abspath(path)
    if not found:
        raise InvalidTool(tool, 'name the programs that it may run, or say programs="any"')
    return found


def _feed(transport: asyncio.SubprocessTransport, text: str) -> None:
    """Give the command its standard input; what it does not read is dropped with the pipe."""
    pipe = transport.get_pipe_transport(0)
    assert isinstance(pipe, asyncio.WriteTransport)
    pipe.write(text.encode("utf-8", "replace"))
    pipe.close()


async def _ended(
    transport: asyncio.SubprocessTransport, output: _Output, control: socket.socket
) -> dict[str, Any]:
    """End the command, in a bounded time whatever it did to its guard; what the guard has told."""
    with suppress(ProcessLookupError, OSError):
        control.shutdown(socket.SHUT_WR)  # the guard kills what still runs
        transport.send_signal(signal.SIGCONT)  # though it was stopped
    await _within(output.guard_gone)
    told = _told(control)
    if not told.keys() & {"exit", "stopped"}:
        with suppress(ProcessLookupError):
            transport.kill()
        with suppress(ProcessLookupError, PermissionError):
            if "child" in told:  # it leads a group of its own
                os.killpg(told["child"], signal.SIGKILL)
    await _within(output.closed)
    transport.close()
    return told


async def _within(event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), GRACE_S)


def _told(control: socket.socket) -> dict[str, Any]:
    """What the guard has told of its command so far."""
    control.setblocking(False)
    with suppress(OSError):
        lines = control.recv(READ_BYTES).splitlines()
        return {key: value for line in lines for key, value in json.loads(line).items()}
    return {}
