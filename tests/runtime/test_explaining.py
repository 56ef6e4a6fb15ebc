"""`explain` and `explain --analyze`, from the command line and from Python."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenter.planner.plan import Tokens
from tenter.runtime import analyze, explain, llm, workflow
from tenter.runtime.cli import main
from tenter.runtime.errors import InvalidInput
from tenter.runtime.progress import slow
from tenter.runtime.table_stats import FILES, table_stats, tokens_of_spec
from tenter.runtime.tables import open_table
from tenter.runtime.workflow import ModelSpec

FLOW = """
version: 1
name: route
inputs: { team: string, text: string }
steps:
  kind: { llm: "Is {{ team }} a good team? Say why.", max_tokens: 16 }
  said: { llm: "{{ kind }}: {{ text }}", max_tokens: 16 }
output: "{{ said }}"
"""
FAKE = ("--model", "default=fake:reply=fine")
Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENTER_HOME", str(tmp_path / "home"))
    (tmp_path / "flow.yaml").write_text(FLOW)
    rows = "".join(f"team {n % 4},text {n}\n" for n in range(40))
    (tmp_path / "table.csv").write_text(f"team,text\n{rows}")
    return tmp_path


@pytest.fixture
def ran(folder: Path, capsys: pytest.CaptureFixture[str]) -> Ran:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def steps(out: str) -> dict[str, Any]:
    record = json.loads(out.splitlines()[-1])
    return {step["step"]: step for step in record["steps"]}


def test_explain_tells_what_a_table_would_take(ran: Ran) -> None:
    code, out, _ = ran("explain", "flow.yaml", "table.csv")
    assert code == 0
    assert "plan route:" in out and "expected over 40 rows:" in out

    code, out, _ = ran("explain", "flow.yaml", "table.csv", "--json", "--verbose")
    found = json.loads(out)
    assert (found["type"], found["rows"], found["sampled"]) == ("plan", 40, False)
    assert "order" in found["after_rules"]
    kind = steps(out)["kind"]
    assert (kind["calls"], kind["consolidated"]) == (4, 36)
    assert kind["seconds"] == {"prefill": None, "decode": None, "tool": None}


def test_seconds_are_told_for_named_hardware(ran: Ran) -> None:
    code, out, _ = ran("explain", "flow.yaml", "table.csv", "--json", "--hardware", "h100")
    kind, said = steps(out).values()
    assert code == 0
    assert 0 < kind["seconds"]["prefill"] < said["seconds"]["prefill"]
    assert kind["path_share"] + said["path_share"] == pytest.approx(1)
    code, out, _ = ran("explain", "flow.yaml", "table.csv", "--hardware", "h100")
    assert code == 0 and "seconds of llama-3.1-8b on h100" in out
    code, _, err = ran("explain", "flow.yaml", "table.csv", "--preset", "llama-3.1-8b")
    assert code == 2 and "--preset is for --hardware" in err
    code, _, err = ran("explain", "flow.yaml", "table.csv", "--hardware", "abacus")
    assert code == 2 and "abacus" in err


def test_a_run_is_analysed_afterwards_with_what_its_plan_expected(ran: Ran) -> None:
    code, *_ = ran("map", "flow.yaml", "table.csv", "--out", "out.csv", *FAKE)
    assert code == 0
    code, out, _ = ran("explain", "--analyze", "last")
    assert code == 0 and "40 of 40 rows" in out and "~ expected" in out

    code, out, _ = ran("explain", "--analyze", "last", "--json")
    kind = steps(out)["kind"]
    assert (kind["calls"], sum(kind["consolidated"].values())) == (4, 36)
    assert (kind["expected"]["calls"], kind["rows"]) == (4, 40)
    assert kind["prompt_tokens"] == pytest.approx(kind["expected"]["prompt_tokens"], rel=0.1)
    found = json.loads(out)
    assert sum(step["path_share"] for step in found["steps"]) <= 1 + 1e-6


def test_analyze_runs_over_a_table_and_keeps_nothing(ran: Ran, folder: Path) -> None:
    code, out, err = ran("explain", "--analyze", "flow.yaml", "table.csv", "--limit", "6", *FAKE)
    assert code == 0 and "6 of 6 rows" in out and "thrown away" in err
    assert not (folder / "home" / "runs").exists()

    given = ("--out", "out.csv", "--json", *FAKE)
    code, out, _ = ran("explain", "--analyze", "flow.yaml", "table.csv", *given)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["rows"] == {"total": 40, "done": 40, "failed": 0}
    assert (folder / "out.csv").exists()
    assert str(analyze("last")).splitlines()[0].endswith(" s")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--analyze", "flow.yaml"), "name a run"),
        (("--analyze", "flow.py:route"), "name a run"),
        (("--analyze", "run_nothing"), "no runs"),
        (("--analyze", "flow.yaml", "none.csv"), "none.csv"),
        (("flow.yaml", "table.csv", "--out", "x.csv"), "--analyze"),
        (("--analyze", "flow.yaml", "table.csv", "--out", "table.csv"), "exists"),
        (("flow.yaml", "table.csv", "--without", "magic"), "magic"),
    ],
)
def test_what_cannot_be_analysed(ran: Ran, given: tuple[str, ...], said: str) -> None:
    code, out, err = ran("explain", *given)
    assert (code, out) == (2, "")
    assert said in err


def test_a_file_that_is_no_trace_is_refused(ran: Ran) -> None:
    code, _, err = ran("explain", "--analyze", "table.csv")
    assert code == 2 and "no trace" in err


# ---- from Python -------------------------------------------------------------------------------


def test_python_explains_functions_and_rows(folder: Path) -> None:
    team = llm("Is {{ team }} good?", max_tokens=8)

    @workflow
    def flow(team_name: str) -> str:
        return team(team=team_name)

    found = explain(flow, [{"team_name": f"t{n % 5}"} for n in range(50)])
    assert (found.rows, round(found.steps[0].calls)) == (50, 5)
    assert found.record()["steps"][0]["calls"] == 5
    assert "expected over 50 rows" in str(found)
    assert explain(flow).rows is None
    assert explain("flow.yaml", folder / "table.csv").rows == 40

    @workflow
    async def free(text: str) -> str:
        return await team(team=text)

    assert "no plan ahead" in str(explain(free))
    with pytest.raises(InvalidInput, match="no runs"):
        analyze("last")


PLACED = """
version: 1
name: judge
inputs: {team: string}
models:
  default: {backend: sglang, url: ["http://127.0.0.1:1", "http://127.0.0.1:2"]}
  large: {backend: sglang, url: "http://127.0.0.1:3"}
