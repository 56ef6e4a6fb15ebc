"""Our own format of workloads, for traces that users bring: JSONL, described in docs/replay.md.

The first line is `{"tenter_workload": 1, "name": ...}`, each further one a program. Reading is lazy:
one line is in memory at a time.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, cast

import msgspec

from ..errors import InvalidInput
from .program import POSITION_BITS, Program, Turn, Workload

VERSION = 1
LONGEST_LINE_BYTES = 64 << 20  # a longer one is no program, and is not read into memory


class _Header(msgspec.Struct, frozen=True):
    tenter_workload: int
    name: str = ""


def read_workload(path: Path | str) -> Workload:
    """The workload in a file, gzipped if its name ends in `.gz`.

    Raises InvalidInput at once for a file that is no workload of a version known here, and while
    iterating for a line that is no program; the message names the line and the field.
    """
    path = Path(path)
    header = next(_lines(path), None)
    return Workload(_name(path, header), lambda: _programs(path))


def write_workload(workload: Workload, path: Path | str) -> int:
    """Write `workload` into a file, gzipped if its name ends in `.gz`; how many programs it had."""
    encode = msgspec.json.Encoder().encode
    with _open(Path(path), "wb") as file:
        file.write(encode(_Header(VERSION, workload.name)) + b"\n")
        return sum(1 for program in workload if file.write(encode(program) + b"\n"))


def _open(path: Path, mode: Literal["rb", "wb"]) -> IO[bytes]:
    if path.suffix != ".gz":
        return path.open(mode)
    return cast(IO[bytes], gzip.GzipFile(path, mode, mtime=0))  # equal workloads, equal files


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(path, "rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE_BYTES):
                number += 1
                if len(line) == LONGEST_LINE_BYTES:
                    raise _wrong(path, number, "a program's line is shorter than 64 MiB")
                yield line
    except (OSError, EOFError) as error:  # gzip raises both for what is no gzip
        raise InvalidInput(f"workload {path}: {error}") from None


def _wrong(path: Path, line: int, what: object) -> InvalidInput:
    return InvalidInput(f"workload {path}:{line}: {what}")


def _name(path: Path, line: bytes | None) -> str:
    expected = f'the first line must be {{"tenter_workload": {VERSION}, "name": ...}}'
    try:
        header = msgspec.json.decode(line or b"", type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _wrong(path, 1, expected) from None
    if header.tenter_workload != VERSION:
        version = header.tenter_workload
        raise _wrong(path, 1, f"this is version {version}; {expected}")
    return header.name or path.name


def _programs(path: Path) -> Iterator[Program]:
    decode, latest_s = msgspec.json.Decoder(Program).decode, 0.0
    for number, line in enumerate(_lines(path), start=1):
        if number == 1:
            _name(path, line)
            continue
        try:
            program = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _wrong(path, number, error) from None
        if problem := _problem(program, latest_s):
            raise _wrong(path, number, problem)
        latest_s = program.arrival_s
        yield program


def _problem(program: Program, latest_s: float) -> str | None:
    """What the types do not say."""
    if program.arrival_s < latest_s:
        return f"{program.arrival_s} is before the line above ({latest_s}) - at `$.arrival_s`"
    for i, stage in enumerate(program.stages):
        for j, turn in enumerate(stage):
            if problem := _turn_problem(turn):
                return f"{problem[0]} - at `$.stages[{i}][{j}].{problem[1]}`"
    return None


def _turn_problem(turn: Turn) -> tuple[str, str] | None:
    for index, span in enumerate(turn.prompt):
        if span.stop <= span.start:
            return "a span [stream, start, stop] needs stop > start", f"prompt[{index}]"
    if turn.answer.stop > 1 << POSITION_BITS:
        return "the answer ends beyond the stream's last position", "output_tokens"
    return None
