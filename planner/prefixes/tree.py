"""The prefix tree of sorted prompts, built from what neighbours share (as suffix trees are from
their LCP arrays: Abouelhoda, Kurtz and Ohlebusch 2004). Only branches are nodes, never tokens."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field


def _numbers() -> "array[int]":
    return array("q")


@dataclass(slots=True)
class Tree:
    """Branches by number, parents after their children; the last is the root.

    Branch n spans the sorted prompts `first[n]` to `stop[n]` (excluded), which all begin with the
    same `depth[n]` tokens. A prompt hangs on the deepest branch that spans it: `leaf_parent`.
    """

    first: "array[int]" = field(default_factory=_numbers)
    stop: "array[int]" = field(default_factory=_numbers)
    depth: "array[int]" = field(default_factory=_numbers)
    parent: "array[int]" = field(default_factory=_numbers)
    leaf_parent: "array[int]" = field(default_factory=_numbers)

    def children(self) -> "list[list[int]]":
        """Per branch what hangs on it, sorted: branches by number, prompt p as -1 - p."""
        found: list[list[int]] = [[] for _ in self.depth]
        for prompt, branch in enumerate(self.leaf_parent):
            found[branch].append(-1 - prompt)
        for branch, above in enumerate(self.parent):
            if above >= 0:
                found[above].append(branch)
        for below in found:
            below.sort(key=lambda child: self.first[child] if child >= 0 else -1 - child)
        return found


def build_tree(shared: Sequence[int]) -> Tree:
    """The tree of prompts of which number i shares `shared[i]` tokens with number i - 1."""
    tree = Tree()
    count = len(shared)
    if not count:
        return tree
    tree.leaf_parent = array("q", [-1]) * count
    depths, starts = [0], [0]  # the open branches, from the root
    pending: list[list[int]] = [[]]  # the closed branches that hang on each open one
    for index in range(count):
        below = shared[index + 1] if index + 1 < count else 0
        above = depths[-1]
        if below > above:  # a deeper branch opens at this prompt
            depths.append(below)
            starts.append(index)
            pending.append([])
            continue
        while depths[-1] > below:
            start = starts.pop()
            depth = depths.pop()
            number = _close(tree, start, index + 1, depth, pending.pop())
            if depths[-1] < below:
                depths.append(below)
                starts.append(start)
                pending.append([])
            pending[-1].append(number)
    _close(tree, 0, count, 0, pending[0])
    _hang(tree)
    return tree


def _close(tree: Tree, start: int, stop: int, depth: int, below: Sequence[int]) -> int:
    number = len(tree.depth)
    tree.first.append(start)
    tree.stop.append(stop)
    tree.depth.append(depth)
    tree.parent.append(-1)
    for branch in below:
        tree.parent[branch] = number
    return number


def _hang(tree: Tree) -> None:
    """Let every prompt hang on its deepest branch: children come before their parents."""
    leaf_parent, covered = tree.leaf_parent, array("q", [0]) * (len(tree.leaf_parent) + 1)
    for branch, (first, stop) in enumerate(zip(tree.first, tree.stop, strict=True)):
        prompt = first
        while prompt < stop:
            if leaf_parent[prompt] < 0:
                leaf_parent[prompt] = branch
                prompt += 1
            else:
                prompt = covered[prompt]
        covered[first] = stop
