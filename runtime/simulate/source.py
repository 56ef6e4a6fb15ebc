"""Workloads by name, as the command line and benchmarks ask for them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InvalidInput
from ..replay import Workload, at_rate, bfcl_web, poisson, read_workload, swe_bench, traced

LEAST_LIMIT = 1_024  # tokens
FINEST, COARSEST = 16, 256  # tokens of a page
PAGES = 256  # of a prompt, about

Generator = Callable[[int, float, int], Workload]
GENERATORS: dict[str, Generator] = {"swe-bench": swe_bench, "bfcl-web": bfcl_web}
KINDS = (
    "a JSONL workload (docs/replay.md), the trace.jsonl of a run or its folder, a generator: "
    + ", ".join(f"{name}:200" for name in GENERATORS)
    + "; or a pipeline and a table"
)


def load(name: str, per_s: float | None = None, seed: int = 0) -> Workload:
    """The workload `name`: KINDS says what that may be.

    `per_s` is the mean rate at which programs arrive. Generators need it; a file's own arrivals are
    drawn together or out to it, and become a Poisson process where the file has none. Raises
    InvalidInput.
    """
    if per_s is not None and not per_s > 0:
        raise InvalidInput(f"the rate of arrivals must be positive, not {per_s:g} per second")
    kind, colon, number = name.partition(":")
    if colon and kind in GENERATORS:
        return _generated(name, kind, number, per_s, seed)
    workload = _read(name)
    if per_s is None:
        return workload
    arrivals = [program.arrival_s for program in workload]
    if arrivals and arrivals[-1] > arrivals[0]:
        return at_rate(workload, per_s)
    return poisson(workload, per_s, seed)


def _generated(name: str, kind: str, number: str, per_s: float | None, seed: int) -> Workload:
    if not number.isdecimal() or int(number) == 0:
        raise InvalidInput(f"{name}: write how many programs: {kind}:200")
    if per_s is None:
        raise InvalidInput(
            f"{name} has no arrivals of its own; give a rate: --rate 0.1 (per second)"
        )
    return GENERATORS[kind](int(number), per_s, seed)


def _read(name: str) -> Workload:
    path = Path(name)
    if (path / "trace.jsonl").is_file():
        return replace(traced(path / "trace.jsonl"), name=path.name)
    if not path.is_file():
        raise InvalidInput(f"there is no workload {name!r}; give {KINDS}")
    if path.suffix in (".yaml", ".yml"):
        raise InvalidInput(
            f"{name} is a pipeline; say which rows it runs over: tenter simulate {name} TABLE.csv"
        )
    if path.suffix != ".gz":
        with path.open("rb") as file:
            if b'"RunStarted"' in file.readline(4096):
                return traced(path)
    return read_workload(path)


@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over a workload tells."""

    programs: int
    calls: int
    prompt_tokens: int
    longest_answer: int  # in tokens

    @property
    def limit_tokens(self) -> int:
        """A `max_tokens` that an author would set: a power of two that holds every answer."""
        return max(LEAST_LIMIT, 1 << max(self.longest_answer - 1, 0).bit_length())

    @property
    def page_tokens(self) -> int:
        """A power of two of which the mean prompt has some hundreds, so that a call costs as much
        whatever the prompts' length, and sharing is exact to half a percent."""
        wanted = self.prompt_tokens // max(self.calls, 1) // PAGES
        return min(max(FINEST, 1 << max(wanted, 1).bit_length() - 1), COARSEST)


def survey(workload: Workload) -> Survey:
    """Read all of `workload` once."""
    programs = calls = prompt_tokens = longest = 0
    for program in workload:
        programs += 1
        for turn in program.turns:
            calls += 1
            prompt_tokens += turn.prompt_tokens
            longest = max(longest, turn.output_tokens)
    return Survey(programs, calls, prompt_tokens, longest)
