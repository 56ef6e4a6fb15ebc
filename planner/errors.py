"""What can go wrong in the planner. It knows nothing of the runtime, which gives these their place.

PlannerError
├── PromptError         a template does not parse or cannot be rendered
├── EvaluationError     a value cannot be worked out from the names it reads
└── InvariantBroken     a rule made a plan that makes no sense: a bug of ours
"""


class PlannerError(ValueError):
    """Base of the planner's errors."""


class PromptError(PlannerError):
    """A template is wrong, or a value it needs is missing. `line` counts from 1 in the template.

    `line` is 0 where it is not known.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        self.message = message
        self.line = line
        super().__init__(f"line {line}: {message}" if line else message)


class EvaluationError(PlannerError):
    """A value cannot be worked out. `source` is how the author wrote it."""

    def __init__(self, message: str, source: str = "") -> None:
        self.message = message
        self.source = source
        super().__init__(f"{source}: {message}" if source else message)


class InvariantBroken(PlannerError):
    """A plan breaks an invariant. `rule` is the rule that made it, `broken` says how."""

    def __init__(self, broken: str, rule: str = "") -> None:
        self.broken = broken
        self.rule = rule
        super().__init__(f"rule {rule!r} broke the plan: {broken}" if rule else broken)
