"""The files that a job has written."""

import csv
import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output file."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in lines(path)]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
