"""A graph that is known only while the program runs: planned by a model, run as a dataflow.

A planner's sub-steps as a DAG, run side by side (Flash-Searcher, 2509.25301; StepFly, 2510.10074),
and edited while it runs only where nothing has started (UFO3, 2511.11332).
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from ..errors import OutputInvalid
from .codec import encode
from .plans import Means, SubStep, check, filled, read_steps, sources

MAX_TAKEN = 1_000_000  # characters of results that one step takes

Revise = Callable[[str, Any, "DynamicGraph"], Awaitable[None] | None]


class DynamicGraph:
    """Sub-steps that have been checked, and the results of those that have ended.

    `results` is in the order in which they ended. A step starts as soon as what it needs is there.
    """

    def __init__(self, plan: Any, means: Means) -> None:
        self._means = means
        self._steps = {step.id: step for step in self._checked(read_steps(plan, means))}
        self._started: set[str] = set()
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._news = asyncio.Event()
        self.results: dict[str, Any] = {}

    @property
    def steps(self) -> tuple[SubStep, ...]:
        """The steps as they stand."""
        return tuple(self._steps.values())

    def edit(self, add: Any = "[]", change: Any = "[]", remove: Iterable[str] = ()) -> None:
        """Add, change or remove steps that have not started.

        `add` and `change` are plans. The whole is checked: OutputInvalid says what is wrong, and
        nothing has changed then.
        """
        added = read_steps(add, self._means)
        changed = {step.id: step for step in read_steps(change, self._means)}
        gone = set(remove)
        self._refuse_started({*changed, *gone})
        kept = [changed.get(name, step) for name, step in self._steps.items() if name not in gone]
        self._steps = {step.id: step for step in self._checked([*kept, *added])}
        self._news.set()

    async def run(self, revise: Revise | None = None) -> dict[str, Any]:
        """Run all steps; their JSON results by id, in the order in which they ended.

        `revise(id, result, graph)` is called after each step, and may edit the graph. The first
        step that fails stops the others, and its error is raised.
        """
        try:
            while self._start_ready():
                await self._news.wait()
                self._news.clear()
                for name in [name for name, task in self._tasks.items() if task.done()]:
                    await self._take(name, self._tasks.pop(name).result(), revise)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._tasks.clear()
        return self.results

    async def _take(self, name: str, value: Any, revise: Revise | None) -> None:
        self.results[name] = value
        said = revise(name, value, self) if revise is not None else None
        if inspect.isawaitable(said):
            await said

    def _start_ready(self) -> bool:
        """Start what has all that it needs; whether anything runs."""
        for step in self._steps.values():
            if step.id not in self._started and all(n in self.results for n in step.after):
                self._started.add(step.id)
                task = self._tasks[step.id] = asyncio.ensure_future(self._do(step))
                task.add_done_callback(lambda _: self._news.set())
        return bool(self._tasks)

    async def _do(self, step: SubStep) -> Any:
        _check_size(step, self.results)
        means, values = self._means, filled(step.args, self.results)
        match step.kind:
            case "llm":
                assert means.prompt is not None
                value = await means.prompt(step.id, _written(step, self.results))
            case "tool":
                value = await means.use(step.id, means.tools[step.tool or ""], values)
            case "step":
                value = await means.steps[step.step or ""].run(**values)
        return value

    def _checked(self, steps: list[SubStep]) -> list[SubStep]:
        check(steps, self._means)
        return steps

    def _refuse_started(self, names: set[str]) -> None:
        unknown = sorted(names - self._steps.keys())
        started = sorted(names & self._started)
        if unknown:
            raise ValueError(f"there is no step {unknown[0]!r} to edit")
        if started:
            raise ValueError(f"step {started[0]!r} has started: it cannot be edited any more")


def _written(step: SubStep, results: Mapping[str, Any]) -> str:
    """A prompt with the results that it needs below it."""
    parts = [step.prompt or ""]
    parts += (f"{name}:\n{_text(results[name])}" for name in step.needs)
    return "\n\n".join(parts)


def _check_size(step: SubStep, results: Mapping[str, Any]) -> None:
    """A short plan may take a long result very often."""
    sizes = {name: len(_text(results[name])) for name in step.after}
    taken = sum(sizes[name] for name in (*step.needs, *sources(step.args)))
    if taken > MAX_TAKEN:
        raise OutputInvalid(
            f"step {step.id!r} takes {taken:,} characters of results; at most {MAX_TAKEN:,} fit: "
            "let it need fewer or shorter ones, each once"
        )


def _text(result: Any) -> str:
    return result if isinstance(result, str) else encode(result).decode()
