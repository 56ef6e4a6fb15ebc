"""When to stop thinking: strategies, measures of certainty, stop rules and their calibration.

Pure: no clock, no I/O, no randomness that is not handed in. `docs/reasoning.md` has the door.
"""
