"""What every test shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
