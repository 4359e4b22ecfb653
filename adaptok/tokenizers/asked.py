"""What a tree tokenizer asks its indicator and marking for, checked where reading is free."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, Count
from adaptok.cells.lengths import total
from adaptok.registry import name_of
from adaptok.tokenizers.marking import Marks
from adaptok.tree import Tree
from adaptok.utils.reading import reads_are_free


def learns(indicator: Any) -> bool:
    """Whether gradients are to reach an indicator: it says so by ``learned``, or has parameters
    that require them.
    """
    said = getattr(indicator, "learned", None)
    if said is not None:
        return bool(said)
    return isinstance(indicator, nn.Module) and any(p.requires_grad for p in indicator.parameters())


def check_scores(scores: Any, wanted: tuple[Count, Count], indicator: Any) -> None:
    """Raises ``ValueError`` for scores that are no finite tensor (b, inner)."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != wanted:
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"indicator {name_of(indicator)} gives scores {given}, (b, inner) = {wanted} are asked "
            "for: one per sample and inner node of the tree"
        )
    if reads_are_free(scores):
        _check_finite(scores.detach(), indicator)


def _check_finite(scores: Tensor, indicator: Any) -> None:
    if torch.isfinite(scores.sum()):  # no mask is needed; it can overflow, hence the second look
        return
    wrong = ~torch.isfinite(scores)
    if wrong.any():
        sample, node = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"indicator {name_of(indicator)} gives the score {float(scores[sample, node])} for "
            f"node {node} of sample {sample}; {int(wrong.sum())} of its scores are not finite"
        )


def check_marks(marks: Marks, wanted: tuple[Count, ...], marking: Any) -> None:
    """Raises ``ValueError`` for marks that are no bool tensor (b, f, inner)."""
    split = marks.split
    if split.dtype != torch.bool or tuple(split.shape) != wanted:
        raise ValueError(
            f"marking {name_of(marking)} gives {split.dtype} {tuple(split.shape)}, bool {wanted} "
            "is asked for: one per sample, frame and inner node of the tree"
        )


def check_count(marks: Marks, cells: Cells, marking: Any) -> None:
    """Raises ``ValueError`` if there are other cells than the marking says."""
    if not reads_are_free(marks.split):
        return
    told = marks.total if marks.lengths is None else total(marks.lengths)
    if told is None or told == len(cells.origin):
        return
    raise ValueError(
        f"marking {name_of(marking)} tells {told} leaves, its splits have {len(cells.origin)}: it "
        "counts wrong, or the indicator's `monotone = True` is not so (see "
        "adaptok.testing.check_marking and check_indicator)"
    )


def scores_of_cells(
    scores: Float[Tensor, "b f inner"], tree: Tree, cells: Cells, *, per_frame: bool
) -> Float[Tensor, " n"]:
    """Picks the score of each cell, for cells of the finest level that of their parents.

    Args:
        per_frame: whether each frame of cells has scores of its own.
    """
    number = nodes_of(cells, tree, cells.level.long().clamp(max=tree.n_levels - 2))
    frame = torch.zeros_like(number)
    if per_frame:
        frame = cells.origin[:, 0].long() // cells.sizes[0][0]
    return scores[cells.sample, frame, number]


def nodes_of(cells: Cells, tree: Tree, level: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Numbers the nodes of a tree that begin where cells do.

    Args:
        level: of the node of each cell.
    """
    size = cells.origin.new_tensor(tree.sizes)[level]  # (n, a)
    grid = cells.origin.new_tensor(tree.grids)[level]
    number = torch.zeros_like(level)
    for axis in range(size.shape[1]):
        number = number * grid[:, axis] + cells.origin[:, axis + 1] // size[:, axis]
    return number + level.new_tensor(tree.offsets)[level]
