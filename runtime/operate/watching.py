"""A run in another process, watched: its tally as the run tells it, until it ends."""

from collections.abc import Callable
from pathlib import Path

import anyio

from ..journal.base import RunInfo
from ..journal.owner import is_dead
from ..journal.store import Store
from ..report.tally import TallySnapshot
from .asking import live_now
from .door import Live, State, read_live

LOOK_S = 0.25


class Watched:
    """What is shown of a live run: its last snapshot."""

    def __init__(self, live: Live) -> None:
        self.live = live

    def snapshot(self) -> TallySnapshot:
        return self.live.snapshot

    async def follow(self, folder: Path, changed: Callable[[State], None]) -> None:
        """Keep up to date until the run ends; `changed` hears of each new state."""
        while True:
            live = live_now(folder)
            if live is None or live.attempt != self.live.attempt:
                return
            if live.state != self.live.state:
                changed(live.state)
            self.live = live
            await anyio.sleep(LOOK_S)


async def settled(store: Store, run: str) -> RunInfo:
    """How a run has ended, once its process has written that down."""
    while True:
        info = store.info(run)
        live = read_live(store.folder(run))
        if info.status != "running" or live is None or is_dead(live.owner):
            return info
        await anyio.sleep(LOOK_S)
