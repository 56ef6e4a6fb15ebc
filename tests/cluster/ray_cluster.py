"""A Ray cluster of two CPUs on the loopback, in a process of its own: `running` starts and ends it.

As a program it runs until its stdin ends, and prints its address.
"""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of the cluster and of whoever connects: the loopback alone, no reports, a token of our own.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@contextmanager
def running() -> Iterator[str]:
    """The address of a cluster; whoever connects needs `SETTINGS` in its environment."""
    # In a short folder, since the names of its sockets are bounded.
    short = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
    with short as folder:
        log = Path(folder) / "stderr"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, __file__, folder],
                env=os.environ | SETTINGS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
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


def main(folder: str) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=folder,
    )
    sys.stdout.write(f"{ray.get_runtime_context().gcs_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
