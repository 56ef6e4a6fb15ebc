"""What every test shares."""

import gc
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """The commands that tests start heed all signals, also where the tests run under `nohup`."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The garbage collector passes over all that is made before the first test.

    That lives to the end; looking through it again and again took half the time of collecting,
    and up to half a second of any test.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asyncio only: the runtime's clock is an asyncio loop's."""
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home for journals of this test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("TENTER_HOME", str(folder))
    yield folder
