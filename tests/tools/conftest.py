"""A PostgreSQL server of our own, for the tests that need one."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty database on a server that only listens to a local socket."""
    found = shutil.which("initdb", path=str(BINARIES[-1]) if BINARIES else None)
    if found is None:
        if os.environ.get("TENTER_REQUIRE_POSTGRES"):
            pytest.fail("PostgreSQL is not installed, though TENTER_REQUIRE_POSTGRES is set")
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
    # not pytest's folder: the server's user may not enter that
    with tempfile.TemporaryDirectory(prefix="tenter-pg-") as folder:
        home = Path(folder)
        if user:
            shutil.chown(home, user)

        def run(*command: str | Path) -> None:
            subprocess.run(command, user=user, cwd=home, check=True, stdout=subprocess.DEVNULL)

        data, control = home / "data", Path(found).with_name("pg_ctl")
        run(found, "-D", data, "-U", "tester", "-A", "trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
        run(control, "-D", data, "-l", home / "log", "-w", "-o", options, "start")
        try:
            yield f"postgresql:///postgres?host={folder}&user=tester"
        finally:
            run(control, "-D", data, "-w", "-m", "immediate", "stop")