scheduling: {place: true}
steps:
  draft: {llm: "Draft. {{ team }}", max_tokens: 100}
  told: {llm: "Judge. {{ draft }}", model: large, max_tokens: 50}
output: "{{ told }}"
"""


def test_the_placement_on_several_servers_is_told(folder: Path) -> None:
    (folder / "placed.yaml").write_text(PLACED)
    found = explain("placed.yaml", "table.csv", hardware="h100")
    text, record = str(found), found.record()["placement"]
    assert "placement of 40 rows:" in text and "large/0: told 100%" in text
    assert "place: true" not in text, "the run follows it"
    assert record["followed"] and record["makespan_s"] >= record["bound_s"] > 0
    assert set(record["workers"]) == {"default/0", "default/1", "large/0"}
    assert explain("placed.yaml", "table.csv").record()["placement"] is None


# ---- statistics --------------------------------------------------------------------------------


def test_statistics_are_counted_by_the_models_tokenizer_and_kept_by_content(folder: Path) -> None:
    table, columns = open_table("table.csv"), {"team": "team", "text": "text"}
    tokens = tokens_of_spec(ModelSpec())
    assert tokens.name and tokens.before > 0, "the tiny model's own, with its chat template"
    asked: list[int] = []
    kept = folder / "home" / "stats"
    first = table_stats(table, columns, tokens, kept, tell=asked.append)
    assert first.columns["text"].mean_tokens == pytest.approx(
        sum(tokens.count([f"text {n}" for n in range(40)])) / 40
    )
    assert first.columns["text"].overlap_chars > 4

    class Unread:
        """The same file, which must not be looked through again."""

        fingerprint = table.fingerprint
        rows_total = 40

        def __iter__(self) -> Any:
            raise AssertionError("the statistics were kept")

    unread: Any = Unread()
    assert table_stats(unread, columns, tokens, kept) == first
    for other in (
        lambda: table_stats(unread, {"team": "team"}, tokens, kept),
        lambda: table_stats(unread, columns, tokens, kept, limit=3),
        lambda: table_stats(unread, columns, tokens_of_spec(ModelSpec(backend="fake")), kept),
    ):
        with pytest.raises(AssertionError):
            other()


def test_a_big_sorted_table_is_looked_at_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ROWS": 2_000, "BLOCK_ROWS": 50, "SMALL_BYTES": 0}.items():
        monkeypatch.setattr(f"tenter.runtime.table_stats.{name}", value)
    rows = "".join(f"{n // 10},{'x' * (n // 100)}\n" for n in range(20_000))
    (tmp_path / "sorted.csv").write_text(f"key,text\n{rows}")
    columns = {"key": "key", "text": "text"}
    found = table_stats(open_table(tmp_path / "sorted.csv"), columns, Tokens(), None)
    assert found.sampled and found.rows == 2_000
    assert found.columns["text"].mean_chars == pytest.approx(99.5, rel=0.06)
    assert found.columns["key"].same_as_last == pytest.approx(0.9, abs=0.01)
    whole = table_stats(open_table(tmp_path / "sorted.csv", limit=1_500), columns, Tokens(), None)
    assert whole.rows == 1_500 and not whole.sampled


def test_kept_statistics_that_cannot_be_read_are_taken_anew(folder: Path) -> None:
    table, columns = open_table("table.csv"), {"team": "team"}
    tokens, kept = tokens_of_spec(ModelSpec()), folder / "stats"
    first = table_stats(table, columns, tokens, kept)
    (path,) = kept.iterdir()
    for text in ("", "[]", "{", '{"version": 1}', "\udcff"):
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        assert table_stats(table, columns, tokens, kept) == first
    kept.chmod(0o500)
    table_stats(table, {"text": "text"}, tokens, kept)
    kept.chmod(0o700)


def test_old_statistics_are_thrown_away(folder: Path) -> None:
    table, tokens = open_table("table.csv"), tokens_of_spec(ModelSpec(backend="fake"))
    kept = folder / "stats"
    kept.mkdir()
    for number in range(FILES + 5):
        (kept / f"{number}.json").write_text("{}")
    table_stats(table, {"team": "team"}, tokens, kept)
    assert len(list(kept.iterdir())) == FILES


def test_progress_is_told_only_of_what_is_slow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("tenter.runtime.progress.monotonic", lambda: now_s)
    with slow("reading", "rows", json=True) as told:
        told(1)
        now_s = 1.5
        told(2)
        told(3)
        now_s = 3.0
        told(4)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["rows_done"] for line in lines] == [2, 4]
