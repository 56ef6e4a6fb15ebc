"""What a benchmark has measured is not measured again after it was stopped."""

from pathlib import Path

from _kept import Kept


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    first = Kept.of(path)
    first.add("a", {"s": 1.0})
    first.add("b", {"s": 2.0})
    path.write_text(path.read_text()[:-5])  # stopped while it wrote
    again = Kept.of(path)
    assert again.get("a", lambda: {"s": 9.0}) == {"s": 1.0}
    assert again.get("b", lambda: {"s": 3.0}) == {"s": 3.0}
    assert Kept.of(path).known == {"a": {"s": 1.0}, "b": {"s": 3.0}}
