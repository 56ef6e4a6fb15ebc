"""A Ray cluster as far as a run needs it: processes placed, asked, and ended. All of Ray is here."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from ..errors import BackendUnavailable, InvalidInput, TenterError

MOST_SHARDS = 8  # that nobody has asked for
SILENT_S = 120.0  # a process that answers nothing for so long is given up
REACH_S = 10.0  # for the head of a cluster to be there
ENDING_S = 10.0  # for a process to put its things in order
OWN_STORE_BYTES = 100 * 2**20  # of a cluster of our own: hardly anything goes through it
# Of a cluster of our own: it listens on the loopback alone (Ray has no other switch for that), and
# tells nobody of itself.
OWN = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
_DIED = "The actor is dead because "  # what follows tells why


class ProcessLost(TenterError):
    """A process of the cluster has died, or gives no sign of life."""


class Process:
    """A process of the cluster that runs an object of `kind`, whose methods take and give bytes."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def ask(
        self, method: str, message: bytes | None = None, limit_s: float = SILENT_S
    ) -> bytes:
        """What a method answers. Raises ProcessLost where nobody does any more."""
        from ray.exceptions import RayError

        given = () if message is None else (message,)
        try:
            # No wait_for: before Python 3.12 it loses a cancellation that comes with the answer.
            async with asyncio.timeout(limit_s):
                answer: bytes = await getattr(self._handle, method).remote(*given)
            return answer
        except TimeoutError:
            raise ProcessLost(f"it has not answered for {limit_s:.0f} s") from None
        except RayError as error:
            raise ProcessLost(_reason(error)) from None

    async def end(self) -> None:
        """Have it put its things in order, then end it."""
        with suppress(ProcessLost):
            await self.ask("close", limit_s=ENDING_S)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        with suppress(Exception):  # it, or the cluster, has gone already
            _ray().kill(self._handle, no_restart=True)


class Cluster:
    """A cluster that this process is connected to."""

    def default_shards(self, needs: Mapping[str, float]) -> int:
        """One for each CPU, as many as there is room for, but not too many."""
        return max(1, min(MOST_SHARDS, self.room(needs)))

    def room(self, needs: Mapping[str, float]) -> int:
        """How many processes with such needs the whole cluster can hold."""
        there = self.resources()
        rooms = [there.get(name, 0.0) / amount for name, amount in needs.items() if amount > 0]
        return int(min(rooms, default=MOST_SHARDS))

    def resources(self) -> dict[str, float]:
        """What all machines of the cluster have together, by Ray's names."""
        found: dict[str, float] = _ray().cluster_resources()
        return found

    def place(self, kind: type, needs: Mapping[str, float]) -> Process:
        """A process for an object of `kind`, on the machine with the most room."""
        made = _ray().remote(kind)
        options = placement(needs)
        made = made.options(
            scheduling_strategy="SPREAD", max_restarts=0, max_concurrency=16, **options
        )
        return Process(made.remote())


def placement(needs: Mapping[str, float]) -> dict[str, Any]:
    """What a process needs of a cluster, as Ray's options."""
    others = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    options: dict[str, Any] = {"num_cpus": needs.get("CPU", 1.0), "resources": others}
    if needs.get("GPU"):
        options["num_gpus"] = needs["GPU"]
    return options


@asynccontextmanager
async def connected(address: str | None, cpus: int | None) -> AsyncGenerator[Cluster]:
    """The cluster at `address`, or at RAY_ADDRESS; without either one of our own, with `cpus`.

    A program that is connected already stays so. Raises InvalidInput where Ray is not installed,
    and BackendUnavailable where no cluster answers.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        for name, value in OWN.items():
            os.environ.setdefault(name, value)  # before Ray is imported
    elif address.startswith("ray://"):
        raise InvalidInput(
            f"--ray-address {address}: Ray Client cannot run this; start on a machine of the "
            "cluster, with --ray-address auto"
        )
    ray = _ray()
    if ray.is_initialized():
        yield Cluster()
        return
    if address is not None:
        await _reach(address)
    # In a thread: it takes seconds, and on the main thread Ray would take the signals.
    await asyncio.to_thread(_connect, address, cpus)
    _take_signals_back()
    try:
        yield Cluster()
    finally:
        await asyncio.to_thread(ray.shutdown)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InvalidInput("--engine ray needs Ray: pip install 'tenter[ray]'") from None
    return ray


async def _reach(address: str) -> None:
    """Knock at HOST:PORT, since Ray itself tries for many minutes. Raises BackendUnavailable."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # a word such as "auto"
    try:
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError) as error:
        raise BackendUnavailable(
            f"no Ray cluster answers at {address}: {error or 'nobody is there'}; start one with "
            "`ray start --head`, or name another --ray-address"
        ) from None
    writer.close()


@contextmanager
def _quiet() -> Generator[None]:
    """Meanwhile Ray does not comment on its own settings."""
    log = logging.getLogger("ray")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _connect(address: str | None, cpus: int | None) -> None:
    given: dict[str, Any] = {"address": address}
    if address is None:
        given = {
            "address": "local",
            "num_cpus": cpus,
            "object_store_memory": OWN_STORE_BYTES,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        with _quiet():
            _ray().init(**given, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = "on this machine" if address is None else f"at {address}"
        said = " ".join(str(error).split())
        raise BackendUnavailable(
            f"no Ray cluster answers {where}: {said}; start one with `ray start --head`"
        ) from None


def _take_signals_back() -> None:
    """Undo what Ray does to SIGTERM: it would abort the process three seconds after one."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None or threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, handler)
    signal.siginterrupt(signal.SIGTERM, False)


def _reason(error: Exception) -> str:
    """What Ray says of a process's end, without its numbers and its advice."""
    text = " ".join(str(error).split())
    _, found, why = text.partition(_DIED)
    return (why if found else text)[:300]
