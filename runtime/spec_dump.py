"""Workflows back to YAML."""

from .workflow import Workflow


def dump(workflow: Workflow) -> str:
    """The YAML text of a workflow."""
    raise NotImplementedError
