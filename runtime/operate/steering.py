"""The run's own side of the door: it heeds requests, keeps its bounds, and tells how far it is."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

import anyio

from ..clock import now
from ..errors import InvalidInput
from ..journal.owner import this_process
from ..report.tally import Tally
from ..run.control import Control, Wish
from ..run.rows import RowRun
from ..scheduler.events import Asked, Change
from ..trace import Trace
from .door import Answer, Live, Request, Requests, State, Value, write_live
from .settings import Settings, changed_limits, check_change

POLL_S = 0.25  # between looks at what is asked
LIVE_S = 1.0  # between two that tell how far the run is, if nothing else happens
ANSWERS = 32  # that are kept for those who asked
log = logging.getLogger(__name__)


class Steerable(Protocol):
    """What runs the programs of a run: a Host, or many elsewhere."""

    @property
    def paused(self) -> bool:
        """Whether what would start is held back."""
        ...

    @property
    def spent(self) -> bool:
        """Whether the token budget is used up."""
        ...

    def pause(self) -> None:
        """Let what runs end, and hold back what would start, until `go_on`."""
        ...

    def go_on(self) -> None:
        """Start what `pause` has held back."""
        ...

    def change(self, change: Change) -> None:
        """Go on with other settings."""
        ...

    def run_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a child of the run."""
        ...


@dataclass(frozen=True, slots=True)
class Steered:
    """The parts of a live run that it is steered by."""

    run: str
    host: Steerable
    rows: RowRun
    control: Control
    tally: Tally
    trace: Trace
    pools: Mapping[str, str]  # for each model, the one whose workers serve it


class Steering:
    """Steers a live run by its settings, and by what is asked in `folder`, if it has one."""

    def __init__(self, parts: Steered, settings: Settings, folder: Path | None) -> None:
        self._parts = parts
        self._settings = settings
        self._folder = folder
        self._requests = Requests(folder) if folder is not None else None
        self._attempt = token_hex(8)
        self._owner = this_process()
        self._answers: tuple[Answer, ...] = ()
        self._began_s = now()
        self._tell_s = self._began_s
        if settings.token_budget is not None:
            parts.host.change(Change(token_budget=settings.token_budget))

    async def tend(self) -> None:
        """Look after the run until cancelled."""
        while True:
            self.look()
            await anyio.sleep(POLL_S)

    def look(self) -> None:
        """Keep the run within its bounds, do what was asked, tell how far it is."""
        self._keep_bounds()
        asked = self._requests.new() if self._requests is not None else []
        asked = [request for request in asked if request.to == self._attempt]
        for request in asked:
            self._answer(request)
        if asked or now() >= self._tell_s:
            self._tell_s = now() + LIVE_S
            self.tell(self._state)

    def tell(self, state: State) -> None:
        """Write down how far the run is. A disk that is full makes nobody stop for this."""
        if self._folder is None:
            return
        parts = self._parts
        live = Live(
            run=parts.run,
            attempt=self._attempt,
            owner=self._owner,
            state=state,
            settings=asdict(self._settings),
            snapshot=parts.tally.snapshot(),
            answers=self._answers,
            reason=parts.control.reason,
        )
        with suppress(OSError):
            write_live(self._folder, live)

    @property
    def _state(self) -> State:
        if self._parts.control.wish > Wish.RUN:
            return "stopping"
        return "paused" if self._parts.host.paused else "running"

    def _keep_bounds(self) -> None:
        control, limit_s = self._parts.control, self._settings.time_limit_s
        if self._parts.host.spent:
            control.drain("tokens")
        if limit_s is not None and now() - self._began_s >= limit_s:
            control.drain("time")

    # ---- requests -----------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        ok = True
        try:
            said = self._do(request)
        except InvalidInput as refusal:
            ok, said = False, str(refusal)
        answer = Answer(request.id, ok, said)
        self._answers = (*self._answers, answer)[-ANSWERS:]
        by = "".join(char if char.isprintable() else "?" for char in request.by)
        log.warning("%s asked to %s: %s", by, request.ask, said)
        record = Asked(
            by=by,
            what=request.ask,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            ok=ok,
            said=said,
            values=request.values,
        )
        self._parts.trace.write(now(), record)

    def _do(self, request: Request) -> str:
        if self._state == "stopping" and request.ask != "cancel":
            raise InvalidInput(f"run {self._parts.run} is stopping already")
        match request.ask:
            case "pause":
                return self._pause()
            case "continue":
                return self._go_on()
            case "cancel":
                return self._cancel(request.values.get("now") is True)
            case "set":
                return self._set(request.values)

    def _pause(self) -> str:
        if self._state == "paused":
            return "paused already"
        self._parts.host.pause()
        running = self._parts.tally.snapshot().calls_running
        return f"paused; {running:,} calls that run still end"

    def _go_on(self) -> str:
        if self._state != "paused":
            return "it was not paused"
        self._parts.host.go_on()
        return "it goes on"

    def _cancel(self, at_once: bool) -> str:
        if at_once:
            self._parts.control.abort("asked")
            return "stopping at once"
        stopping = self._state == "stopping"
        self._parts.control.drain("asked")
        return "stopping already" if stopping else f"finishing {self._parts.rows.live:,} rows"

    def _set(self, values: Mapping[str, Value]) -> str:
        check_change(values)
        before = asdict(self._settings)
        limits: dict[str, Any] | None = None
        if "limits" in values:
            pools = self._parts.pools
            limits = changed_limits(self._settings.limits, str(values["limits"]), pools)
            values = {**values, "limits": json.dumps(limits)}
        given = {name: values.get(name) for name in ("order", "retention", "token_budget")}
        self._parts.host.change(
            Change(max_programs=values.get("concurrency"), limits=limits, **given)  # type: ignore[arg-type]
        )
        self._settings = settings = replace(self._settings, **values)
        after = asdict(settings)
        rows = self._parts.rows
        bounds = replace(
            rows.limits, concurrency=settings.concurrency, max_errors=settings.max_errors
        )
        rows.bound(bounds)
        return ", ".join(f"{name} {_text(before[name])} -> {_text(after[name])}" for name in values)


def _text(value: Value | None) -> str:
    return "unbounded" if value is None else str(value)


@asynccontextmanager
async def steered(parts: Steered, settings: Settings, folder: Path | None) -> AsyncGenerator[None]:
    """Meanwhile the run is steered; without a `folder` by its settings alone."""
    steering = Steering(parts, settings, folder)
    task = parts.host.run_task(steering.tend())
    try:
        yield
    finally:
        task.cancel()
        steering.tell("ended")
