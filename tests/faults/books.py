"""What was recorded and acknowledged, kept outside of the job: no resume may find less."""

from typing import Any

from tenter.runtime.journal.base import RowRecord, StepRecord

Key = tuple[int, str | None]  # a row and the path of a step; None: the row itself
EVERY_ROW = 1 << 40


class Broken(AssertionError):
    """An invariant does not hold. `rule` names it, for a shrunk story must break the same."""

    def __init__(self, rule: str, detail: object = "") -> None:
        super().__init__(f"{rule}: {detail}" if detail != "" else rule)
        self.rule = rule


class Book:
    """Every value that was handed to the journal, and which of them it has acknowledged."""

    def __init__(self) -> None:
        self._written: dict[Key, list[object]] = {}
        self.acknowledged: dict[Key, int] = {}  # the first of the values that it may have now
        self._durable: set[Key] = set()
        self.power_failed = False
        self.began = False  # whether a journal was ever opened

    def write(self, entry: StepRecord | RowRecord) -> None:
        """An entry is handed to the journal."""
        self._written.setdefault(_key(entry), []).append(_value(entry))

    def acknowledge(self, entry: StepRecord | RowRecord, sync: bool) -> None:
        """The journal says that it has an entry."""
        key = _key(entry)
        if isinstance(entry, StepRecord) and entry.value.startswith(b"~"):
            return
        values = self._written[key]
        self.acknowledged[key] = len(values) - 1 - values[::-1].index(_value(entry))
        if sync:
            self.made_durable()
            self._durable.add(key)

    def made_durable(self) -> None:
        """No power cut takes what has been acknowledged so far."""
        self._durable.update(self.acknowledged)

    def audit(self, file: Any) -> None:
        """An opened journal has what was acknowledged, and nothing that was not recorded."""
        found: dict[Key, object] = {
            **{key: _value(step) for key, step in file.steps(-1, EVERY_ROW).items()},
            **{(row, None): _value(record) for row, record in file.rows(-1, EVERY_ROW).items()},
        }
        for key, first in self.acknowledged.items():
            if key not in found:
                if self.power_failed and key not in self._durable:
                    continue
                raise Broken("an acknowledged record is lost", key)
            if found[key] not in self._written[key][first:] and not self.power_failed:
                raise Broken("an acknowledged record is another now", (key, found[key]))
        for key, value in found.items():
            if value not in self._written.get(key, ()):
                raise Broken("a record was never made", (key, value))
        self.power_failed = False
        self.began = True
        drafts = {key for key, value in found.items() if str(value).startswith("b'~")}
        self.acknowledged = {
            key: self._written[key].index(value)
            for key, value in found.items()
            if key not in drafts
        }
        self._durable = set(self.acknowledged)

    def interrupted(self) -> set[int]:
        """Rows in which a tool with an effect was begun and not ended."""
        return {
            row
            for row, path in self.acknowledged
            if path is not None and path.endswith("?") and (row, path[:-1]) not in self.acknowledged
        }

    def ended(self, row: int) -> bool:
        return (row, None) in self.acknowledged


def _key(entry: StepRecord | RowRecord) -> Key:
    return entry.row, entry.path if isinstance(entry, StepRecord) else None


def _value(entry: StepRecord | RowRecord) -> object:
    return entry.value if isinstance(entry, StepRecord) else (entry.value, entry.error)
