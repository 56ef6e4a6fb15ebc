"""Strategies by name, from plain settings: what a `reason` step in Python or YAML says."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

from ...planner.graph import Sampling
from .answers import Equivalence, choice_of, exact, extract, json_value, math_value
from .route import Routed
from .rules import DEFAULT, NEVER, StopRule
from .search import Mcts, Rebase
from .strategy import SUFFIX, Step
from .thought import ChainOfThought
from .votes import BestOfN, FirstFinish, SelfConsistency, Vote

STRATEGIES: dict[str, type[Step]] = {
    "thought": ChainOfThought,
    "self-consistency": SelfConsistency,
    "vote": Vote,
    "first-finish": FirstFinish,
    "best-of-n": BestOfN,
    "rebase": Rebase,
    "mcts": Mcts,
    "routed": Routed,
}
SCORED = (BestOfN, Rebase, Mcts, Routed)  # they ask a scorer
DEFAULT_STRATEGY = "thought"
SAMPLING = Sampling(max_tokens=4096, temperature=0.6, top_p=0.95)  # unless a step says otherwise
ANSWERS: dict[str, Equivalence] = {"math": math_value, "exact": exact, "json": json_value}
RULES = {"default": DEFAULT, "full": NEVER}
THOUGHT_END = "</think>"

POOLS = ("program", "run", "none")
MOST = 1_000  # samples, rollouts, parts of a search
ALLOWED = 0.05  # of shadow runs may end with another answer, unless a step says otherwise

# Settings that every strategy has; those of its own are the fields of its class.
COMMON = ("answers", "budget_tokens", "pool", "suffix", "answer_tokens", "rule", "shadow", "drift")


def checked(strategy: str, settings: Mapping[str, Any], scored: bool = False) -> str:
    """`settings` as canonical JSON; ValueError names what is unknown or out of range.

    `scored`: the step has a scorer, which some strategies need and others have no use for.
    """
    build(strategy, settings, 256, 0, 0)
    wants = STRATEGIES[strategy] in SCORED
    if wants and not scored:
        raise ValueError(
            f"{strategy} needs a scorer: a function or a tool of question, thought, answer or part "
            "that gives a number, or a model that chooses"
        )
    if scored and not wants:
        names = ", ".join(name for name, kind in STRATEGIES.items() if kind in SCORED)
        raise ValueError(f"{strategy} asks no scorer; {names} do")
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def build(
    strategy: str,
    settings: Mapping[str, Any],
    limit_tokens: int,
    seed: int,
    suffix_tokens: int,
    stop: bool = True,
    rule: StopRule | None = None,
) -> Step:
    """A fresh state machine: `limit_tokens` bounds one sample, and with `stop` false a chain of
    thought goes to its end (a shadow run). `rule` is in force in place of the one set. Raises ValueError for settings that cannot be."""
    kind = STRATEGIES.get(strategy)
    if kind is None:
        raise ValueError(f"there is no strategy {strategy!r}; there is {', '.join(STRATEGIES)}")
    own = {each.name for each in fields(kind) if each.init} - {each.name for each in fields(Step)}
    own -= {"stop", "rule", "split"}
    known = (*COMMON, *sorted(own))
    for name in settings:
        if name not in known:
            raise ValueError(f"{strategy} has no setting {name!r}; it has {', '.join(known)}")
    given: dict[str, Any] = {name: settings[name] for name in own if name in settings}
    _typed(strategy, kind, given)
    if kind is ChainOfThought:
        asked = rule_of(settings.get("rule", "default"))
        given |= {"rule": rule or asked, "stop": stop}
    elif "rule" in settings:
        raise ValueError(f"{strategy} has no stop rule; 'thought' has")
    pool_of(settings)
    for name in ("shadow", "drift"):
        _share(name, settings.get(name, 0.0))
    answer_tokens = _whole("answer_tokens", settings.get("answer_tokens", 32))
    budget_tokens = _usual_budget(kind, given, limit_tokens)
    budget_tokens += 64 * (suffix_tokens + answer_tokens)
    return kind(
        budget_tokens=_whole("budget_tokens", settings.get("budget_tokens", budget_tokens)),
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


def pool_of(settings: Mapping[str, Any]) -> str:
    """Which settled steps leave their budget to this one, and it to which."""
    pool = settings.get("pool", POOLS[0])
    if pool not in POOLS:
        raise ValueError(f"pool is {', '.join(POOLS)}, not {pool!r}")
    return pool


def allowed_of(settings: Mapping[str, Any], rule: StopRule) -> float:
    """The share of shadow runs whose answer may differ before that is a drift.

    A rule that was calibrated against full length brings its own: that is the coin of shadow runs.
    """
    given = settings.get("drift")
    if given is None:
        vouch = rule.vouch
        given = vouch.budget if vouch and vouch.against == "full length" else ALLOWED
    return min(max(float(given), 1e-6), 1 - 1e-6)


def rule_of(given: Any) -> StopRule:
    """A stop rule by name ("default", "full"), or as `StopRule.to_json` has it."""
    if isinstance(given, str):
        if given not in RULES:
            raise ValueError(f"there is no rule {given!r}; there is {', '.join(RULES)}")
        return RULES[given]
    return StopRule.from_json(json.dumps(given))


def _usual_budget(kind: type[Step], given: Mapping[str, Any], limit_tokens: int) -> int:
    """Room for all that may be drawn, each sample to its limit."""
    if kind is Mcts:
        return given.get("rollouts", 32) * given.get("step_tokens", 256) + limit_tokens
    samples = given.get("width", 16) if kind is Rebase else given.get("n", 8)
    return limit_tokens * (1 if kind in (ChainOfThought, Routed) else samples)


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
        "str": lambda value: isinstance(value, str),
    }
    for name, value in given.items():
        wanted = hints[name].__name__ if isinstance(hints[name], type) else str(hints[name])
        if wanted in checks and not checks[wanted](value):
            raise ValueError(f"{strategy}: {name} is of type {wanted}, not {value!r}")
        if wanted == "int" and not name.endswith("_tokens") and value > MOST:
            raise ValueError(f"{strategy}: {name} is at most {MOST}, not {value}")
        if wanted == "int" and value < 1:
            raise ValueError(f"{strategy}: {name} is 1 or more, not {value}")


def _share(name: str, value: Any) -> None:
    if not _number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is a share of the programs, from 0 to 1, not {value!r}")


def _number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is a whole number of 1 or more, not {value!r}")
    return value
