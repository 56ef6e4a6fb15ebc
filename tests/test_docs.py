"""The documentation is true: every snippet runs, and commands print what the page says they print.

A fence is run by its language. `python`: as a script. `yaml`: as a workflow that must validate.
`console`: every line after `$ ` is a command; the lines below it must appear in what it prints, in
that order, where `...` stands for anything within a line and on a line of its own for any lines.
A comment before the fence changes that: `<!-- file: NAME -->` only saves the snippet for the
commands below, `<!-- not run: REASON -->` leaves it alone, `<!-- exit code: N -->` is expected.
All snippets of a page share one folder, in which examples/ lies too.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")})
OTHERS = {"engine.md", "journal.md", "ray.md", "tiny-model.md"}  # checked where their subject is
FENCE = re.compile(
    r"(?:<!-- (?P<order>[a-z ]+): (?P<value>[^\n]*?) -->\n+)?"
    r"^```(?P<language>[a-z]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#([^)\s]+))?\)")


@dataclass(frozen=True, slots=True)
class Snippet:
    language: str
    text: str
    line: int
    order: str  # what the comment before it says: "", "file", "not run", "exit code"
    value: str


def snippets(page: Path) -> Iterator[Snippet]:
    source = page.read_text()
    for found in FENCE.finditer(source):
        line = source.count("\n", 0, found.start("text"))
        order, value = found["order"] or "", found["value"] or ""
        yield Snippet(found["language"], found["text"], line, order, value)


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    binaries = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "TENTER_HOME": str(folder / ".tenter"),
        "COLUMNS": "100",
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console snippet, with the lines that are expected below it."""
    command, expected = "", list[str]()
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, expected
            command, expected = line[2:], []
        elif command.endswith("\\"):
            command = f"{command}\n{line}"
        else:
            expected.append(line)
    if command:
        yield command, expected


def missing(expected: list[str], printed: str) -> str | None:
    """The first expected line that does not appear, in order, in what was printed."""
    rest = iter(printed.splitlines())
    for line in expected:
        if not line.strip() or line.strip() == "...":
            continue
        parts = [re.escape(part.strip()) for part in line.strip().split("...")]
        pattern = re.compile(".*".join(parts))
        if not any(pattern.search(candidate) for candidate in rest):
            return line
    return None


def run(snippet: Snippet, page: Path, folder: Path) -> None:
    where = f"{page.name}:{snippet.line}"
    code = int(snippet.value) if snippet.order == "exit code" else 0
    if snippet.order == "not run":
        return
    if snippet.order == "file":
        (folder / snippet.value).parent.mkdir(parents=True, exist_ok=True)
        (folder / snippet.value).write_text(snippet.text)
        return
    match snippet.language:
        case "python":
            script = folder / f"snippet_{snippet.line}.py"
            script.write_text(snippet.text)
            done = shell(f"{sys.executable} {script.name}", folder)
            assert done.returncode == code, f"{where}\n{done.stdout}"
        case "yaml":
            script = folder / f"snippet_{snippet.line}.yaml"
            script.write_text(snippet.text)
            done = shell(f"tenter validate {script.name}", folder)
            assert done.returncode == code, f"{where}\n{done.stdout}"
        case "console":
            for command, expected in commands(snippet.text):
                done = shell(command, folder)
                assert done.returncode == code, f"{where}: $ {command}\n{done.stdout}"
                line = missing(expected, done.stdout)
                assert line is None, f"{where}: $ {command}\nlacks: {line}\n{done.stdout}"
        case _:
            pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in OTHERS], ids=lambda page: page.name
)
def test_every_snippet_runs(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for snippet in snippets(page):
        run(snippet, page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text()):
        file = (page.parent / target).resolve()
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if heading:
            headings = {slug(line) for line in file.read_text().splitlines() if line[:1] == "#"}
            assert heading in headings, f"{target} has no heading #{heading}"


def slug(heading: str) -> str:
    text = heading.lstrip("#").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def test_expected_lines_are_found_in_order() -> None:
    printed = "one\ntwo 2.5 s\nthree\n"

    assert missing(["one", "two ... s", "three"], printed) is None
    assert missing(["three", "one"], printed) == "one"
    assert missing(["two ... minutes"], printed) == "two ... minutes"
