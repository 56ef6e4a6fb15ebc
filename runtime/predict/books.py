"""Where documents of what was learned lie: JSON files in a folder, or values in a Redis.

A document is changed as a whole: what it is made into depends on what it was, and nobody else
changes it meanwhile. Documents are named by file names; they are listed by the time of their last change.
"""

import fcntl
import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ..journal.address import is_redis, parse_redis

MAX_BYTES = 16 * 1024 * 1024
LOCK_LOOKS, LOOK_S = 50, 0.01


class Unreadable(Exception):
    """A document, or a place of them, that this Tenter cannot use; the message says why."""


class Books(Protocol):
    """A place of documents. All methods raise Unreadable."""

    def shown(self, name: str) -> str:
        """The document as messages name it."""
        ...

    def read(self, name: str) -> bytes | None:
        """None if there is no such document."""
        ...

    def names(self) -> list[str]:
        """Of all documents, those changed last first."""
        ...

    def change(self, name: str, made: Callable[[bytes | None], bytes]) -> None:
        """Replace a document by what `made` makes of it; it may be called more than once."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Throw documents away."""
        ...


class FolderBooks:
    """Documents as files of `folder`, which one process at a time changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shown(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreadable(f"{path}: {error.strerror or error}") from None
        if len(data) > MAX_BYTES:
            raise Unreadable(f"{path} is larger than {MAX_BYTES:,} bytes")
        return data

    def names(self) -> list[str]:
        try:
            found = [(path.stat().st_mtime_ns, path.name) for path in self.folder.glob("*.json")]
        except OSError as error:
            raise Unreadable(f"{self.folder}: {error.strerror or error}") from None
        return [name for _, name in sorted(found, reverse=True)]

    def change(self, name: str, made: Callable[[bytes | None], bytes]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._write(self.folder / name, made(self._old(name)))
        except OSError as error:
            raise Unreadable(f"{self.folder / name}: {error.strerror or error}") from None

    def remove(self, names: Iterable[str]) -> None:
        try:
            with self._locked():
                for name in names:
                    (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise Unreadable(f"{self.folder}: {error.strerror or error}") from None

    def _old(self, name: str) -> bytes | None:
        """What is there to be changed; b"" for what cannot be read."""
        try:
            return self.read(name)
        except Unreadable:
            return b""

    def _write(self, path: Path, data: bytes) -> None:
        """Whole or not at all."""
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            draft.write_bytes(data)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """One process at a time; half a second is waited for another."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            for _ in range(LOCK_LOOKS):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(LOOK_S)
            else:
                raise Unreadable(f"{self.folder} is being saved to by another run")
            yield
        finally:
            os.close(descriptor)


def books_of(home: Path | str) -> Books:
    """The documents of a home: those in its folder `learned`, or in its Redis."""
    if isinstance(home, str) and is_redis(home):
        from .books_redis import RedisBooks

        return RedisBooks(parse_redis(home))
    return FolderBooks(Path(home) / "learned")
