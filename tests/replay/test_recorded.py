"""Readers of recorded files, on small files made here and, where it is, on the shared data."""

import gzip
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from tenter.runtime.errors import InvalidInput
from tenter.runtime.replay import (
    Workload,
    azure_code,
    bfcl,
    coding_sessions,
    mooncake,
    shared_tokens,
    text2sql,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
shared_data = pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")

COLUMNS = "trace,path,req,type,model,t,in,out,api_time,think_time,lcp_prev,lcp_best,tool_tokens,system_tokens"


def sessions(path: Path, rows: Iterable[str]) -> Path:
    """Rows are trace,path,t,in,out,api_time,think_time,lcp_prev,lcp_best."""
    lines = [COLUMNS]
    for row in rows:
        trace, agent, at, tokens, out, api, think, previous, best = row.split(",")
        place = f"{trace},{agent},0,n,m,{at},{tokens},{out}"
        lines.append(f"{place},{api},{think},{previous},{best},400,100")
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path


ROWS = (
    "a,,0,1000,50,5,0,0,0",
    "a,,20,1200,50,5,15,15,15",  # goes on: all 15 blocks
    "a,,400,1300,50,5,375,10,10",  # edited after block 10
    "a,,420,1250,50,,,10,18",  # back to the second request
    "a,/2,0,700,9,1,0,0,0",  # an agent of its own
    "b,,0,900,50,5,0,0,0",
)


def test_a_coding_session_shares_what_was_recorded(tmp_path: Path) -> None:
    main, agent, other = coding_sessions(sessions(tmp_path / "s.csv.gz", ROWS), "recorded")
    first, second, third, fourth = (turn.prompt for turn in main.turns)
    assert [turn.prompt_tokens for turn in main.turns] == [1000, 1200, 1300, 1250]
    assert shared_tokens(first, second) == 1000
    assert shared_tokens(second, third) == 10 * 64
    assert shared_tokens(second, fourth) == 18 * 64
    assert shared_tokens(third, fourth) == 10 * 64
    # Within a trace nothing was shared; between traces the equal heads of 400 + 100 tokens are.
    assert shared_tokens(first, next(agent.turns).prompt) == 0
    assert shared_tokens(first, next(other.turns).prompt) == 500
    assert (main.name, agent.name, main.user, agent.user) == ("a", "a/2", "a", "a")


def test_an_answer_is_part_of_the_prompt_that_goes_on(tmp_path: Path) -> None:
    main, *_ = coding_sessions(sessions(tmp_path / "s.csv.gz", ROWS))
    first, second, *_ = main.turns
    assert shared_tokens((*first.prompt, first.answer), second.prompt) == 1050


def test_long_gaps_are_kept_drawn_or_capped(tmp_path: Path) -> None:
    path = sessions(tmp_path / "s.csv.gz", ROWS)

    def pauses(*how: object) -> list[tuple[float, str]]:
        main, *_ = coding_sessions(path, *how)  # type: ignore[arg-type]
        return [(turn.pause.seconds, turn.pause.kind) for turn in main.turns if turn.pause]

    # The gap before the last request was not recorded: 20 s less 5 s of the answer.
    assert pauses("recorded") == [(15, "tool"), (375, "human"), (15, "tool")]
    assert pauses("drawn") == [(15, "tool"), (15, "tool"), (15, "tool")]
    assert pauses("capped") == [(15, "tool"), (60, "tool"), (15, "tool")]
    with pytest.raises(ValueError, match="gaps must be"):
        pauses("shortened")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,,20,many,50,5,15,15,15", "s.csv.gz:3: invalid literal"),
        ("a,,20,1200,50,5,nan,15,15", "s.csv.gz:3: 'nan' is no finite number"),
        ("a,,20,1200,50,5,15,99,99", "s.csv.gz:3: no earlier request of the trace has 99 blocks"),
    ],
)
def test_damaged_sessions_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = sessions(tmp_path / "s.csv.gz", [ROWS[0], row, ROWS[5]])
    with pytest.raises(InvalidInput, match=message):
        list(coding_sessions(path))


def chats(path: Path, *asked: tuple[float, int, int, list[int]]) -> Path:
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(names, one, strict=True))) + "\n" for one in asked))
    return path


def test_mooncake_requests_become_conversations(tmp_path: Path) -> None:
    path = chats(
        tmp_path / "m.jsonl",
        (0, 1100, 7, [0, 1, 2]),
        (500, 1030, 7, [0, 5, 6]),
        (4000, 1600, 7, [0, 1, 3, 4]),  # has the whole blocks 0 and 1 of the first
        (9000, 600, 7, [0, 9]),  # shares one block only: somebody else
    )
    first, second, third = mooncake(path)
    assert [program.arrival_s for program in (first, second, third)] == [0.0, 0.5, 9.0]
    one, two = first.turns
    assert one.pause is not None and (one.pause.seconds, one.pause.kind) == (4.0, "human")
    assert shared_tokens(one.prompt, two.prompt) == 1024
    assert shared_tokens(one.prompt, next(second.turns).prompt) == 512
    assert (one.prompt_tokens, two.prompt_tokens, two.pause) == (1100, 1600, None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((0, 1100, 7, [0]), "one block per 512 tokens"),
        ((0, 0, 7, []), "input_length must be at least 1"),
        ((-5, 10, 7, [0]), "timestamps go back"),
    ],
)
def test_damaged_chats_are_named(
    tmp_path: Path, asked: tuple[float, int, int, list[int]], message: str
) -> None:
    path = chats(tmp_path / "m.jsonl", (0, 10, 1, [1]), asked)
    with pytest.raises(InvalidInput, match=f"m.jsonl:2: .*{message}"):
        list(mooncake(path))


