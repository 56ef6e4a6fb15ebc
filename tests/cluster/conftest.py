"""A real Ray cluster of two workers for the tests that ask for one; without Ray they are skipped."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for the modules beside this file

from ray_cluster import SETTINGS, running

LACKING = "there is no Ray here: pip install 'tenter[ray]'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """TENTER_REQUIRE_RAY=1 makes it an error that there is no Ray."""
    needing = [
        item
        for item in items
        if HERE in item.path.parents and "ray_address" in getattr(item, "fixturenames", ())
    ]
    if not needing or importlib.util.find_spec("ray") is not None:
        return
    if os.environ.get("TENTER_REQUIRE_RAY") == "1":
        raise pytest.UsageError(f"{LACKING}, and TENTER_REQUIRE_RAY asks for it")
    for item in needing:
        item.add_marker(pytest.mark.skip(reason=LACKING))


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of a cluster that all tests share."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        with running() as address:
            yield address
