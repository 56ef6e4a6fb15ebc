"""Everything that runs. What authors need is here: `from tenter.runtime import workflow, llm, tool`.

The names are loaded when they are first used, so that importing this package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Plan as Plan
    from .api import agent as agent
    from .api import contains as contains
    from .api import each as each
    from .api import length as length
    from .api import llm as llm
    from .api import open_plan as open_plan
    from .api import plan_and_run as plan_and_run
    from .api import reason as reason
    from .api import reduce as reduce
    from .api import repeat as repeat
    from .api import session as session
    from .api import tool as tool
    from .api import when as when
    from .api import workflow as workflow
    from .errors import TenterError as TenterError
    from .explaining import analyze as analyze
    from .explaining import explain as explain
    from .load import load_workflow as load_workflow
    from .run.local import run_workflow as run_workflow
    from .run.recorded import run_recorded as run_recorded
    from .serving import open_runtime as open_runtime

_HOMES = {
    "Plan": "api",
    "TenterError": "errors",
    "agent": "api",
    "analyze": "explaining",
    "contains": "api",
    "each": "api",
    "reduce": "api",
    "repeat": "api",
    "explain": "explaining",
    "length": "api",
    "llm": "api",
    "load_workflow": "load",
    "open_plan": "api",
    "open_runtime": "serving",
    "plan_and_run": "api",
    "reason": "api",
    "run_recorded": "run.recorded",
    "run_workflow": "run.local",
    "session": "api",
    "tool": "api",
    "when": "api",
    "workflow": "api",
}

__all__ = [
    "Plan",
    "TenterError",
    "agent",
    "analyze",
    "contains",
    "each",
    "explain",
    "length",
    "llm",
    "load_workflow",
    "open_plan",
    "open_runtime",
    "plan_and_run",
    "reason",
    "reduce",
    "repeat",
    "run_recorded",
    "run_workflow",
    "session",
    "tool",
    "when",
    "workflow",
]

# The decorator `workflow` has the name of a module. Importing that module would set the attribute,
# so it is imported now and the attribute taken away; `__getattr__` then finds the decorator.
import_module(f"{__name__}.workflow")
del globals()["workflow"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
