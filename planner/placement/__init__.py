"""Placement: which workers answer which rows of which step, in which order, beside the tools.

    problem.py    the nouns: stages, workers, visits, placements; what is compiled of them
    timeline.py   when every row is answered, given what each worker does in which order
    build.py      list scheduling: what each worker does, from priorities
    alone.py      the best order for one worker that takes its rows through all steps
    search.py     `place`: searches the priorities, then the visits themselves
    turns.py      a placement as each row's worker and turn, in windows of any size

It minimises the makespan. Rows are handled as shares of the table, so that the cost of planning
does not depend on how many there are.
"""

from .problem import AFFINITY, Placement, Stage, Visit, Worker, fleet_bound, load_bound
from .search import place
from .turns import Turn, Turns

__all__ = [
    "AFFINITY",
    "Placement",
    "Stage",
    "Turn",
    "Turns",
    "Visit",
    "Worker",
    "fleet_bound",
    "load_bound",
    "place",
]
