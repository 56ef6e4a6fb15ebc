"""Workloads of programs: recorded by others, recorded by us, drawn from a seed, or the user's own."""

from .coding import coding_sessions
from .jsonl import read_workload, write_workload
from .pipelines import bfcl, text2sql
from .program import (
    Pause,
    Program,
    Prompt,
    Span,
    Turn,
    Workload,
    cut,
    joined,
    new_tokens,
    page_ids,
    shared_tokens,
    token_ids,
)
from .requests import azure_code, mooncake
from .shaping import at_rate, fitting, poisson, subsample, tools_slower
from .synthetic import bfcl_web, swe_bench
from .traces import traced

__all__ = [
    "Pause",
    "Program",
    "Prompt",
    "Span",
    "Turn",
    "Workload",
    "at_rate",
    "azure_code",
    "bfcl",
    "bfcl_web",
    "coding_sessions",
    "cut",
    "fitting",
    "joined",
    "mooncake",
    "new_tokens",
    "page_ids",
    "poisson",
    "read_workload",
    "shared_tokens",
    "subsample",
    "swe_bench",
    "text2sql",
    "token_ids",
    "tools_slower",
    "traced",
    "write_workload",
]
