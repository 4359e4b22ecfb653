"""The 2^D-tree over a space domain: its nodes, score pyramids, and cells from split masks.

Nodes of one tree are numbered level by level, coarse to fine, each level in raster order. A tree of
several frames ("forest") repeats the numbering per frame, so scores and split masks are ``(b, f,
nodes)``.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from adaptok.cells import Cells, Count, Lengths, nested, product
from adaptok.cells import lengths as known
from adaptok.patches import level_grid, pad_end
from adaptok.registry import choice
from adaptok.utils.constants import cached_constant
from adaptok.utils.reading import reads_are_free

Sizes = tuple[tuple[int, ...], ...]


class Counts(NamedTuple):
    """Numbers of nodes of one frame."""

    leaves: int  # cells of the coarsest tiling that the borders allow
    forced: int  # splits that lead to it
    possible: int  # nodes that can split, the forced ones included


@dataclasses.dataclass(frozen=True)
class Tree:
    """Static description of all possible cells of a domain (hashable; holds no tensors).

    If the domain does not divide, the root grid overhangs it, and `border` says what then happens.
    "split": a node that crosses the border always splits, and a finest cell that crosses it is
    clipped. "clip": nodes that cross it are like others; their cells keep their size and are cut
    at the border where values are read and painted.

    Args:
        shape: grid points per space axis.
        sizes: cell size of each level, coarse to fine, one number per space axis.
        order: order of a sample's cells, see `ORDERS`.
        border: "split" or "clip".
    """

    shape: tuple[int, ...]
    sizes: Sizes
    order: str = "depth_first"
    border: str = "split"

    def __post_init__(self):
        choice("order", self.order, ORDERS)
        choice("border", self.border, BORDERS)
        if any(len(size) != len(self.shape) for size in self.sizes):
            raise ValueError(f"sizes {self.sizes} do not have {len(self.shape)} axes each")
        if not nested(self.sizes) or min(map(min, self.sizes)) < 1:
            raise ValueError(
                f"sizes must shrink by integer factors from level to level, got {self.sizes}"
            )

    @property
    def n_levels(self) -> int:
        """Number of levels, leaves included."""
        return len(self.sizes)

    @property
    def ratios(self) -> Sizes:
        """How a split of each inner level divides each axis."""
        return _tables(self.shape, self.sizes).ratios

    @property
    def grids(self) -> Sizes:
        """Grid of nodes of each level; it may overhang the domain."""
        return _tables(self.shape, self.sizes).grids

    @property
    def offsets(self) -> tuple[int, ...]:
        """Number of the first node of each level, and the number of all nodes at the end."""
        return _tables(self.shape, self.sizes).offsets

    @property
    def inner(self) -> int:
        """Number of nodes that can split."""
        return self.offsets[-2]

    def counts(self) -> Counts:
        """Counts the cells and splits per frame that the borders force, and all possible splits."""
        counts = _tables(self.shape, self.sizes).counts
        return counts if self.border == "split" else Counts(self.inside[0], 0, counts.possible)

    @property
    def divides(self) -> bool:
        """Whether no node that can split crosses the border."""
        return self.inside[:-1] == self.whole[:-1]

    @property
    def overhangs(self) -> bool:
        """Whether cells may stick out of the domain."""
        pairs = zip(self.shape, self.sizes[0], strict=True)
        return self.border == "clip" and any(n % size for n, size in pairs)

    @property
    def inside(self) -> tuple[int, ...]:
        """Number of nodes of each level that meet the domain."""
        return _tables(self.shape, self.sizes).inside

    @property
    def whole(self) -> tuple[int, ...]:
        """Number of nodes of each level that lie in the domain completely."""
        return _tables(self.shape, self.sizes).whole

    def nodes(self, device: torch.device) -> Nodes:
        """Returns the geometry of all nodes as tensors, cached per device."""
        return _nodes(self.shape, self.sizes, self.order, self.border, device)

    def expand(self, coarse: Tensor, level: int) -> Tensor:
        """Hands the values of the nodes of `level`, (..., nodes), down to their children."""
        parents = _parents(self.grids[level], self.ratios[level], coarse.device)
        return coarse.index_select(-1, parents)

    def sum_children(self, fine: Tensor, level: int) -> Tensor:
        """Sums over the children of each node of `level`, from values of the next level."""
        grid, ratio = self.grids[level], self.ratios[level]
        x = fine.unflatten(-1, [n for pair in zip(grid, ratio, strict=True) for n in pair])
        first = fine.ndim - 1
        for axis in reversed(range(len(grid))):
            x = x.sum(first + 2 * axis + 1)
        return x.flatten(-len(grid))

    def per_level(self, nodes: Tensor) -> list[Tensor]:
        """Views (..., nodes) level by level; of the inner nodes only or of all nodes."""
        ends = itertools.pairwise(self.offsets)
        return [nodes[..., start:end] for start, end in ends if end <= nodes.shape[-1]]


class _Tables(NamedTuple):
    ratios: Sizes
    grids: Sizes
    offsets: tuple[int, ...]
    inside: tuple[int, ...]
    whole: tuple[int, ...]
    counts: Counts


@cached_constant()  # takes plain values: a Tree made inside a graph has no identity yet
def _tables(shape: tuple[int, ...], sizes: Sizes) -> _Tables:
    pairs = itertools.pairwise(sizes)
    ratios = tuple(tuple(c // f for c, f in zip(*pair, strict=True)) for pair in pairs)
    grids = [level_grid(shape, sizes[0])]
    for ratio in ratios:
        grids.append(tuple(g * r for g, r in zip(grids[-1], ratio, strict=True)))
    offsets = tuple(itertools.accumulate(map(product, grids), initial=0))
    inside = tuple(product(level_grid(shape, size)) for size in sizes)
    whole = tuple(product(n // p for n, p in zip(shape, size, strict=True)) for size in sizes)
    leaves, covered = 0, 0  # covered: nodes under a node that divides freely
    for level, ratio in enumerate(ratios):
        leaves += whole[level] - covered
        covered = whole[level] * product(ratio)
    forced = sum(inside[:-1]) - sum(whole[:-1])
    counts = Counts(leaves + inside[-1] - covered, forced, sum(inside[:-1]))
    return _Tables(ratios, tuple(grids), offsets, inside, whole, counts)


class Nodes(NamedTuple):
    """Geometry of the nodes of a tree: the first three in the order of cells, the rest by node
    number."""

    origin: Tensor  # int32 (nodes, D)
    size: Tensor  # int32 (nodes, D); "split": clipped to the domain, below 1 for nodes outside
    level: Tensor  # int8 (nodes,)
    order: Tensor  # int64 (nodes,): number of each node in the order of cells
    inside: Tensor  # bool (nodes,): meets the domain
    points: Tensor  # int64 (nodes,): grid points inside the domain
    beyond: Tensor  # int64 (inner,): children beyond the border, of a node inside it
    forced: Tensor  # bool (inner,): crosses the border and therefore always splits
    outside: Tensor  # bool (inner,)


def _node_geometry(tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
    origins, sizes, levels = [], [], []
    for level, (size, grid) in enumerate(zip(tree.sizes, tree.grids, strict=True)):
        axes = [torch.arange(g) * s for g, s in zip(grid, size, strict=True)]
        origin = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        origins.append(origin)
        sizes.append(torch.tensor(size).expand_as(origin))
        levels.append(torch.full((len(origin),), level))
    return torch.cat(origins), torch.cat(sizes), torch.cat(levels)


def _depth_first(tree: Tree) -> Tensor:
    """Orders root tiles by raster, each followed by its subtree, children by raster (Z-order)."""
    origin, _, level = _node_geometry(tree)
    key = torch.zeros(len(origin), dtype=torch.int64)
    for size, ratio in zip(tree.sizes, (tree.grids[0], *tree.ratios), strict=True):
        digit = torch.zeros_like(key)
        for axis, (s, r) in enumerate(zip(size, ratio, strict=True)):
            digit = digit * r + (origin[:, axis] // s) % r
        key = key * product(ratio) + digit
    return (key * tree.n_levels + level).argsort()  # a parent's first child has the parent's digits


def _level_raster(tree: Tree) -> Tensor:
    """Orders coarse cells first, each level by raster, which is the numbering of the nodes."""
    return torch.arange(tree.offsets[-1])


ORDERS = {"depth_first": _depth_first, "level": _level_raster}
BORDERS = ("clip", "split")


@cached_constant(64)
def _nodes(
    shape: tuple[int, ...], sizes: Sizes, order: str, border: str, device: torch.device
) -> Nodes:
    tree = Tree(shape, sizes, order, border)
    origin, size, level = _node_geometry(tree)
    end = torch.tensor(shape)
    inside = (origin < end).all(1)
    crosses = inside & (origin + size > end).any(1)
    clipped = torch.minimum(size, end - origin)
    points = clipped.clamp_min(0).prod(1)
    if border == "clip":
        crosses, clipped = torch.zeros_like(crosses), size
    rows = ORDERS[order](tree)
    nodes = Nodes(
        origin=origin[rows].int(),
        size=clipped[rows].int(),
        level=level[rows].to(torch.int8),
        order=rows,
        inside=inside,
        points=points,
        beyond=_children_beyond(inside, tree),
        forced=crosses[: tree.inner],
        outside=~inside[: tree.inner],
    )
    return Nodes(*(x.to(device) for x in nodes))


@cached_constant(64)
def _parents(
    grid: tuple[int, ...], ratio: tuple[int, ...], device: torch.device
) -> Int64[Tensor, " children"]:
    """Parent of each node of the next level, as its place in a grid."""
    x = torch.arange(product(grid)).view(grid)
    for axis, r in enumerate(ratio):
        x = x.repeat_interleave(r, dim=axis)
    return x.flatten().to(device)


def _children_beyond(inside: Bool[Tensor, " nodes"], tree: Tree) -> Int64[Tensor, " inner"]:
    levels = tree.per_level(inside)
    counts = [tree.sum_children((~levels[i + 1]).long(), i) for i in range(tree.n_levels - 1)]
    return torch.cat([*counts, inside.new_zeros(0, dtype=torch.int64)]) * inside[: tree.inner]


def sum_pyramid(points: Float[Tensor, "b f *s"], tree: Tree) -> Float[Tensor, "b f inner"]:
    """Sums a map over every inner node, by repeated pairwise additions from fine to coarse.

    Pairwise additions of non-negative numbers keep parent >= child exactly in floating point; an
    integral image would not.
    """
    if tree.n_levels == 1:
        return points.new_zeros(*points.shape[:2], 0)
    x, sums = pad_end(points, tree.sizes[0]), []
    for blocks in (tree.sizes[-2], *reversed(tree.ratios[:-1])):
        for axis, block in enumerate(blocks):
            x = _sum_blocks(x, axis + 2, block)
        sums.append(x.flatten(2))
    return torch.cat(sums[::-1], -1)


def _sum_blocks(x: Tensor, axis: int, block: int) -> Tensor:
    """Sums consecutive blocks along an axis."""
    x = x.unflatten(axis, (-1, block))
    axis += 1
    while x.shape[axis] > 1:
        pairs = x.shape[axis] // 2
        even, odd = x.narrow(axis, 0, 2 * pairs).unflatten(axis, (pairs, 2)).unbind(axis + 1)
        rest = x.narrow(axis, 2 * pairs, x.shape[axis] - 2 * pairs)
        x = torch.cat([even + odd, rest], axis) if rest.shape[axis] else even + odd
    return x.squeeze(axis)


def leaves(split: Bool[Tensor, "b f inner"], tree: Tree) -> Bool[Tensor, "b f nodes"]:
    """Finds nodes that exist and do not split; a split below an unsplit node has no effect.

    With the border "clip" nodes beyond the border exist too, as children of nodes that cross it.
    """
    levels = _existing_levels(split, tree)
    splits = tree.per_level(split)
    out = [exists & ~parents for exists, parents in zip(levels, splits, strict=False)]
    return torch.cat([*out, levels[-1]], -1)


def existing(split: Bool[Tensor, "b f inner"], tree: Tree) -> Bool[Tensor, "b f nodes"]:
    """Finds nodes that exist: the roots, and the children of existing nodes that split."""
    return torch.cat(_existing_levels(split, tree), -1)


def _existing_levels(
    split: Bool[Tensor, "b f inner"], tree: Tree
) -> list[Bool[Tensor, "b f level"]]:
    every = tree.divides or tree.border == "clip"
    inside = tree.per_level(tree.nodes(split.device).inside)
    out = [inside[0].expand(*split.shape[:2], -1)]
    for level, splits in enumerate(tree.per_level(split)):
        children = tree.expand(out[-1] & splits, level)
        out.append(children if every else children & inside[level + 1])
    return out


def cells_from_splits(
    split: Bool[Tensor, "b f inner"],
    tree: Tree,
    *,
    frames: int,
    frame_size: int = 1,
    lengths: Lengths | None = None,
    total: Count | None = None,
) -> Cells:
    """Turns the leaves of split masks into cells, see `cells_from_nodes`."""
    node = leaves(split, tree)
    if tree.overhangs:
        node = _filled(node, tree, lengths, total, frames)
    return cells_from_nodes(
        node, tree, frames=frames, frame_size=frame_size, lengths=lengths, total=total
    )


def _filled(
    node: Bool[Tensor, "b f nodes"],
    tree: Tree,
    lengths: Lengths | None,
    total: Count | None,
    frames: int,
) -> Bool[Tensor, "b f nodes"]:
    """Drops leaves beyond the border, but for those that are needed to reach a known number."""
    inside = tree.nodes(node.device).inside
    within, beyond = node & inside, node & ~inside
    shared = frames // node.shape[1]  # frames that use each tiling
    if lengths is not None:
        beyond, wanted = beyond.flatten(1), known.column(lengths, node.device) // shared
        have = within.flatten(1).sum(1, keepdim=True)
    elif total is not None:
        beyond, wanted, have = beyond.flatten(), total // shared, within.sum()
    else:
        return within
    kept = beyond & (beyond.cumsum(-1) <= wanted - have)
    return within | kept.view_as(within)


def cells_from_nodes(
    chosen: Bool[Tensor, "b f nodes"],
    tree: Tree,
    *,
    frames: int,
    frame_size: int = 1,
    lengths: Lengths | None = None,
    total: Count | None = None,
    tiling: bool = True,
) -> Cells:
    """Packs chosen nodes as cells, sample by sample, frame by frame, in the tree's order.

    Args:
        chosen: f is 1 (the same cells in all frames) or the number of frames of cells.
        frames: frames of cells, each `frame_size` field frames long.
        lengths: cells per sample, if the host knows them.
        total: cells of the batch, if the host knows them; without either, the lengths cost one host
            synchronisation.
        tiling: whether the chosen nodes cover the domain exactly once.
    """
    nodes = tree.nodes(chosen.device)
    chosen = chosen.index_select(-1, nodes.order).expand(-1, frames, -1)
    if lengths is None and (total is None or reads_are_free(chosen)):
        lengths = tuple(chosen.sum((1, 2)).tolist())  # the sync; the counts size the rest
    if lengths is not None:
        total, longest = known.total(lengths), max(known.distinct(lengths), default=0)
        offsets = known.offsets_of(lengths, chosen.device)
    else:
        assert total is not None
        longest = min(total, frames * product(tree.grids[-1]))
        ends = chosen.sum((1, 2)).cumsum(0, dtype=torch.int32)
        offsets = torch.nn.functional.pad(ends, (1, 0))
    node, frame = _compact(chosen, total)
    time = torch.zeros_like(node) if frame is None else frame * frame_size
    length = torch.full_like(node, frame_size)
    return Cells(
        origin=torch.cat([time.int()[:, None], nodes.origin.index_select(0, node)], 1),
        size=torch.cat([length.int()[:, None], nodes.size.index_select(0, node)], 1),
        level=nodes.level.index_select(0, node),
        cu_seqlens=offsets,
        max_seqlen=longest,
        lengths=lengths,
        shape=(frames * frame_size, *tree.shape),
        sizes=tuple((frame_size, *size) for size in tree.sizes),
        tiling=tiling,
        on_grid=True,
        overhang=tree.overhangs,
    )


def _compact(
    chosen: Bool[Tensor, "b f k"], total: Count
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"] | None]:
    """Finds node and frame (None for one frame) of the `total` true entries."""
    _, frames, count = chosen.shape
    index = true_entries(chosen.reshape(-1), total)
    return index % count, index // count % frames if frames > 1 else None


def true_entries(mask: Bool[Tensor, " k"], total: Count) -> Int64[Tensor, " n"]:
    """Lists the indices of the `total` true entries: static shapes, no synchronisation."""
    if reads_are_free(mask):
        return mask.nonzero().squeeze(1)
    rank = mask.cumsum(0) - 1
    slots = torch.where(mask, rank, total)
    rows = torch.arange(mask.shape[0], device=mask.device)
    return rows.new_zeros(total + 1).scatter(0, slots, rows)[:total]
