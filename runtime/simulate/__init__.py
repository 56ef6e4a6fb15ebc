"""Workloads on simulated engines, with the scheduler's real core: an afternoon in seconds.

setup.py     what is simulated: hardware, model, replicas, policies
source.py    workloads by name: a file, a recorded run, a generator
text.py      prompts and answers as pages, instead of a token at a time
stock.py     a server without a scheduler in front: the baseline
drive.py     programs, pauses and replicas on one heap of events
report.py    results as one HTML page
result.py    what came out: completion times, tokens, seconds, dollars
"""

from .drive import Stalled, simulate
from .result import Result
from .setup import STOCK, Setup
from .source import Survey, load, survey

__all__ = ["STOCK", "Result", "Setup", "Stalled", "Survey", "load", "simulate", "survey"]
