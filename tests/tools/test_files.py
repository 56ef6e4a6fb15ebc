"""File tools: no path leads out of the folder, by whatever spelling, link or race."""

import os
import threading
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenter.tools import InvalidTool, ToolError, call
from tenter.tools.files import file_tools

SECRET = "the secret outside"


@pytest.fixture(name="home")
def home_fixture(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "sub" / "a.txt").write_text("hello")
    (tmp_path / "secret.txt").write_text(SECRET)
    (home / "link").symlink_to(tmp_path / "secret.txt")
    (home / "up").symlink_to(tmp_path)
    (home / "sub" / "round").symlink_to("/")
    return home


def traversals(tmp_path: Path) -> list[str]:
    outside = tmp_path / "secret.txt"
    begins = ("", "./", ".//", "sub/", "sub/./", "sub//", "sub/a.txt/", "link/", "up/")
    ups = [f"{begin}{'../' * n}secret.txt" for begin in begins for n in range(1, 20)]
    processes = [f"/proc/self/fd/{n}" for n in range(20)]
    processes += ["/proc/self/root/etc/passwd", "/proc/1/environ", "/dev/stdin", "/dev/fd/0"]
    odd = [
        "..",
        "sub/..",
        "sub/../..",
        "./../secret.txt",
        "sub//..//..//secret.txt",
        "~/x",
        "~root",
    ]
    absolute = [str(outside), "/etc/passwd", "//etc/passwd", "/proc/self/environ", "/proc/self/cwd"]
    links = [
        "link",
        "up/secret.txt",
        "up",
        "sub/round/etc/passwd",
        "sub/round",
        "./link",
        "up/home",
    ]
    encoded = [
        "..%2fsecret.txt",
        "..\\secret.txt",
        "%2e%2e/secret.txt",
        "..;/secret.txt",
        "．．/secret",
    ]
    nul = ["sub/a.txt\0.png", "\0", "../secret.txt\0"]
    return ["", ".", *ups, *processes, *odd, *absolute, *links, *encoded, *nul]


async def test_nothing_outside_is_read_or_written(home: Path) -> None:
    read, listing, write = file_tools(home, write=True)
    assert len(set(traversals(home.parent))) >= 200, "X2"
    for path in traversals(home.parent):
        with pytest.raises(ToolError):
            await call(read, {"path": path})
        if path.strip("./") not in ("", "~root", "..%2fsecret.txt") and "\\" not in path:
            with suppress(ToolError):
                await call(write, {"path": path, "text": "overwritten"})
        with suppress(ToolError):
            assert "secret.txt" not in await call(listing, {"path": path})
    assert (home.parent / "secret.txt").read_text() == SECRET
    assert {path.name for path in home.parent.iterdir()} == {"home", "secret.txt"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(path=st.lists(st.sampled_from(["..", ".", "sub", "up", "link", "a.txt", "secret.txt", ""])))
async def test_no_mixture_of_parts_leads_out(home: Path, path: list[str]) -> None:
    (read, _) = file_tools(home)
    with suppress(ToolError):
        assert await call(read, {"path": "/".join(path)}) == "hello"


async def test_a_folder_swapped_for_a_link_is_not_followed(home: Path) -> None:
    (read, _) = file_tools(home)
    (home / "turn").mkdir()
    (home / "turn" / "secret.txt").write_text("inside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(home / "turn", home / "away")
            os.symlink(home.parent, home / "turn")
            os.unlink(home / "turn")
            os.rename(home / "away", home / "turn")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(200):
            try:
                assert await call(read, {"path": "turn/secret.txt"}) == "inside"
            except ToolError:
                continue
    finally:
        stop.set()
        thread.join()


async def test_reading_listing_and_writing(home: Path) -> None:
    read, listing, write = file_tools(home, write=True, prefix="repo_")
    assert [tool.name for tool in (read, listing, write)] == [
        "repo_read_file",
        "repo_list_files",
        "repo_write_file",
    ]
    assert write.sensitive
    assert await call(listing, {}) == ["link", "sub/", "up"]
    assert await call(write, {"path": "sub/b.txt", "text": "new"}) == "wrote 3 bytes"
    assert await call(write, {"path": "sub/b.txt", "text": "a"}) == "wrote 1 bytes"
    assert await call(read, {"path": "sub/b.txt"}) == "a"
    with pytest.raises(ToolError, match="exists"):
        await call(write, {"path": "sub/b.txt", "text": "x", "mode": "new"})
    with pytest.raises(ToolError, match="No such file"):
        await call(read, {"path": "sub/none"})


async def test_large_files_devices_and_pipes_do_not_hang(home: Path) -> None:
    (read, _) = file_tools(home, max_bytes=1000)
    (home / "big").write_bytes(b"x" * 10_000_000)
    assert len(await call(read, {"path": "big"})) < 1100
    os.mkfifo(home / "pipe")
    with pytest.raises(ToolError, match="no regular file"):
        await call(read, {"path": "pipe"})
    with pytest.raises(InvalidTool):
        file_tools(home / "none")


async def test_of_a_huge_file_only_the_ends_are_read(home: Path) -> None:
    (read, _) = file_tools(home, max_bytes=10)
    (home / "huge").write_bytes(b"begin")
    os.truncate(home / "huge", 20_000_000_000)  # takes no room
    found = await call(read, {"path": "huge"})
    assert found == "begin\n[... 19999999990 bytes left out ...]\n" + 5 * "\0"


async def test_a_write_is_whole_or_told_and_leaves_the_old_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, write = file_tools(home, write=True)
    (home / "sub" / "a.txt").chmod(0o600)
    reached, left = os.write, [9]

    def short(file: int, data: bytes) -> int:
        """A disk with room for so many bytes."""
        if not left[0]:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        taken = min(left[0], 4, len(data))
        left[0] -= taken
        return reached(file, data[:taken])

    monkeypatch.setattr("tenter.tools.files.os.write", short)
    assert await call(write, {"path": "sub/a.txt", "text": "new text"}) == "wrote 8 bytes"
    assert (home / "sub" / "a.txt").read_text() == "new text"
    assert (home / "sub" / "a.txt").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ToolError, match="No space left"):
        await call(write, {"path": "sub/a.txt", "text": "more text"})
    assert (home / "sub" / "a.txt").read_text() == "new text"
    assert [path.name for path in (home / "sub").iterdir() if path.is_file()] == ["a.txt"]


async def test_a_link_is_not_written_over(home: Path) -> None:
    _, _, write = file_tools(home, write=True)
    for mode in ("replace", "new"):
        with pytest.raises(ToolError, match="symbolic link"):
            await call(write, {"path": "link", "text": "x", "mode": mode})
    with pytest.raises(ToolError, match="no regular file"):
        await call(write, {"path": "sub", "text": "x"})
    assert (home / "link").is_symlink()
