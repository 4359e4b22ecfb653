"""Slow, obvious references in plain Python and numpy, shared by the tests.

Nothing here calls adaptok: a reference that shares code with what it checks proves nothing.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Node = tuple[int, tuple[int, ...]]  # (level, index in the grid of that level)
Box = tuple[int, tuple[int, ...], tuple[int, ...]]  # (level, origin, size) in grid points
Sizes = Sequence[Sequence[int]]


class Forest:
    """Trees of boxes over one domain: geometry by definition, node by node.

    Args:
        shape: grid points per axis.
        sizes: box size per level, coarse to fine, one number per axis.
    """

    def __init__(self, shape: Sequence[int], sizes: Sizes):
        self.shape, self.sizes = tuple(shape), [tuple(size) for size in sizes]
        self.last = len(self.sizes) - 1

    def roots(self) -> Iterator[Node]:
        counts = [math.ceil(n / p) for n, p in zip(self.shape, self.sizes[0], strict=True)]
        for index in itertools.product(*map(range, counts)):
            yield 0, index

    def children(self, node: Node) -> Iterator[Node]:
        """In raster order; only those that meet the domain."""
        level, index = node
        pairs = zip(self.sizes[level], self.sizes[level + 1], strict=True)
        ratio = [coarse // fine for coarse, fine in pairs]
        for step in itertools.product(*map(range, ratio)):
            child = (
                level + 1,
                tuple(i * r + s for i, r, s in zip(index, ratio, step, strict=True)),
            )
            if all(o < n for o, n in zip(self.origin(child), self.shape, strict=True)):
                yield child

    def origin(self, node: Node) -> tuple[int, ...]:
        return tuple(i * p for i, p in zip(node[1], self.sizes[node[0]], strict=True))

    def crosses(self, node: Node) -> bool:
        ends = [o + p for o, p in zip(self.origin(node), self.sizes[node[0]], strict=True)]
        return any(end > n for end, n in zip(ends, self.shape, strict=True))

    def box(self, node: Node) -> Box:
        """The node clipped to the domain."""
        origin = self.origin(node)
        size = zip(origin, self.sizes[node[0]], self.shape, strict=True)
        return node[0], origin, tuple(min(p, n - o) for o, p, n in size)

    def forced(self) -> set[Node]:
        """Nodes that must split because they cross the border."""
        out, todo = set(), list(self.roots())
        while todo:
            node = todo.pop()
            if node[0] < self.last and self.crosses(node):
                out.add(node)
                todo += self.children(node)
        return out

    def leaves(self, split: set[Node]) -> list[Node]:
        """Depth first: roots in raster order, each followed by its subtree."""

        def visit(node: Node) -> Iterator[Node]:
            if node not in split:
                yield node
                return
            for child in self.children(node):
                yield from visit(child)

        return [leaf for root in self.roots() for leaf in visit(root)]

    def inner(self) -> list[Node]:
        """All nodes inside the domain that could split, level by level in raster order."""
        out, level = [], list(self.roots())
        for _ in range(self.last):
            out += sorted(level)
            level = [child for node in level for child in self.children(node)]
        return out


def box_sum(score: np.ndarray, box: Box) -> float:
    """Sum of a map over a box."""
    _, origin, size = box
    return float(score[tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))].sum())


def pop_order(forest: Forest, priority: Callable[[Node], float]) -> list[Node]:
    """Best-first order with a heap until nothing is left; what crosses the border goes first.

    Ties: coarser first, then raster order.
    """

    def entry(node: Node):
        urgent = -math.inf if forest.crosses(node) else -priority(node)
        return urgent, node

    heap = [entry(root) for root in forest.roots()] if forest.last else []
    heapq.heapify(heap)
    order = []
    while heap:
        _, node = heapq.heappop(heap)
        order.append(node)
        if node[0] + 1 < forest.last:
            for child in forest.children(node):
                heapq.heappush(heap, entry(child))
    return order


def number_of_splits(forest: Forest, budget: int, step: int) -> int:
    """IAP Eq. 1 on top of what the border forces."""
    forced = forest.forced()
    gain = math.prod(c // f for c, f in zip(*forest.sizes[:2], strict=True)) - 1
    free = step * ((budget - len(forest.leaves(forced))) // (step * gain))
    return min(free, len(forest.inner()) - len(forced))


def refine(score: np.ndarray, sizes: Sizes, budget: int, step: int = 1) -> list[Box]:
    """Cells of one sample by a heap (step 1) or by the paper's loop (IAP, Algorithms 1 and 2)."""
    forest = Forest(score.shape, sizes)
    if forest.last == 0:
        return [forest.box(root) for root in forest.roots()]

    def priority(node: Node) -> float:
        return box_sum(score, forest.box(node))

    forced, free = forest.forced(), number_of_splits(forest, budget, step)
    if step == 1:
        split = set(pop_order(forest, priority)[: len(forced) + free])
    else:
        split = stepwise(forest, forced, priority, free, step)
    return [forest.box(leaf) for leaf in forest.leaves(split)]


