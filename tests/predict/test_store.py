"""What is kept between runs: added up, faded, bounded, and never a reason for a run to end."""

import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from tenter.runtime.predict import Asked, Learned, Row, books, store
from tenter.runtime.predict.books import FolderBooks
from tenter.runtime.scheduler.events import (
    CallEnded,
    CallReady,
    ProgramArrived,
    ProgramEnded,
    ToolEnded,
)
from tenter.runtime.trace import Record


def heard(name: str, length: int, seconds: float = 2.0, tool: str = "sh") -> list[Record]:
    """A program of one call and one tool."""
    return [
        ProgramArrived(program=name, row=0, workflow="flow"),
        CallReady(
            call=name, program=name, step="turn", model="m", prompt_tokens=100, max_tokens=1_000
        ),
        CallEnded(
            call=name,
            program=name,
            step="turn",
            finish="stop",
            prompt_tokens=100,
            output_tokens=length,
        ),
        ToolEnded(program=name, step="t", tool=tool, seconds=seconds, ok=True, word="a1b2"),
        ProgramEnded(program=name, row=0, ok=True),
    ]


def ran(home: Path, length: int, programs: int = 50, fingerprint: str = "f1") -> Learned:
    """A run of `flow` that has ended and was saved."""
    learned = Learned.load(home, "flow", fingerprint)
    for at in range(programs):
        for event in heard(f"p{at}", length):
            learned.observe(event)
    assert learned.save()
    return learned


def expected(learned: Learned) -> float | None:
    learned.observe(ProgramArrived(program="new", row=0, workflow="flow"))
    return learned.ask("new/0", "new", "turn", 100, 1_000).expected_tokens


def file_of(home: Path, fingerprint: str = "f1") -> Path:
    place = FolderBooks(home / "learned")
    return place.folder / store.Shelf(place, "flow", fingerprint).name


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_run_knows_what_the_one_before_has_learned(tmp_path: Path) -> None:
    first = ran(tmp_path, 40)
    again = Learned.load(tmp_path, "flow", "f1")

    assert expected(again) == pytest.approx(40.0)
    assert again.expected_work_tokens("flow") == first.expected_work_tokens("flow")
    assert again.tool_s_left("sh", 0.9, word="a1b2") == 2.0
    assert again.durations().count("sh a1b2") == 50
    assert list(again.known.rows) == list(first.known.rows)


def test_runs_that_end_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    one, other = (Learned.load(tmp_path, "flow", "f1") for _ in range(2))
    for learned, length in ((one, 10), (other, 30)):
        for at in range(50):
            for event in heard(f"p{at}", length):
                learned.observe(event)
    assert one.save() and other.save()

    assert expected(Learned.load(tmp_path, "flow", "f1")) == pytest.approx(20.0)


def test_saving_again_adds_only_what_is_new(tmp_path: Path) -> None:
    learned = ran(tmp_path, 10, programs=20)
    for event in heard("more", 10):
        learned.observe(event)
    assert learned.save() and learned.save()

    again = Learned.load(tmp_path, "flow", "f1")
    assert again.known.predictors["output_tokens"].count() == 21
    assert len(again.known.rows) == 21


def test_what_is_old_fades(tmp_path: Path) -> None:
    ran(tmp_path, 900, programs=1_500)
    ran(tmp_path, 10, programs=300)

    found = expected(Learned.load(tmp_path, "flow", "f1"))
    assert found == pytest.approx((300 * 10 + 100 * 900) / 400, rel=0.02)


def test_an_edited_workflow_begins_with_the_last_amounts_of_its_former_self(tmp_path: Path) -> None:
    ran(tmp_path, 40, programs=300, fingerprint="before")
    edited = Learned.load(tmp_path, "flow", "after")

    assert expected(edited) == pytest.approx(40.0)
    assert edited.known.predictors["output_tokens"].count() == store.EDITED
    assert not edited.known.rows, "its prompts may be others"
    ran(tmp_path, 10, programs=300, fingerprint="after")
    assert expected(Learned.load(tmp_path, "flow", "before")) == pytest.approx(40.0)


def test_another_workflow_shares_tools_alone(tmp_path: Path) -> None:
    ran(tmp_path, 40)
    for name in ("flow-a", "flo", "other"):
        learned = Learned.load(tmp_path, name, "f1")

        assert learned.tool_s_left("sh", 0.5, word="a1b2") == 2.0
        assert learned.known.predictors["output_tokens"].count() == 0


@pytest.mark.parametrize(
    "name", ["", "../../etc/x", "a b/c", "ü" * 300, "\0"], ids=["none", "up", "sep", "long", "nul"]
)
def test_any_name_of_a_workflow_is_a_file_below_home(tmp_path: Path, name: str) -> None:
    learned = Learned.load(tmp_path, name, "f")
    for event in heard("p", 5):
        learned.observe(event)

    assert learned.save()
    assert {path.parent for path in tmp_path.rglob("*.json")} == {tmp_path / "learned"}


