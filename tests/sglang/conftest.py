"""Real SGLang servers, started when the first test asks for one and shared by all that follow."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this file

import servers
from environment import build

if TYPE_CHECKING:
    from servers import Server

TURN = pytest.StashKey[Path]()  # the file of the test that is being set up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without SGLang its tests are skipped; `make test` sets TENTER_REQUIRE_SGLANG=1 against it."""
    needing = [item for item in items if item.get_closest_marker("sglang")]
    if not needing or build.find() is not None:
        return
    if os.environ.get("TENTER_REQUIRE_SGLANG") == "1":
        raise pytest.UsageError("there is no SGLang here, and TENTER_REQUIRE_SGLANG asks for it")
    for item in needing:
        item.add_marker(pytest.mark.skip(reason="there is no SGLang here: run `make sglang`"))


@pytest.fixture(scope="session")
def sglang_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers' logs lie."""
    return tmp_path_factory.mktemp("sglang")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note whose turn it is, for fixtures that outlive it."""
    item.session.stash[TURN] = item.path


@pytest.fixture(scope="session")
def _shared(
    request: pytest.FixtureRequest, sglang_folder: Path
) -> "Iterator[Callable[[str], Server]]":
    """Gives a shared server by its configuration.

    With it all that the same module will ask for are launched, so that they start side by side.
    """
    launched: dict[str, Server] = {}

    def ready(configuration: str) -> "Server":
        for name in configurations(request.session, request.session.stash[TURN]):
            if name not in launched:
                launched[name] = servers.server(name, folder=sglang_folder)
                launched[name].launch()
        launched[configuration].wait()
        return launched[configuration]

    yield ready
    servers.close_all(launched.values())


def configurations(session: pytest.Session, path: Path) -> list[str]:
    """Whose shared servers the selected tests of one file use."""
    used: set[str] = set()
    for item in session.items:
        if isinstance(item, pytest.Function) and item.path == path:
            used.update(item.fixturenames)
    return [name for name in servers.CONFIGURATIONS if f"sglang_{name}" in used]


@pytest.fixture(scope="session")
def sglang_stock(_shared: "Callable[[str], Server]") -> "Server":
    """As it comes."""
    return _shared("stock")


@pytest.fixture(scope="session")
def sglang_plugin(_shared: "Callable[[str], Server]") -> "Server":
    """With our plugin: pins."""
    return _shared("plugin")


@pytest.fixture(scope="session")
def sglang_sessions(_shared: "Callable[[str], Server]") -> "Server":
    """With session references and priority scheduling."""
    return _shared("sessions")


@pytest.fixture(scope="module")
def start_server(sglang_folder: Path) -> "Iterator[Callable[..., Server]]":
    """`start_server(name, *flags, pool_tokens=4096, ready=True)`: a server of the module's own.

    It may be stopped, killed and restarted. With ready=False it is only launched, so that another
    can be started meanwhile; `wait()` then waits for it.
    """
    started: list[Server] = []

    def start(
        name: str, *flags: str, pool_tokens: int = servers.POOL_TOKENS, ready: bool = True
    ) -> "Server":
        server = servers.server(name, *flags, folder=sglang_folder, pool_tokens=pool_tokens)
        started.append(server)
        server.launch()
        if ready:
            server.wait()
        return server

    yield start
    servers.close_all(started)
