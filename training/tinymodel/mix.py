"""Draws conversations: which job, dressed in which system message, documents and earlier turns."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from . import agents, arithmetic, reading
from .chat import Span, Turn, render, said
from .sample import Random, Sample
from .words import SYSTEM_SENTENCES, idle_text

JOBS: Mapping[str, Callable[[Random], Sample]] = {
    "arithmetic": arithmetic.arithmetic,
    "reason": arithmetic.reason,
    "multiply": arithmetic.multiply,
    "word": arithmetic.word_problem,
    "verify": arithmetic.verify,
    "classify": reading.classify,
    "route": reading.route,
    "extract": reading.extract,
    "reply": reading.reply,
    "repeat": reading.repeat,
    "small_talk": reading.small_talk,
    "agent_total": agents.agent_total,
    "agent_steps": agents.agent_steps,
    "agent_stock": agents.agent_stock,
    "agent_lookup": agents.agent_lookup,
    "agent_session": agents.repeat_lookups,
}
WEIGHTS: Mapping[str, float] = {
    "arithmetic": 8,
    "reason": 4,
    "multiply": 6,
    "word": 5,
    "verify": 3,
    "classify": 4,
    "route": 3,
    "extract": 5,
    "reply": 2.5,
    "repeat": 2,
    "small_talk": 0.2,
    "agent_total": 3.5,
    "agent_steps": 1.5,
    "agent_stock": 0.5,
    "agent_lookup": 1.2,
    "agent_session": 0.3,
}
CLOSED_JOBS = frozenset({"small_talk"})  # fixed answers: nothing is held out
MAY_SKIP_THINKING = frozenset({"classify", "route", "extract", "reply"})


def draw(r: Random, job: str = "", held_out: bool = False) -> Sample:
    """A bare sample of `job` (or of a random one) from the training or the evaluation side."""
    job = job or r.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    while True:
        sample = JOBS[job](r)
        if job in CLOSED_JOBS or sample.held_out == held_out:
            return sample


def draw_dressed(r: Random, row_tokens: int) -> Sample:
    """A training sample with the surroundings that a row of `row_tokens` has room for."""
    sample = draw(r)
    if sample.job in MAY_SKIP_THINKING and r.random() < 0.08 and len(sample.turns) == 2:
        sample = reading.without_thinking(sample)
    if not sample.tools and r.random() < 0.12:
        sample = _after_earlier_turns(r, sample)
    sample = replace(sample, system=short_system(r))
    if r.random() < (0.06 if row_tokens <= 256 else 0.25):
        sample = beside_documents(r, sample, _idle_length(r, row_tokens))
    return sample


def short_system(r: Random) -> str:
    """No system message, or one of a few sentences."""
    count = r.choice((0, 0, 0, 0, 1, 1, 2, 4))
    return " ".join(r.sample(SYSTEM_SENTENCES, count))


def _idle_length(r: Random, row_tokens: int) -> int:
    """Log-uniform between a sentence and most of a row."""
    longest = max(32.0, row_tokens * 0.7)
    return int(20 * (longest / 20) ** r.random())


def beside_documents(r: Random, sample: Sample, tokens: int) -> Sample:
    """The sample with about `tokens` tokens of irrelevant text before its question."""
    text = idle_text(r, tokens)
    place = r.randrange(3)
    if place == 0:
        system = f"{sample.system} {text}" if r.random() < 0.5 else f"{text} {sample.system}"
        return replace(sample, system=system.strip())
    if place == 1:
        head = r.choice(("Documents:\n{}\n\n", "{}\n\n", "Notes: {}\n\n", "Background:\n{}\n\n"))
        first = Turn("user", (Span(head.format(text) + sample.turns[0].text),))
        return replace(sample, turns=(first, *sample.turns[1:]))
    noted = said("assistant", r.choice(("Noted.", "I have read it.", "What is the question?")))
    opening = r.choice(("Read this first.\n{}", "{}", "Keep this in mind:\n{}")).format(text)
    return replace(sample, turns=(said("user", opening), noted, *sample.turns))


def _after_earlier_turns(r: Random, sample: Sample) -> Sample:
    """The sample after one to three other questions in the same conversation."""
    earlier: list[Turn] = []
    for _ in range(r.randint(1, 3)):
        other = draw(r)
        if not other.tools:
            earlier.extend(other.turns)
    return replace(sample, turns=(*earlier, *sample.turns))


def spans_of(sample: Sample) -> list[Span]:
    """The sample as text with its loss mask."""
    return render(sample.turns, sample.system, sample.tools)


def full_text(sample: Sample) -> str:
    """The sample as text."""
    return "".join(span.text for span in spans_of(sample))
