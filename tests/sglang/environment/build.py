"""Builds, once, the virtual environment with a real SGLang that runs without a GPU.

    python tests/sglang/environment/build.py     (what `make sglang` runs)

It lies outside the clone, so that all clones share it: in TENTER_CACHE, else XDG_CACHE_HOME/tenter,
else ~/.cache/tenter; in .cache/ of the clone only where that cannot be written. Its name carries a
digest of what it is made of, so that a changed pin makes a new one. Standard library only.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
CLONE = HERE.parents[2]
REQUIREMENTS = HERE / "requirements.txt"
SHIM = HERE / "shim"
STAMP = "complete"  # a file in the environment, written last


def name() -> str:
    """The folder's name: SGLang's version, Python's, and a digest of the pins and the shim."""
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(python.encode())
    shim = (path for path in SHIM.rglob("*") if path.is_file() and path.suffix != ".pyc")
    for path in (REQUIREMENTS, *sorted(shim)):
        digest.update(f"\0{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    return f"sglang-{pinned('sglang')}-{python}-{digest.hexdigest()[:12]}"


def pinned(package: str) -> str:
    """The version of `package` in requirements.txt."""
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{package}=="))


def places() -> tuple[Path, ...]:
    """Where environments may lie, the best place first."""
    asked, xdg = os.environ.get("TENTER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    home = Path(xdg) if xdg else Path("~/.cache").expanduser()
    return (Path(asked).expanduser().resolve() if asked else home / "tenter", CLONE / ".cache")


def find() -> Path | None:
    """The finished environment, if there is one."""
    folders = (place / name() for place in places())
    return next((folder for folder in folders if finished(folder)), None)


def finished(folder: Path) -> bool:
    """Whether a build of `folder` has ended, and its interpreter is still there."""
    return (folder / STAMP).exists() and python_of(folder).exists()


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def build() -> Path:
    """The finished environment; builds it if there is none, or only half of one."""
    if (found := find()) is not None:
        return found
    folder = writable(places()) / name()
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not finished(folder):
            fill(folder)
    return folder


def writable(candidates: tuple[Path, ...]) -> Path:
    """The first place that can be written, made if need be."""
    for place in candidates:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK | os.X_OK):
            return place
    raise SystemExit(
        f"cannot write to {' or '.join(map(str, candidates))}: set TENTER_CACHE to a folder"
        " with 3 GB of room"
    )


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds `file` against other builds; the kernel lets go if this process dies."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of the SGLang environment")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fill(folder: Path) -> None:
    """Build `folder` from nothing: the interpreter, the pinned packages, the shim, the stamp."""
    say(
        f"building an environment with SGLang {pinned('sglang')} for the tests in {folder}"
        " (3 GB; one to five minutes, once; it needs the network)"
    )
    begun = time.monotonic()
    if folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, symlinks=True, with_pip=False)
    # PyTorch with its dependencies first: they differ between its builds.
    pip(folder, f"torch=={pinned('torch')}", "--constraint", str(REQUIREMENTS))
    pip(folder, "--no-deps", "--requirement", str(REQUIREMENTS))
    site = next(folder.glob("lib/python*/site-packages"))
    shutil.copytree(SHIM, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    check(folder)
    (folder / STAMP).touch()
    say(f"built in {time.monotonic() - begun:.0f} s")


def pip(folder: Path, *arguments: str) -> None:
    """Install into `folder` with the pip of this interpreter; its words are shown if it fails."""
    target = ["--python", str(python_of(folder))]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--root-user-action", "ignore"]
    command = [sys.executable, "-m", "pip", *target, "install", *quiet, *arguments]
    run(command, "cannot install SGLang; with the network back, run `make sglang` again")


def check(folder: Path) -> None:
    """See that SGLang can be imported."""
    environment = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1"}
    command = [str(python_of(folder)), "-c", "import sglang.srt.server_args, torchvision"]
    run(command, "SGLang does not import in its new environment", environment)


def run(command: list[str], failure: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-4000:]}\n{failure}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    build()
