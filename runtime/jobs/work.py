"""What a job does with each row, whatever its table: its workflow, its rules, its models."""

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from ...kvpolicy import DEFAULT_POLICY
from ...planner.graph import LLM, Repeat, walk
from ...planner.optimize import left_out
from ...planner.plan import Expected, Plan, Tokens
from ..backends.registry import parse_model
from ..errors import InvalidInput
from ..journal.results import Results
from ..load import load_workflow
from ..operate.settings import Settings, check_limited
from ..predict import Learned
from ..run.cascades import Cascades
from ..run.host import Host
from ..run.local import Replicas, llm_steps, model_specs, open_results, pools
from ..run.placed import turns_on
from ..run.planned import NO_MODELS, Planned
from ..run.rows import WINDOW_ROWS
from ..scheduler.limits import ALL
from ..scheduler.policies import DEFAULT_ORDER
from ..table_stats import tokens_of
from ..workflow import ModelSpec, Scheduling, Workflow
from .spec import MapSpec, check_options, check_tenant


class RowWork:
    """A workflow and its models, with what a job says of them; InvalidInput where they do not fit."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        check_options(spec)
        self.workflow = load_workflow(spec.workflow)
        check_tenant(spec.tenant, self.workflow)
        self.models = models_of(self.workflow, spec.models)

    def check_limits(self) -> None:
        """Refuse limits that nothing would heed."""
        scheduling = self.scheduling()
        own = "models" in self.spec.limits  # else the workflow's, meant for its own models
        check_limited(scheduling.limits, self.pools if own else pools(model_specs(self.workflow)))
        named = [name for name in scheduling.limits.get("tenants", {}) if name != ALL]
        if named and scheduling.tenant is None:
            raise InvalidInput(f"limits.tenants.{named[0]}: say with --tenant whose a row is")

    @property
    def pools(self) -> dict[str, str]:
        """For each model the one whose workers serve it."""
        return pools(self.models)

    @property
    def without(self) -> frozenset[str]:
        """The rules that are left out."""
        return left_out((*self.workflow.scheduling.without, *self.spec.without))

    def rows_total(self) -> int | None:
        """The table's rows; None: not known."""
        return None

    @property
    def consolidate(self) -> bool:
        """Whether equal work is done once."""
        return self.spec.consolidate and "consolidate" not in self.without

    def planned(self, plan: Plan | None, host: Host) -> Planned | None:
        """What carries the plan out; None where there is none."""
        if plan is None:
            return None
        order, group = "order" not in self.without, "group" not in self.without
        if "pack" in self.without:
            host.packs = None
        models = NO_MODELS if "reorder" in self.without else host.models
        pools = {model.pool for model in host.models.values()}
        placed = self.workflow.scheduling.place and order
        turns = None
        if placed:
            rows = min(WINDOW_ROWS, self.rows_total() or WINDOW_ROWS)
            turns = turns_on(plan, host.scheduler, host.models, rows)
        cascaded = {s.id: s.step for s in plan.steps if s.cascaded and isinstance(s.step, LLM)}
        host.cascades = Cascades(host, cascaded, self.rows_total()) if cascaded else None
        return Planned(
            plan,
            host.scheduler,
            order=order,
            group=group,
            models=models,
            pools=sorted(pools),
            turns=turns,
            cascades=host.cascades,
        )

    def results(self) -> AbstractAsyncContextManager[Results | None]:
        """The result cache, where it is wanted; without consolidation there is nothing to look up."""
        wanted = self.workflow.cache if self.spec.cache is None else self.spec.cache
        return open_results(wanted and self.spec.consolidate, self.spec.home)

    def scheduling(self) -> Scheduling:
        """What the workflow says, and over it what this job says."""
        spec = self.spec
        given = {"order": spec.order, "retention": spec.retention, "tenant": spec.tenant}
        chosen = {name: value for name, value in given.items() if value is not None}
        said = self.workflow.scheduling
        return replace(said, **chosen, limits={**said.limits, **spec.limits})

    def settings(self, concurrency: int) -> Settings:
        """What may be changed while the run goes on, as it begins."""
        spec, wish = self.spec, self.scheduling()
        return Settings(
            concurrency,
            wish.order or DEFAULT_ORDER,
            wish.retention or DEFAULT_POLICY,
            spec.max_errors,
            spec.token_budget,
            spec.time_limit_s,
            json.dumps(dict(wish.limits)),
        )


def models_of(workflow: Workflow, overrides: Mapping[str, str]) -> dict[str, ModelSpec]:
    """What serves each model of a workflow, where `overrides` are backends by name."""
    specs = model_specs(workflow)
    for name, text in overrides.items():
        if name not in specs:
            known = ", ".join(sorted(specs)) or "none"
            raise InvalidInput(f"--model {name}: the workflow uses no such model; it uses {known}")
        specs[name] = parse_model(name, text)
    return specs


def first_model(workflow: Workflow) -> str:
    """The model whose tokenizer a plan is counted with: that of the first call."""
    steps = llm_steps(workflow.graph.steps) if workflow.graph is not None else []
    return steps[0].model if steps else "default"


def tokens_by(workflow: Workflow, backends: Mapping[str, Replicas]) -> Tokens:
    found = backends.get(first_model(workflow))
    if found is None:
        return Tokens()
    context_tokens = found[0].capabilities.context_tokens
    return replace(tokens_of(found[0].tokenizer), context_tokens=context_tokens)


def expected_of(workflow: Workflow, learned: Learned) -> Expected:
    """What earlier runs say of a workflow's steps and tools."""
    steps = llm_steps(workflow.graph.steps) if workflow.graph is not None else []
    output = {step.id: learned.mean_output_tokens(workflow.name, step.id) for step in steps}
    tool_s = {name: learned.mean_tool_s(name) for name in workflow.tools}
    all_steps = list(walk(workflow.graph.steps)) if workflow.graph is not None else []
    iterations = {s.id: learned.mean_iterations(s.id) for s in all_steps if isinstance(s, Repeat)}
    routed = {s.id: learned.mean_routed(s.id) for s in steps if s.cascade is not None}
    return Expected(_known(output), _known(tool_s), _known(iterations), _known(routed))


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in found.items() if value is not None}


def concurrency_of(backends: Mapping[str, Replicas]) -> int:
    """Programs at once: enough that slots stay filled while rows are recorded or wait for tools."""
    workers = {id(backend): backend for replicas in backends.values() for backend in replicas}
    return max(64, 4 * sum(each.capabilities.max_running for each in workers.values()))
