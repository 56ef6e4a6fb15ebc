"""Prefix groups over all levels of the tree: depth-first, leaders first (BatchLLM, 2412.03594 §4,
which has one level; RadixAttention, 2312.07104 §3, which shows that depth-first is optimal).

Depth-first, only the path to the current prompt has to stay in the cache, and that a prompt needs
anyway: whatever the size of the KV pool, if a prompt fits at all, its prefix is computed once. So
branches may be taken in any order, and those with much to decode go first: their decoding overlaps
the prefills of the others (BatchLLM §5).
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from .prompts import Prompts
from .tree import Tree, build_tree

PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PrefixGroups:
    """What is sent in which order. All columns but `order` are in that order.

    `order` holds prompts by their number. A prompt finds `shared_tokens` in the cache, computed by
    those before it; its group has the prompts that share most with it, and `leader` is the place in
    the order of the group's first, which the others wait for. Once it is answered, only the first
    `keep_tokens` of its prompt are needed again.
    """

    order: "array[int]"
    group: "array[int]"
    leader: "array[int]"
    shared_tokens: "array[int]"
    keep_tokens: "array[int]"
    logical_tokens: int
    computed_tokens: int

    @property
    def saving(self) -> float:
        """The share of the prompts' tokens that need no computing."""
        return 1 - self.computed_tokens / self.logical_tokens if self.logical_tokens else 0.0


def group_prompts(
    prompts: Prompts,
    page_tokens: int = PAGE_TOKENS,
    output_tokens: Sequence[float] | None = None,
) -> PrefixGroups:
    """The groups of `prompts` for a cache that shares whole pages of `page_tokens`.

    `output_tokens` are expected per prompt; without them, branches go in the order of their tokens.
    The last token of a prompt is always computed, since its logits are wanted.
    """
    if page_tokens < 1:
        raise ValueError(f"a page holds at least 1 token, got {page_tokens}")
    if output_tokens is not None and len(output_tokens) != len(prompts):
        raise ValueError(f"{len(output_tokens)} expected outputs for {len(prompts)} prompts")
    order, shared = prompts.sorted()
    lengths = prompts.lengths()
    for place, (prompt, tokens) in enumerate(zip(order, shared, strict=True)):
        shared[place] = tokens // page_tokens * page_tokens
        lengths[prompt] = max(lengths[prompt], 1)
    tree = build_tree(shared)
    if output_tokens is None:
        places = range(len(order))
    else:
        places = _decode_heavy_first(tree, order, shared, lengths, output_tokens)
    return _grouped(tree, places, order, shared, lengths, page_tokens)


def _decode_heavy_first(
    tree: Tree,
    order: "array[int]",
    shared: "array[int]",
    lengths: "array[int]",
    output_tokens: Sequence[float],
) -> "array[int]":
    """Depth-first through the tree; at each branch by tokens to decode per token to compute."""
    decode, compute = [0.0], [0.0]  # sums over the sorted prompts
    for prompt, tokens in zip(order, shared, strict=True):
        decode.append(decode[-1] + output_tokens[prompt])
        compute.append(compute[-1] + lengths[prompt] - tokens)

    def turn(child: int, depth: int) -> tuple[bool, float]:
        """A prompt that ends at its branch goes first: behind another it would compute its last
        page again."""
        if child < 0:
            first, stop = -1 - child, -child
        else:
            first, stop = tree.first[child], tree.stop[child]
        goes_on = child >= 0 or lengths[order[first]] > depth
        tokens = compute[stop] - compute[first] - (depth - shared[first])
        return goes_on, -(decode[stop] - decode[first]) / max(tokens, 1.0)

    children = tree.children()
    found, stack = array("I"), [len(tree.depth) - 1] if tree.depth else []
    while stack:
        child = stack.pop()
        if child < 0:
            found.append(-1 - child)
        else:
            depth = tree.depth[child]
            stack += sorted(children[child], key=lambda below: turn(below, depth))[::-1]
    return found


def _grouped(
    tree: Tree,
    places: Sequence[int],
    order: "array[int]",
    shared: "array[int]",
    lengths: "array[int]",
    page_tokens: int,
) -> PrefixGroups:
    """The columns, when the sorted prompts go in the order of `places`."""
    count = len(order)
    found = PrefixGroups(
        order=array("I", (order[place] for place in places)),
        group=array("q", (tree.leaf_parent[place] for place in places)),
        leader=array("q", [0]) * count,
        shared_tokens=_between(places, shared, tree),
        keep_tokens=array("Q", [0]) * count,
        logical_tokens=sum(lengths),
        computed_tokens=0,
    )
    first: dict[int, int] = {}
    computed = 0
    for place in range(count):
        found.leader[place] = first.setdefault(found.group[place], place)
        tokens = found.shared_tokens[place]
        if place:
            found.keep_tokens[place - 1] = tokens
        length = lengths[found.order[place]]
        usable = min(tokens, (length - 1) // page_tokens * page_tokens)
        found.shared_tokens[place] = usable
        computed += length - usable
    return PrefixGroups(
        found.order,
        found.group,
        found.leader,
        found.shared_tokens,
        found.keep_tokens,
        found.logical_tokens,
        computed,
    )


def _between(places: Sequence[int], shared: "array[int]", tree: Tree) -> "array[int]":
    """What each prompt shares with the one before it in the new order: the depth of the branch
    where the two part."""
    if isinstance(places, range):
        return array("Q", shared)
    found, before = array("Q"), -1
    for place in places:
        if before < 0:
            found.append(0)
        else:
            branch = tree.leaf_parent[place]
            while not tree.first[branch] <= before < tree.stop[branch]:
                branch = tree.parent[branch]
            found.append(tree.depth[branch])
        before = place
    return found


def shards(found: PrefixGroups, workers: int, page_tokens: int = PAGE_TOKENS) -> "array[int]":
    """Where the order is cut for `workers` workers: `workers + 1` places, the ends included.

    Each gets about the same tokens to compute. Near a fair cut, the place is taken where the least
    is shared: what is cut through is computed on both sides.
    """
    if workers < 1:
        raise ValueError(f"there is nothing to share out among {workers} workers")
    count = len(found.order)
    cuts = array("q", [0])
    slack = max(1, count // (4 * workers))
    for worker in range(1, workers):
        fair = count * worker // workers
        low, high = max(cuts[-1], fair - slack), min(count, fair + slack + 1)
        best = min(
            range(low, high),
            key=lambda place: (found.shared_tokens[place] // page_tokens, abs(place - fair)),
            default=min(count, max(fair, cuts[-1])),
        )
        cuts.append(best)
    cuts.append(count)
    return cuts