# ---- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": "1"}',
        b'{"version": 1, "amounts": {"calls": {"history": 3, "scores": []}}}',
        b'{"version":1,"amounts":{"calls":{"history":{"pool":[-1],"heads":{},"keys":{}},"scores":[]}}}',
        b'{"version": 1, "rows": [[1, -5, []]]}',
        b'{"version": 1, "ranker": {"weights": "AAAA"}}',
    ],
)
def test_a_damaged_file_is_a_warning_and_is_written_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ran(tmp_path, 40)
    file_of(tmp_path).write_bytes(content)

    learned = Learned.load(tmp_path, "flow", "f1")
    assert expected(learned) is None
    assert "damaged" in caplog.text
    ran(tmp_path, 7)
    assert expected(Learned.load(tmp_path, "flow", "f1")) == pytest.approx(7.0)


def test_a_file_of_a_newer_tenter_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran(tmp_path, 40)
    changed(file_of(tmp_path), version=store.VERSION + 1, more=[1])
    before = file_of(tmp_path).read_bytes()

    learned = Learned.load(tmp_path, "flow", "f1")
    assert expected(learned) is None
    for event in heard("p", 5):
        learned.observe(event)
    assert not learned.save()
    assert file_of(tmp_path).read_bytes() == before
    assert caplog.text.count("newer Tenter (version 2; this one reads 1)") == 2


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran(tmp_path, 40)
    monkeypatch.setattr(books, "MAX_BYTES", 100)

    assert expected(Learned.load(tmp_path, "flow", "f1")) is None
    assert "larger than 100 bytes" in caplog.text


def test_a_home_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "learned").write_text("a file where the folder should be")
    learned = Learned.load(tmp_path, "flow", "f1")
    for event in heard("p", 5):
        learned.observe(event)

    assert not learned.save()
    assert "is not kept" in caplog.text


def test_a_lock_that_is_held_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(books, "LOOK_S", 0.0)
    learned = ran(tmp_path, 40)
    for event in heard("p", 5):
        learned.observe(event)
    descriptor = os.open(tmp_path / "learned" / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert not learned.save()
    finally:
        os.close(descriptor)

    assert "another run" in caplog.text
    assert learned.save(), "what could not be kept is kept by the next save"
    assert Learned.load(tmp_path, "flow", "f1").known.predictors["calls"].count() == 51


def test_without_a_home_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not Learned().save()
    assert not caplog.records


# ---- bounds -------------------------------------------------------------------------------------


def test_files_are_bounded_in_size_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FILES", 3)
    monkeypatch.setattr(store, "KEYS_KEPT", 20)
    learned = Learned.load(tmp_path, "flow", "f1")
    for at in range(100):
        for event in heard(f"p{at}", 5, tool=f"tool{at}"):
            learned.observe(event)
    assert learned.save()
    tools = json.loads((tmp_path / "learned" / "tools.json").read_text())
    assert len(tools["amounts"]["tool_s"]["history"]["heads"]) == 20
    assert "tool99" in tools["amounts"]["tool_s"]["history"]["heads"]

    for at in range(6):
        ran(tmp_path, 5, programs=1, fingerprint=f"f{at}")
    kept = {path.name for path in (tmp_path / "learned").glob("*.json")}
    assert len(kept - {"tools.json"}) <= 3
    assert "tools.json" in kept
    assert file_of(tmp_path, "f5").name in kept


def test_a_file_holds_no_text_of_prompts_or_arguments(tmp_path: Path) -> None:
    learned = Learned.load(tmp_path, "flow", "f1")
    learned.observe(ProgramArrived(program="p", row=0, workflow="flow"))
    learned.ask("p/0", "p", "turn", 3, 100, token_ids=[90_001, 90_002, 90_003])
    learned.observe(CallEnded(call="p/0", program="p", step="turn", finish="stop", output_tokens=5))
    assert learned.save()

    assert "9000" not in file_of(tmp_path).read_text()


def test_a_ranker_outlives_the_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    learned = Learned.load(tmp_path, "flow", "f1")
    for at in range(1_000):
        asked = Asked("flow/turn", 20 + at % 300, 20 + at % 300, 1_000, 0, 0, 0, 200.0)
        row = Row(at, 50 + at % 300, asked)
        learned.known.rows.append(row)
    assert learned.fit(seed=0) is not None
    assert learned.known.ranker is not None and learned.save()
    probe = Asked("flow/turn", 290, 290, 1_000, 0, 0, 0, 200.0)

    again = Learned.load(tmp_path, "flow", "f1").known.ranker
    assert again is not None
    assert again.judge(probe) == learned.known.ranker.judge(probe)
    ran(tmp_path, 5, programs=2)
    assert Learned.load(tmp_path, "flow", "f1").known.ranker is not None, "and later ones"
