"""The exact optimum of small placements, by OR-tools' CP-SAT (group `bench`), for comparison.

Calls run whole, each on one worker; what one takes depends on the call before it there. Times are
rounded to milliseconds.
"""

from collections.abc import Sequence
from typing import Any

from tenter.planner.placement import Stage

SCALE = 1000


def optimum(
    stages: Sequence[Stage], workers: int, limit_s: float, hint_s: float
) -> tuple[float, bool]:
    """The smallest makespan over one row per stage, and whether it is proven within `limit_s`.

    `hint_s` is a makespan that is known to be possible. Raises ImportError without OR-tools.
    """
    from ortools.sat.python import cp_model

    model: Any = cp_model.CpModel()
    number = {stage.id: index for index, stage in enumerate(stages)}
    horizon = round(hint_s * SCALE) + 2 * len(stages)  # times are rounded
    ends = [model.new_int_var(0, horizon, f"end{i}") for i in range(len(stages))]
    takes = [model.new_int_var(0, horizon, f"takes{i}") for i in range(len(stages))]
    # One tour through all calls; node 0 is where a worker begins and ends.
    arcs: list[Any] = []
    for index, stage in enumerate(stages):
        alone_s = stage.fixed_s + stage.row_s
        first, last = model.new_bool_var(""), model.new_bool_var("")
        arcs += [(0, index + 1, first), (index + 1, 0, last)]
        model.add(takes[index] == round(alone_s * SCALE)).only_enforce_if(first)
        model.add(ends[index] >= takes[index])
        for parent in stage.parents:
            model.add(ends[index] >= ends[number[parent]] + takes[index])
        for before, other in enumerate(stages):
            if before == index:
                continue
            follows = model.new_bool_var("")
            arcs.append((before + 1, index + 1, follows))
            factor = (stage.warm or {}).get(other.id, 1.0)
            model.add(takes[index] == round(factor * alone_s * SCALE)).only_enforce_if(follows)
            model.add(ends[index] >= ends[before] + takes[index]).only_enforce_if(follows)
    model.add_multiple_circuit(arcs)
    model.add(sum(literal for tail, _, literal in arcs if tail == 0) <= workers)
    makespan = model.new_int_var(0, horizon, "makespan")
    model.add_max_equality(makespan, ends)
    model.minimize(makespan)
    solver: Any = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    proven = status == cp_model.OPTIMAL
    return solver.best_objective_bound / SCALE, proven
