"""What the doctor finds, and what it says to do."""

import json
import sys
from pathlib import Path

import pytest

from tenter.runtime import doctor
from tenter.runtime.cli import main


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "tables", ("no_such_module_at_all",))
    found = {finding.name: finding for finding in _quick(monkeypatch)}

    assert not found["tables"].ok
    assert "pip install 'tenter[tables]'" in found["tables"].cure


def test_without_the_engine_the_rest_is_still_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _quick(monkeypatch)

    assert [finding.name for finding in found] == [
        "python",
        "embedded",
        "tables",
        "sglang",
        "http",
        "sql",
        "mcp",
        "redis",
        "ray",
        "home",
        "disk",
    ]


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    found = {finding.name: finding for finding in _quick(monkeypatch, str(tmp_path / "file/home"))}

    assert not found["home"].ok
    assert "TENTER_HOME" in found["home"].cure


def _quick(monkeypatch: pytest.MonkeyPatch, home: str | None = None) -> list[doctor.Finding]:
    """The findings as on a machine without the engine."""
    monkeypatch.setitem(doctor.EXTRAS, "embedded", ("no_such_engine_at_all",))
    return list(doctor.findings(home or str(Path(sys.prefix))))


@pytest.mark.slow
def test_all_is_well_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    code = main(["doctor", "--home", str(tmp_path)])
    said = capsys.readouterr().out

    assert code == 0, said
    assert "tiny model  asked" in said
    assert main(["doctor", "--home", str(tmp_path), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {finding["name"] for finding in found} >= {"python", "threads", "tiny model", "disk"}
