"""Families of stop rules, each from careful to bold: what calibration tries, and steps back in.

`LADDER` waits until an answer has stood; `SURE` asks for the confidence of one trial answer (DEER,
2504.15895), which takes a backend that tells token probabilities; `CUTS` are the fair control as a
rule: stop at a length, and force the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .recorded import Recorded
from .rules import DEFAULT, LADDER, NEVER, StopRule

TYPICAL_TOKENS = 3_000  # of the thoughts that the families were made for
SHORT = 0.5  # of them, below which probes come as much earlier

# Probes are few: each costs some tens of tokens, and a thought that is not sure is asked again.
_SURE = replace(DEFAULT, start_tokens=768, step_tokens=384, ratio=1.3, agree=1, cap=1.0)
SURE = (
    replace(_SURE, name="sure-99-thrice", confidence=0.99, agree=3),
    replace(_SURE, name="sure-99-twice", confidence=0.99, agree=2),
    *(
        replace(_SURE, name=f"sure-{name}", confidence=int(name) / 10 ** len(name))
        for name in ("995", "99", "98", "95", "90", "80")
    ),
)

# In percent of a typical thought.
_CUTS = (400, 300, 250, 200, 175, 150, 125, 100, 85, 70, 60, 50, 40, 35, 30, 25, 20, 15, 10)
CUTS = tuple(
    replace(NEVER, name=f"cut-{share}%", cut_tokens=TYPICAL_TOKENS * share // 100)
    for share in _CUTS
)


@dataclass(frozen=True, slots=True)
class Family:
    """Rules from careful to bold: each is tried only if those before it have passed.

    `weight`: how much of the error that calibration may make is this family's.
    """

    name: str
    rules: tuple[StopRule, ...]
    weight: int = 1

    @property
    def confidence(self) -> bool:
        """Whether its rules ask for the confidence of trial answers."""
        return any(rule.confidence is not None for rule in self.rules)


# Most of the error is for those that were made with care; a cut that is the best is so by far.
FAMILIES = (Family("standing", LADDER, 3), Family("sure", SURE, 2), Family("cut", CUTS, 1))


def safer(rule: StopRule, families: Sequence[Family] = FAMILIES) -> StopRule:
    """The next more careful rule of its family, for thoughts of as many tokens; at last `NEVER`."""
    for family in families:
        names = [each.name for each in family.rules]
        at = names.index(rule.name) if rule.name in names else 0
        if at > 0:
            known = family.rules[at]
            scale = (
                rule.cut_tokens / known.cut_tokens
                if rule.cut_tokens and known.cut_tokens
                else rule.start_tokens / known.start_tokens
            )
            return replace(family.rules[at - 1].scaled(scale), step_tokens=rule.step_tokens)
    return NEVER


def families_for(records: Sequence[Recorded]) -> tuple[list[Family], list[str]]:
    """The families to try on these thoughts, for their length, and why others are not tried.

    Where thoughts are less than half as long as `TYPICAL_TOKENS`, probes start and follow as much
    earlier; a cut goes by their length in any case. Nothing is asked before the first trial that
    was recorded.
    """
    lengths = sorted(record.tokens for record in records)
    scale = lengths[len(lengths) // 2] / TYPICAL_TOKENS if lengths else 1.0
    trials = [trial for record in records for trial in record.trials]
    first = max((record.trials[0].at_tokens for record in records if record.trials), default=1)
    sure = any(trial.logprobs for trial in trials)
    tried, left_out = list[Family](), list[str]()
    for family in FAMILIES:
        if family.confidence and not sure:
            left_out.append(f"no confidence was recorded, so {family.name!r} rules were not tried")
            continue
        rules = (_scaled(rule, scale, first) for rule in family.rules)
        kept = tuple(rule for rule in rules if rule.cut_tokens is None or rule.cut_tokens >= first)
        tried.append(replace(family, rules=kept))
    return tried, left_out


def _scaled(rule: StopRule, scale: float, first: int) -> StopRule:
    made = rule.scaled(scale) if rule.cut_tokens or scale < SHORT else rule
    return replace(made, start_tokens=max(first, made.start_tokens))
