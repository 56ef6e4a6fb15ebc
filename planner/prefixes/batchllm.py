"""Single-level prefix groups, as BatchLLM makes them (2412.03594, section 4), for comparison.

Bottom-up through the tree: a group below a branch is moved up, and takes the branch's tokens along,
where its own sharing outweighs computing those tokens once more.
"""

from array import array
from dataclasses import dataclass

from .prompts import Prompts
from .tree import build_tree

Members = list[int]


@dataclass(frozen=True, slots=True)
class SingleLevel:
    """`groups` holds prompts by number; a group's first `shared[i]` tokens are computed once."""

    groups: tuple[tuple[int, ...], ...]
    shared: tuple[int, ...]
    computed_tokens: int


def single_level_groups(prompts: Prompts) -> SingleLevel:
    """The groups that BatchLLM's dynamic program finds, in the order of their tokens."""
    order, shared = prompts.sorted()
    lengths = prompts.lengths()
    tree = build_tree(shared)
    below: dict[int, list[tuple[int, Members]]] = {}  # per branch the groups that moved up to it
    loose: dict[int, Members] = {branch: [] for branch in range(len(tree.depth))}
    for place, branch in enumerate(tree.leaf_parent):
        loose[branch].append(place)
    for branch, above in enumerate(tree.parent):
        if above < 0:
            continue
        edge = tree.depth[branch] - tree.depth[above]
        up = below.setdefault(above, [])
        own = loose.pop(branch)
        for tokens, members in below.pop(branch, []):
            if (len(members) - 1) * tokens - edge > 0:
                up.append((tokens + edge, members))
            else:
                own += members
        if own:
            up.append((edge, own))
    root = len(tree.depth) - 1
    found = below.get(root, []) + [(0, [place]) for place in loose.get(root, [])]
    found = [(tokens if len(members) > 1 else 0, sorted(members)) for tokens, members in found]
    found.sort(key=lambda group: group[1][0])
    saved = sum(tokens * (len(members) - 1) for tokens, members in found)
    return SingleLevel(
        tuple(tuple(order[place] for place in members) for _, members in found),
        tuple(tokens for tokens, _ in found),
        sum(array("Q", lengths)) - saved,
    )
