"""Strategies by name, from plain settings: what a `reason` step in Python or YAML says."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

from ...planner.graph import Sampling
from .answers import Equivalence, choice_of, exact, extract, json_value, math_value
from .rules import DEFAULT, NEVER, StopRule
from .strategy import SUFFIX, Step
from .thought import ChainOfThought
from .votes import FirstFinish, SelfConsistency, Vote

STRATEGIES: dict[str, type[Step]] = {
    "thought": ChainOfThought,
    "self-consistency": SelfConsistency,
    "vote": Vote,
    "first-finish": FirstFinish,
}
DEFAULT_STRATEGY = "thought"
SAMPLING = Sampling(max_tokens=4096, temperature=0.6, top_p=0.95)  # unless a step says otherwise
ANSWERS: dict[str, Equivalence] = {"math": math_value, "exact": exact, "json": json_value}
RULES = {"default": DEFAULT, "full": NEVER}
THOUGHT_END = "</think>"

# Settings that every strategy has; those of its own are the fields of its class.
COMMON = ("answers", "budget_tokens", "suffix", "answer_tokens", "rule", "shadow")


def checked(strategy: str, settings: Mapping[str, Any]) -> str:
    """`settings` as canonical JSON; ValueError names what is unknown or out of range."""
    build(strategy, settings, 256, 0, 0)
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def build(
    strategy: str,
    settings: Mapping[str, Any],
    limit_tokens: int,
    seed: int,
    suffix_tokens: int,
    stop: bool = True,
) -> Step:
    """A fresh state machine: `limit_tokens` bounds one sample, and with `stop` false a chain of
    thought goes to its end (a shadow run). Raises ValueError for settings that cannot be."""
    kind = STRATEGIES.get(strategy)
    if kind is None:
        raise ValueError(f"there is no strategy {strategy!r}; there is {', '.join(STRATEGIES)}")
    own = {each.name for each in fields(kind) if each.init} - {each.name for each in fields(Step)}
    own -= {"stop", "rule"}
    known = (*COMMON, *sorted(own))
    for name in settings:
        if name not in known:
            raise ValueError(f"{strategy} has no setting {name!r}; it has {', '.join(known)}")
    given: dict[str, Any] = {name: settings[name] for name in own if name in settings}
    _typed(strategy, kind, given)
    n = given.get("n", 8 if strategy != "thought" else 1)
    if kind is ChainOfThought:
        given |= {"rule": rule_of(settings.get("rule", "default")), "stop": stop}
    elif "rule" in settings:
        raise ValueError(f"{strategy} has no stop rule; 'thought' has")
    share = settings.get("shadow", 0.0)
    if not _number(share) or not 0 <= share <= 1:
        raise ValueError(f"shadow is a share of the programs, from 0 to 1, not {share!r}")
    answer_tokens = _whole("answer_tokens", settings.get("answer_tokens", 32))
    spare = 64 * (suffix_tokens + answer_tokens)
    return kind(
        budget_tokens=_whole(
            "budget_tokens", settings.get("budget_tokens", n * limit_tokens + spare)
        ),
        limit_tokens=limit_tokens,
        seed=seed,
        equivalence=_equivalence(settings.get("answers", "math")),
        extract=_answer,
        suffix=suffix_of(settings),
        suffix_tokens=suffix_tokens,
        answer_tokens=answer_tokens,
        **given,
    )


def suffix_of(settings: Mapping[str, Any]) -> str:
    """What a probe appends to a thought so that an answer must follow."""
    suffix = settings.get("suffix", SUFFIX)
    if not isinstance(suffix, str) or not suffix:
        raise ValueError(f"suffix is a text, not {suffix!r}")
    return suffix


def rule_of(given: Any) -> StopRule:
    """A stop rule by name ("default", "full"), or as `StopRule.to_json` has it."""
    if isinstance(given, str):
        if given not in RULES:
            raise ValueError(f"there is no rule {given!r}; there is {', '.join(RULES)}")
        return RULES[given]
    return StopRule.from_json(json.dumps(given))


def _equivalence(given: Any) -> Equivalence:
    if isinstance(given, str):
        if given not in ANSWERS:
            raise ValueError(
                f"answers are {', '.join(ANSWERS)} or a list of choices, not {given!r}"
            )
        return ANSWERS[given]
    options = cast("list[Any]", given) if isinstance(given, list | tuple) else []
    if not options or not all(isinstance(each, str) for each in options):
        raise ValueError(f"answers are {', '.join(ANSWERS)} or a list of choices, not {given!r}")
    return choice_of(options)


def _answer(text: str) -> str:
    """The answer of a finished sample: what follows its thought, if it says where that ends."""
    return extract(text.rpartition(THOUGHT_END)[2] if THOUGHT_END in text else text)


def _typed(strategy: str, kind: type[Step], given: Mapping[str, Any]) -> None:
    hints: dict[str, Any] = {each.name: each.type for each in fields(kind)}
    checks: dict[str, Callable[[Any], bool]] = {
        "int": lambda value: type(value) is int,
        "float": _number,
        "float | None": lambda value: value is None or _number(value),
    }
    for name, value in given.items():
        wanted = hints[name] if isinstance(hints[name], str) else hints[name].__name__
        if wanted in checks and not checks[wanted](value):
            raise ValueError(f"{strategy}: {name} is of type {wanted}, not {value!r}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is a whole number of 1 or more, not {value!r}")
    return value
