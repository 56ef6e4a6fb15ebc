"""Reading recorded files: text that may be gzipped, finite numbers, errors that name the place."""

import gzip
import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from ..errors import InvalidInput


@contextmanager
def open_text(path: Path) -> Generator[IO[str], None, None]:
    """The text of a file, gunzipped if its name ends in `.gz`.

    Raises InvalidInput where it cannot be read, also from within the block.
    """
    try:
        with (
            cast(IO[str], gzip.open(path, "rt", encoding="utf-8"))
            if path.suffix == ".gz"
            else path.open(encoding="utf-8")
        ) as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from None


def number(text: str) -> float:
    """A finite number. Raises ValueError for anything else."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no finite number")
    return value


def row_error(path: Path, line: int, error: Exception) -> InvalidInput:
    """What to raise for a row that is not what the reader expects."""
    what = f"there is no column {error}" if isinstance(error, KeyError) else error
    return InvalidInput(f"{path}:{line}: {what}")
