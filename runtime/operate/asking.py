"""The other side of the door: find a live run, ask something of it, wait for what it says."""

import os
import socket
from collections.abc import Mapping
from getpass import getuser
from pathlib import Path
from secrets import token_hex

import anyio

from ..clock import now
from ..errors import InvalidInput, TenterError
from ..journal.owner import is_dead
from ..journal.store import Store
from .door import Answer, Ask, Live, Request, Value, ask, read_live

LOOK_S = 0.1
PATIENCE_S = 60.0  # for an answer; a run looks several times a second


def live_now(folder: Path) -> Live | None:
    """The live run in `folder`; None if its process has ended, or never told of itself."""
    live = read_live(folder)
    return None if live is None or live.state == "ended" or is_dead(live.owner) else live


def find_live(store: Store, run: str) -> Live:
    """The live run called `run`, in full. Raises InvalidInput that says what it is instead."""
    live = live_now(store.folder(run))
    if live is not None:
        return live
    info = store.info(run)
    if info.status == "done":
        failed = f"; `tenter retry {run}` runs its {info.rows_failed:,} failed rows again"
        raise InvalidInput(f"run {run} is done already{failed if info.rows_failed else ''}")
    if info.status == "running" and info.manifest.once:
        raise InvalidInput(f"run {run} is for a single input; a signal to its process stops it")
    if info.status == "running":
        raise InvalidInput(
            f"run {run} is just starting or ending, or runs on another machine; try again in a "
            "moment, or there"
        )
    again = "what began it, once more" if info.manifest.once else f"tenter resume {run}"
    raise InvalidInput(f"run {run} is not running; to go on: {again}")


async def request(
    store: Store, run: str, what: Ask, values: Mapping[str, Value], patience_s: float = PATIENCE_S
) -> Answer:
    """Ask a live run, and wait for its answer.

    Raises InvalidInput for a run that is not live, TenterError for one that gives no answer.
    """
    folder = store.folder(run)
    live = find_live(store, run)
    asked = Request(token_hex(8), live.attempt, _who(), what, dict(values))
    try:
        ask(folder, asked)
    except OSError as error:
        raise TenterError(f"run folder {folder}: {error.strerror or error}") from error
    until_s = now() + patience_s
    while now() < until_s:
        await anyio.sleep(LOOK_S)
        later = read_live(folder)
        found = later.answers if later is not None and later.attempt == live.attempt else ()
        for answer in found:
            if answer.id == asked.id:
                return answer
        if live_now(folder) is None:
            raise TenterError(f"run {run} has ended before it heard of this")
    raise TenterError(
        f"run {run} ({live.owner}) has not answered for {patience_s:.0f} s: it is frozen or very "
        "busy. It still does what was asked when it comes to it; to end it: kill the process"
    )


def _who() -> str:
    try:
        user = getuser()
    except (KeyError, OSError):  # an account without a name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"[:200]
