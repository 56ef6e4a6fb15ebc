"""Jobs as the command line and `map` from Python ask for them: a table in, a table out, resumable.

Everything that can be wrong with a job is found before a model is loaded or a row is run.
"""

from ..run.control import Control
from .job import Job
from .once import run_once
from .run import Outcome, map_table, resume, summary_numbers
from .spec import MapSpec
from .work import expected_of, first_model, models_of

__all__ = [
    "Control",
    "Job",
    "MapSpec",
    "Outcome",
    "expected_of",
    "first_model",
    "map_table",
    "models_of",
    "resume",
    "run_once",
    "summary_numbers",
]
