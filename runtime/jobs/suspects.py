"""Rows that may kill the process that runs them, such as by a crash in a library: found, and failed.

Rows that were running when two processes in a row died are suspects. They run before the others, and
fewer and fewer side by side, until a process dies of one row alone. Pure.
"""

from collections.abc import Collection, Mapping

from msgspec import Struct

SUSPECT_DEATHS = 2  # from which on a row runs in the company of suspects alone
FATAL_DEATHS = 3  # the last one alone: the row has killed them, if other rows have ended meanwhile;
UNPROVEN_DEATHS = 6  # if none has, it may be the machine, or the model
OUTSIDE = 4  # times as many where nobody sees what a process dies of: it may be killed from outside
NARROWING = 8  # a group of suspects that died is run in so many parts


class Suspicion(Struct, frozen=True, array_like=True):
    """What is held against a row: `deaths` in a row of processes that ran it, without anything
    of it being recorded in between.

    At most `company` rows run beside each other from now on, itself included; 0: as many as may.
    `since`: rows that had ended before the first death. `fatal`: the row has been found to kill.
    """

    deaths: int
    company: int
    since: int
    fatal: bool = False


class Suspects:
    """The rows that processes died with, until they have ended.

    It takes `patience` times as many deaths as else to fail a row.
    """

    def __init__(self, known: Mapping[int, Suspicion] | None = None, patience: int = 1) -> None:
        self.known = dict(known or {})
        self._patience = patience

    def died(self, running: Collection[int], moved: Collection[int], ended: int) -> int | None:
        """A process has died with these rows running; the one that killed it, if that is known.

        Of those that have `moved` something was recorded since the death before. `ended`: how many
        rows have ended in all.
        """
        company = max(1, len(running) // NARROWING)
        for row in running:
            before = None if row in moved else self.known.get(row)
            self.known[row] = _next(before, company, ended)
        if len(running) != 1:
            return None
        (row,) = running
        found = self.known[row]
        least = FATAL_DEATHS if ended > found.since else UNPROVEN_DEATHS
        if found.deaths < least * self._patience:
            return None
        self.known[row] = Suspicion(found.deaths, 1, found.since, fatal=True)
        return row

    def of(self, row: int) -> Suspicion | None:
        """What is held against a row, if that matters."""
        found = self.known.get(row)
        return found if found is not None and found.company else None

    def rank(self, row: int) -> tuple[bool, int]:
        """The place of a row among others."""
        return rank(self.of(row))

    def ended(self, row: int) -> None:
        """A row has ended, however."""
        self.known.pop(row, None)


def rank(suspicion: Suspicion | None) -> tuple[bool, int]:
    """The place of a row: suspects first, the least suspicious of them."""
    return suspicion is None, 0 if suspicion is None else suspicion.deaths


def _next(before: Suspicion | None, company: int, ended: int) -> Suspicion:
    """What is held against a row after one more death."""
    if before is None:
        return Suspicion(1, 0, ended)
    return Suspicion(before.deaths + 1, company, before.since)


def verdict(deaths: int) -> str:
    """Why a row is failed that has killed its process."""
    return (
        f"the process that ran this row died {deaths} times, at last with no other row beside it, "
        "as by a crash in a library or for lack of memory; mend what it calls, or its input, then "
        "retry the row"
    )


class Gate:
    """Which rows may begin: all, but suspects only with as few beside them as each allows."""

    def __init__(self) -> None:
        self._running: dict[int, int] = {}  # each with its company
        self._suspects = 0

    def __len__(self) -> int:
        return len(self._running)

    def fits(self, suspicion: Suspicion | None) -> bool:
        """Whether such a row may begin now."""
        if suspicion is None:
            return not self._suspects
        alone = self._suspects == len(self._running)
        return alone and len(self._running) < min([suspicion.company, *self._running.values()])

    def begin(self, row: int, suspicion: Suspicion | None) -> None:
        self._running[row] = 0 if suspicion is None else suspicion.company
        self._suspects += suspicion is not None

    def ended(self, row: int) -> None:
        if self._running.pop(row, 0):
            self._suspects -= 1
