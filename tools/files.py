"""Tools that read, write and list files below one folder, and nowhere else.

A path that a model names is walked component by component from the folder's own descriptor, each
opened with O_NOFOLLOW: no "..", no absolute path, no symbolic link, and no race between the check
and the use, since what was opened is what was checked.
"""

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EEXIST
from pathlib import Path
from secrets import token_hex
from typing import Literal

from .capped import Capped
from .python import python_tool
from .registry import InvalidTool, Tool

MAX_DEPTH = 64
MAX_ENTRIES = 2_000
READ_BYTES = 65_536
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class PathRefused(ValueError):
    """A path leads out of the folder, or is none."""


def file_tools(
    folder: str | os.PathLike[str],
    *,
    write: bool = False,
    max_bytes: int = 65_536,
    prefix: str = "",
) -> list[Tool]:
    """`read_file`, `list_files` and, with `write`, `write_file`, all below `folder`.

    `max_bytes` of a file are read, its beginning and its end, and no more are written. `prefix`
    begins the tools' names. Raises `InvalidTool`.
    """
    home = Path(folder).resolve()
    if not home.is_dir():
        raise InvalidTool(f"{prefix}read_file", f"there is no folder {home}")
    if max_bytes < 1:
        raise InvalidTool(f"{prefix}read_file", f"max_bytes is above 0, not {max_bytes}")

    def read_file(path: str) -> str:
        """Read a text file. `path` is relative to the working folder."""
        with _opened(home, path, os.O_RDONLY) as file:
            return _ends(file, max_bytes)

    def list_files(path: str = ".") -> list[str]:
        """List a folder; names of folders end in a slash. `path` is relative to the working folder."""
        with _folder(home, _parts(path)) as at, os.scandir(at) as entries:
            names: list[str] = []
            for entry in entries:
                if len(names) == MAX_ENTRIES:
                    names.append(f"[... more than {MAX_ENTRIES} entries ...]")
                    break
                names.append(
                    f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                )
            return sorted(names)

    def write_file(path: str, text: str, mode: Literal["replace", "new"] = "replace") -> str:
        """Write a text file whole. `path` is relative to the working folder, which must exist."""
        data = text.encode("utf-8")
        if len(data) > max_bytes:
            raise ValueError(f"the text has {len(data)} bytes; at most {max_bytes} may be written")
        _replace(home, path, data, new=mode == "new")
        return f"wrote {len(data)} bytes"

    tools = [
        python_tool(read_file, name=f"{prefix}read_file", effect="idempotent"),
        python_tool(list_files, name=f"{prefix}list_files", effect="idempotent"),
    ]
    if write:
        tool = python_tool(write_file, name=f"{prefix}write_file", effect="idempotent")
        tools.append(replace(tool, sensitive=True))
    return tools


def _ends(file: int, limit: int) -> str:
    """The first and the last half of `limit` bytes of an open file, and nothing in between."""
    kept = Capped(limit)
    between = os.fstat(file).st_size - limit
    if between > 0:
        kept.write(os.read(file, limit - limit // 2))
        kept.skip(between)
        os.lseek(file, -(limit // 2), os.SEEK_END)
    while data := os.read(file, READ_BYTES):
        kept.write(data)
    return kept.text()


def _replace(home: Path, path: str, data: bytes, *, new: bool) -> None:
    """Write a file whole or not at all: under another name, which then becomes its own."""
    parts = _parts(path)
    if not parts:
        raise PathRefused("the path names no file")
    name, draft = parts[-1], f".draft-{token_hex(8)}"
    with _folder(home, parts[:-1]) as at:
        mode = _mode_of(name, at)
        if new and mode is not None:
            raise FileExistsError(EEXIST, os.strerror(EEXIST), name)
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o644, dir_fd=at)
        try:
            if mode is not None:
                os.fchmod(file, mode)
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            if new:
                os.link(draft, name, src_dir_fd=at, dst_dir_fd=at)  # fails if there is one by now
            else:
                os.rename(draft, name, src_dir_fd=at, dst_dir_fd=at)
        finally:
            os.close(file)
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=at)


def _mode_of(name: str, at: int) -> int | None:
    """The permissions of a file that is there; raises `PathRefused` for what is no file."""
    try:
        found = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found):
        raise PathRefused(f"{name!r} is a symbolic link, which is not followed")
    if not stat.S_ISREG(found):
        raise PathRefused(f"{name!r} is no regular file")
    return stat.S_IMODE(found)


def _parts(path: str) -> list[str]:
    if "\0" in path:
        raise PathRefused("a path cannot contain a NUL")
    if path.startswith("/"):
        raise PathRefused(f"{path!r} is absolute: name a path relative to the working folder")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise PathRefused(f"{path!r} leads out of the working folder: '..' is not allowed")
    if len(parts) > MAX_DEPTH:
        raise PathRefused(f"the path is deeper than {MAX_DEPTH} folders")
    return parts


@contextmanager
def _folder(home: Path, parts: list[str]) -> Generator[int]:
    """A descriptor of the folder `parts` below `home`, reached without following a link."""
    at = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            below = _open(part, _FOLDER, at)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


@contextmanager
def _opened(home: Path, path: str, flags: int) -> Generator[int]:
    """A descriptor of the regular file `path` below `home`."""
    parts = _parts(path)
    if not parts:
        raise PathRefused("the path names no file")
    with _folder(home, parts[:-1]) as at:
        file = _open(parts[-1], flags | _FILE, at)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise PathRefused(f"{path!r} is no regular file")
            yield file
        finally:
            os.close(file)


def _open(name: str, flags: int, at: int) -> int:
    try:
        return os.open(name, flags, 0o644, dir_fd=at)
    except OSError as error:
        if error.errno is not None and os.path.islink(f"/proc/self/fd/{at}/{name}"):
            raise PathRefused(f"{name!r} is a symbolic link, which is not followed") from None
        raise type(error)(error.errno, error.strerror, name) from None