def test_completions_share_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.9799600,4808,0\n"
    )
    first, second = azure_code(path)
    assert (first.arrival_s, second.arrival_s) == (0.0, 2.0)
    one, two = next(first.turns), next(second.turns)
    assert shared_tokens(one.prompt, two.prompt) == 0 and two.output_tokens == 1


STEPS = (
    ("Information Retriever", 301, 26),
    ("generate_candidate_llama-agent", 11909, 663),
    ("generate_candidate_llama-agent", 8043, 439),
    ("revise", 5859, 74),
    ("revise", 5900, 74),
    ("evaluate", 958, 22),
    ("evaluate", 960, 22),
)


def test_a_text_to_sql_request_is_a_pipeline(tmp_path: Path) -> None:
    names = ("step", "input_length", "output_length")
    request = {"Text2SQLRequest": [dict(zip(names, step, strict=True)) for step in STEPS]}
    path = tmp_path / "t.json"
    path.write_text(json.dumps([request, request]))
    first, second = text2sql(path)
    assert [len(stage) for stage in first.stages] == [1, 2, 1, 1, 2]
    assert [turn.prompt_tokens for turn in first.turns] == [step[1] for step in STEPS]
    # Templates are shared by all requests, the rest of a step's prompt by its own request's calls.
    for mine, theirs, template in zip(
        first.turns, second.turns, (213, 9158, 5292, 3059, 3059, 261, 261), strict=True
    ):
        assert shared_tokens(mine.prompt, theirs.prompt) == template
    revise, again = first.stages[2][0], first.stages[3][0]
    assert shared_tokens(revise.prompt, again.prompt) == 5859 - 128
    path.write_text('[{"Text2SQLRequest": []}]')
    with pytest.raises(InvalidInput, match="t.json: .*length >= 1"):
        list(text2sql(path))


def test_a_tool_use_task_calls_and_answers(tmp_path: Path) -> None:
    task = {
        "id": "t0",
        "question": [[{"role": "user", "content": "x" * 40}], [{"role": "user", "content": "y"}]],
        "path": ["Files.ls", "Files.mv", "Chat.post"],
        "involved_classes": ["Files", "Chat"],
    }
    other = {**task, "id": "t1", "path": [], "involved_classes": ["Chat", "Files"]}
    path = tmp_path / "b.json"
    path.write_text(json.dumps(task) + "\n" + json.dumps(other) + "\n")
    first, second = bfcl(path, tool_s=0.5, human_s=9.0, class_tokens=100)
    pauses = [turn.pause for turn in first.turns]
    assert [p and (p.kind, p.tool, p.word, p.seconds) for p in pauses] == [
        ("tool", "Files", "ls", 0.5),
        ("tool", "Chat", "post", 0.5),
        ("human", "", "", 9.0),
        ("tool", "Files", "mv", 0.5),
        None,
    ]
    for before, after in pairwise(first.turns):
        assert shared_tokens((*before.prompt, before.answer), after.prompt) == (
            before.prompt_tokens + before.output_tokens
        )
    assert shared_tokens(next(first.turns).prompt, next(second.turns).prompt) == 200


@pytest.mark.parametrize("reader", [coding_sessions, mooncake, azure_code, text2sql, bfcl])
def test_a_missing_file_is_named(tmp_path: Path, reader: type[Workload]) -> None:
    with pytest.raises(InvalidInput, match="nothing.gz: .*No such file"):
        list(reader(tmp_path / "nothing.gz"))  # type: ignore[arg-type, call-arg]


@shared_data
@pytest.mark.parametrize(
    ("reader", "file", "programs", "calls"),
    [
        (coding_sessions, "agents/coding_sessions.csv.gz", 380, 24_434),
        (mooncake, "agents/mooncake_conversation.jsonl.gz", 8_099, 12_031),
        (azure_code, "lengths/azure_code.csv.gz", 8_819, 8_819),
        (bfcl, "agents/bfcl_multi_turn_base.json.gz", 200, 1_907),
        (text2sql, "text2sql/input_file_trace1.json", 90, 1_732),
        (text2sql, "text2sql/input_file_trace2.json", 96, 1_984),
    ],
)
def test_the_shared_files_are_read_whole(
    reader: type[Workload], file: str, programs: int, calls: int
) -> None:
    workload = list(reader(DATA / file))  # type: ignore[arg-type, call-arg]
    assert len(workload) == programs
    assert sum(1 for program in workload for _ in program.turns) == calls
    arrivals_s = [program.arrival_s for program in workload]
    assert arrivals_s == sorted(arrivals_s)
