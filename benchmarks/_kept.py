"""What a benchmark has measured so far, in a file, so that one that was stopped goes on."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Kept:
    """Results by what was measured: a JSON line each, in `path` if there is one."""

    path: Path | None = None
    known: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    @classmethod
    def of(cls, path: Path | None) -> "Kept":
        """What the file has; a last line that was cut short is measured again."""
        kept = cls(path)
        text = path.read_text() if path is not None and path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for line in whole.splitlines():
            row = json.loads(line)
            kept.known[row["key"]] = row["result"]
        if path is not None and whole != text:
            path.write_text(whole)
        return kept

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result kept under `key`, or measured now."""
        if key not in self.known:
            self.add(key, measure())
        return self.known[key]

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Keep `result`, which is JSON."""
        self.known[key] = result
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "result": result}) + "\n")