def stepwise(
    forest: Forest, split: set[Node], priority: Callable[[Node], float], left: int, step: int
) -> set[Node]:
    """The literal loop: each step splits the `step` best of the leaves that it starts with."""
    split = set(split)
    while left > 0:
        open_leaves = [leaf for leaf in forest.leaves(split) if leaf[0] < forest.last]
        best = sorted(open_leaves, key=lambda node: (-priority(node), node))[: min(step, left)]
        split |= set(best)
        left -= len(best)
    return split


def boxes(cells, sample: int = 0) -> list[Box]:
    """Space boxes of one sample of a `Cells` in row order, for comparison with `refine`."""
    start, end = cells.cu_seqlens[sample : sample + 2].tolist()
    rows = zip(
        cells.level[start:end].tolist(),
        cells.origin[start:end, 1:].tolist(),
        cells.size[start:end, 1:].tolist(),
        strict=True,
    )
    return [(level, tuple(origin), tuple(size)) for level, origin, size in rows]


def halvings(min_size: int, max_size: int, ndim: int) -> list[tuple[int, ...]]:
    """Sizes max, max/2, ..., min, the same on each axis."""
    out = []
    while max_size >= min_size:
        out.append((max_size,) * ndim)
        max_size //= 2
    return out


def softmax_attention(q, k, v, groups_q, groups_k, *, bias=None, causal=False, scale=None):
    """Attention one query at a time in float64.

    Args:
        groups_q: list of groups, each a list of row numbers of q; likewise groups_k.
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    scale = q.shape[2] ** -0.5 if scale is None else scale
    out = np.zeros(q.shape)
    for rows, keys in zip(groups_q, groups_k, strict=True):
        for i, row in enumerate(rows):
            seen = list(keys[: i + 1]) if causal else list(keys)
            if not seen:
                continue
            for head in range(q.shape[1]):
                scores = k[seen, head] @ q[row, head] * scale
                if bias is not None:
                    table = bias[head if bias.shape[0] > 1 else 0]
                    scores = scores + np.asarray(table, dtype=np.float64)[i, : len(seen)]
                weights = np.exp(scores - scores.max())
                out[row, head] = weights @ v[seen, head] / weights.sum()
    return out


def sobel(x: np.ndarray, stencil: np.ndarray, mode: str) -> np.ndarray:
    """Gradient norm of one map (space axes only): pad, then the sum over all offsets."""
    k, ndim = len(stencil) // 2, x.ndim
    across = [math.comb(2 * k, j) for j in range(2 * k + 1)]
    padded = np.pad(x, k, mode=mode)
    squared = np.zeros(x.shape)
    for axis in range(ndim):
        part = np.zeros(x.shape)
        for offset in itertools.product(range(2 * k + 1), repeat=ndim):
            weight = math.prod(stencil[o] if a == axis else across[o] for a, o in enumerate(offset))
            window = tuple(slice(o, o + n) for o, n in zip(offset, x.shape, strict=True))
            part = part + weight * padded[window]
        squared += part**2
    return np.sqrt(squared)


def rope(x: np.ndarray, positions: np.ndarray, base: float = 10000.0) -> np.ndarray:
    """Axial rotary embedding by complex multiplication.

    Args:
        x: (n, h, e), channel pairs (2i, 2i + 1).
        positions: (n, axes), the axes share the pairs equally; leftover channels stay.
    """
    axes = positions.shape[1]
    pairs = x.shape[2] // 2 // axes
    out = np.array(x, dtype=np.float64)
    for axis in range(axes):
        for i in range(pairs):
            turn = np.exp(1j * positions[:, axis] * base ** (-i / pairs))[:, None]
            c = 2 * (axis * pairs + i)
            turned = (x[:, :, c] + 1j * x[:, :, c + 1]) * turn
            out[:, :, c], out[:, :, c + 1] = turned.real, turned.imag
    return out
