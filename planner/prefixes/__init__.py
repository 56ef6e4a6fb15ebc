"""Prefixes: which prompts share what, and in which order every prefix is computed once.

prompts.py    prompts by column; sorted neighbours and what they share
tree.py       the prefix tree over sorted prompts, a few numbers per branch
groups.py     `group_prompts`: leaders, followers, their order, how long a prefix is needed
batchllm.py   BatchLLM's single-level groups, for comparison
"""

from .batchllm import single_level_groups
from .groups import PrefixGroups, group_prompts, shards
from .prompts import Prompts

__all__ = ["PrefixGroups", "Prompts", "group_prompts", "shards", "single_level_groups"]
