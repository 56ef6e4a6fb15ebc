"""A real Ray cluster of two workers for the tests that ask for one; without Ray they are skipped."""

import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LACKING = "there is no Ray here: pip install 'tenter[ray]'"
HERE = Path(__file__).parent
# Of the cluster and of whoever connects: the loopback alone, no reports, a token of our own.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


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
    # In a short folder, since the names of its sockets are bounded.
    short = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
    with pytest.MonkeyPatch.context() as patch, short as folder:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        command = [sys.executable, str(HERE / "ray_cluster.py"), folder]
        log = Path(folder) / "stderr"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert process.stdin is not None and process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address, f"no Ray cluster has started: {log.read_text()[-2000:]}"
            yield address
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
