"""A cluster in this process: shards whose processes are objects, and die when they are told to."""

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar, copy_context
from typing import Any

from tenter.runtime.ray.cluster import SILENT_S, Cluster, ProcessLost
from tenter.runtime.ray.messages import Tell, decode_tell
from tenter.runtime.ray.worker import Worker

Watch = Callable[["LocalProcess", str], None]
running: ContextVar["LocalProcess"] = ContextVar("running")  # the process whose code this is


class LocalProcess:
    """Answers like a process of the cluster; `watch` hears of each question before it is asked."""

    def __init__(self, number: int, watch: Watch) -> None:
        self.number = number
        self.worker = Worker()
        self.asked: list[str] = []
        self.told: list[Tell] = []
        self.buried: asyncio.Task[bytes] | None = None
        self._watch = watch
        self._dead = asyncio.Event()

    async def ask(
        self, method: str, message: bytes | None = None, limit_s: float = SILENT_S
    ) -> bytes:
        self.asked.append(method)
        self._watch(self, method)
        if method == "tell" and message is not None:
            self.told.append(decode_tell(message))
        given = () if message is None else (message,)
        context = copy_context()
        context.run(running.set, self)
        answer = asyncio.create_task(getattr(self.worker, method)(*given), context=context)
        died = asyncio.create_task(self._dead.wait())
        await asyncio.wait({answer, died}, return_when=asyncio.FIRST_COMPLETED)
        if self._dead.is_set():
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            raise ProcessLost("it was killed")
        died.cancel()
        return answer.result()

    async def end(self) -> None:
        if not self._dead.is_set():
            await self.ask("close")

    def kill(self) -> None:
        """What it did not tell is lost, and whatever it does from here on is heard by nobody."""
        if not self._dead.is_set():
            self._dead.set()
            self.buried = asyncio.create_task(self.worker.close())


class InsideCluster(Cluster):
    """Holds up to `room` processes."""

    def __init__(self, room: int = 8, watch: Watch = lambda process, method: None) -> None:
        self.placed: list[LocalProcess] = []
        self._room = room
        self._watch = watch

    def resources(self) -> dict[str, float]:
        return {"CPU": float(self._room)}

    def place(self, kind: type, needs: Mapping[str, float]) -> Any:
        self.placed.append(LocalProcess(len(self.placed), self._watch))
        return self.placed[-1]
