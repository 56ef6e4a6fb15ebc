"""What runs teach of the next one: lengths of answers, what is left of programs, times of tools.

learned.py   a fold over the events of a run; what it says of calls, programs and tools
known.py     what is known of a workflow: predictors, answered calls, a ranker
asked.py     the nouns: a call before it runs, and what is expected of it
progress.py  how far a program has come
ranker.py    a network that tells the calls of one step apart by the length of their answers
fit.py       how it learns, and where it is used
tau.py       Kendall's tau
store.py     what is kept between runs
"""

from .asked import Asked, Hints, Remaining, Row, token_classes
from .fit import Report, due, fit
from .known import Known
from .learned import Learned, replayed
from .ranker import Ranker, StepRank
from .tau import kendall_tau

__all__ = [
    "Asked",
    "Hints",
    "Known",
    "Learned",
    "Ranker",
    "Remaining",
    "Report",
    "Row",
    "StepRank",
    "due",
    "fit",
    "kendall_tau",
    "replayed",
    "token_classes",
]
