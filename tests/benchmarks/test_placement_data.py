"""Workflows that others bring are planned, and executed where an engine is simulated for them."""

from pathlib import Path

import _halo
import pytest
from _common import Figures
from placement import executed


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> None:
    node = _halo.Node("a", "llm", "another/model-9b", 9.0, (), 0.0, 0)
    tool = _halo.Node("a", "http", None, 0.0, (), 1.0, 0)
    found = {"W1": {"a": node}, "W4": {"a": tool}}
    monkeypatch.setattr(_halo, "read_workflows", lambda _file: found)


@pytest.mark.usefixtures("other")
def test_what_no_engine_is_simulated_for_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = Figures("placement")
    executed(figures, tmp_path, quick=True)
    told = capsys.readouterr().err
    assert "W1 is not executed: no engine is simulated for another/model-9b" in told
    assert "W4 is not executed: no step asks a model" in told
