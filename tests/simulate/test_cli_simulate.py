"""`tenter simulate`: a table for people, JSON lines for programs, errors that say what is wrong."""

import json
from pathlib import Path

import pytest

from tenter.runtime.cli import main
from tenter.runtime.replay import swe_bench, write_workload

SMALL = ["simulate", "bfcl-web:8", "--rate", "0.5", "--seed", "3"]


def test_a_table_has_a_line_per_policy_and_order(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--policy", "stock,continuum", "--order", "fcfs,least-attained"]
    assert main([*SMALL, *asked]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:3] == ["policy", "order", "mean"]
    names = [(line[0], line[1]) for line in lines[1:]]
    assert names == [
        ("stock", "call-fcfs"),
        ("continuum", "fcfs"),
        ("continuum", "least-attained"),
    ]
    assert "bfcl-web: 8 programs" in err and "tokens of KV each" in err


def test_json_lines_have_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json", "--replicas", "2", "--host-gb", "10"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [record for record in records if record["type"] == "simulated"]
    assert [record["policy"] for record in done] == ["stock", "shadow-price"]
    for record in done:
        assert record["programs"] + record["failed"] == 8 and record["replicas"] == 2
        assert 0 < record["p50_completion_s"] <= record["p95_completion_s"]
        assert record["gpu_seconds"] == pytest.approx(2 * record["span_s"])


def test_what_ifs_change_the_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    def mean_s(*more: str) -> float:
        assert main([*SMALL, "--json", "--policy", "stock", *more]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["mean_completion_s"]

    usual = mean_s()
    assert mean_s("--slower-tools", "3") > usual
    assert mean_s("--hardware", "a100") > usual
    assert mean_s() == usual


def test_a_file_is_cut_to_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "agents.jsonl.gz")
    write_workload(swe_bench(6, 0.5, 1), path)
    assert main(["simulate", path, "--kv-share", "0.1", "--programs", "5", "--json"]) == 0
    assert main(["simulate", path, "--kv-share", "0.1", "--programs", "5"]) == 0
    assert "calls that do not fit are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["simulate", "swe-bench:5"], "give a rate: --rate 0.1"),
        (["simulate", "no.jsonl"], "there is no workload 'no.jsonl'"),
        ([*SMALL, "--policy", "best"], "no retention policy 'best'"),
        ([*SMALL, "--order", "best"], "no order 'best'"),
        ([*SMALL, "--hardware", "tpu"], "no hardware 'tpu'"),
        ([*SMALL, "--slower-tools", "0"], "--slower-tools must be positive"),
        ([*SMALL, "--programs", "0"], "--programs must be 1 or more"),
        ([*SMALL, "--kv-share", "0.003"], "no call fits into"),
        ([*SMALL, "--report", "no/page.html"], "the report cannot be written: no/page.html"),
    ],
    ids=lambda given: given[-1] if isinstance(given, list) else "",
)
def test_errors_say_what_is_wrong(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_what_ifs_are_asked_of_every_policy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SMALL, "--json", "--what-if"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [line for line in lines if line["type"] == "simulated"]
    assert [line.get("what_if") for line in done[:4]] == [
        *(None, "tools x 2", "half the memory", "one replica more")
    ]
    usual, slower, half, more = done[4:]
    assert slower["mean_completion_s"] > usual["mean_completion_s"]
    assert half["kv_tokens"] == usual["kv_tokens"] // 2
    assert more["replicas"] == 2 and more["gpu_seconds"] > usual["gpu_seconds"]


def test_a_report_is_one_page_that_fetches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    assert main([*SMALL, "--what-if", "--report", str(path)]) == 0
    text = path.read_text()
    assert "half the memory" in capsys.readouterr().out
    assert text.count("<polyline") == 8 and text.count("<tr>") == 9
    for word in ("http:", "https:", "<script", "src=", "@import", "url("):
        assert word not in text


FAKE = """\
version: 1
name: fake
inputs: {text: string}
models: {default: {backend: fake, reply: fine}}
steps: {answer: {llm: "Say something about {{ text }}."}}
output: "{{ answer }}"
"""


def test_a_run_is_given_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fake.yaml").write_text(FAKE)
    Path("table.csv").write_text("text\nsoup\nbread\n")
    assert main(["map", "fake.yaml", "table.csv", "--out", "out.csv"]) == 0
    assert main(["simulate", "last"]) == 0
    assert ": 2 programs, 2 calls" in capsys.readouterr().err
    assert main(["simulate", "run_none"]) == 2
    assert "there is no run 'run_none'" in capsys.readouterr().err
