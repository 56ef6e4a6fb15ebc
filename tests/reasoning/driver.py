"""A driver of strategies over a model of the test's own: it proves the door, and shows how a real
one is wired. One task per request, a scope to cancel it by, one stream of events."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from tenter.runtime.reasoning.nouns import (
    Ask,
    Cancel,
    Event,
    Failed,
    Finish,
    Outcome,
    Probe,
    Score,
    Think,
)
from tenter.runtime.reasoning.strategy import Step

Model = Callable[["Session", Think | Probe | Score], Awaitable[Event]]


@dataclass
class Session:
    """One sample's context: the text so far. A probe works on a copy of it."""

    text: str = ""
    tokens: int = 0


@dataclass
class Driver:
    """Performs the asks of one strategy; `running` must be empty when it has finished."""

    model: Model
    sessions: dict[int, Session] = field(default_factory=dict)
    running: dict[int, anyio.CancelScope] = field(default_factory=dict)
    log: list[Ask] = field(default_factory=list)

    async def run(self, step: Step) -> Outcome:
        send, receive = anyio.create_memory_object_stream[Event](1_000)
        async with send, receive, anyio.create_task_group() as tasks:
            asks = step.begin()
            while True:
                for ask in asks:
                    self.log.append(ask)
                    match ask:
                        case Finish(outcome):
                            await self.all_stopped()
                            return outcome
                        case Cancel(request) if request in self.running:
                            self.running[request].cancel()
                        case Cancel():
                            pass  # it has ended; its event waits behind this one
                        case _:
                            scope = anyio.CancelScope()
                            self.running[ask.request] = scope
                            tasks.start_soon(self.perform, ask, scope, send.clone())
                asks = step.observe(await receive.receive())

    async def perform(self, ask, scope, send) -> None:
        with scope:
            async with send:
                try:
                    event = await self.model(self.session(ask), ask)
                except RuntimeError as error:
                    event = Failed(ask.request, str(error))
                await send.send(event)
        del self.running[ask.request]

    def session(self, ask: Think | Probe | Score) -> Session:
        if isinstance(ask, Think) and ask.sample not in self.sessions:
            origin = Session() if ask.parent is None else self.sessions[ask.parent]
            self.sessions[ask.sample] = Session(origin.text, origin.tokens)
        return self.sessions[ask.sample]

    async def all_stopped(self) -> None:
        while self.running:
            await anyio.lowlevel.checkpoint()
