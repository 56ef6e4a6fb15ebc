"""Tables for the workflows of `counted_flow`, and what its engines have counted."""

import csv
import random
from pathlib import Path

FLOW = f"{Path(__file__).with_name('counted_flow.py')}:counted"


def table(path: Path, rows: int, deadly: int | None = None) -> Path:
    rng = random.Random(7)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ticket", "sum"])
        for row in range(rows):
            terms = " + ".join(str(rng.randint(2, 99)) for _ in range(rng.randint(2, 5)))
            what = "is deadly" if row == deadly else "never arrived"
            writer.writerow([f"My parcel {row} {what}.", terms])
    return path


def drawn_by(counts: Path) -> dict[int, Path]:
    """The file of each process that has drawn tokens."""
    return {int(path.name): path for path in counts.iterdir() if path.name.isdecimal()}


def tokens(counts: Path) -> int:
    """All that were drawn."""
    return sum(path.stat().st_size for path in drawn_by(counts).values())


def open_tokens(counts: Path) -> int:
    """Those that were drawn for calls in flight, when their processes ended."""
    return sum(int(path.read_bytes() or b"0") for path in counts.glob("*.open"))
