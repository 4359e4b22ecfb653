"""The protocol of markings, and budgets per sample."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple, Protocol, SupportsIndex, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Count, Lengths, repeated
from adaptok.tree import Tree
from adaptok.utils.arguments import shown

Budget = SupportsIndex | Sequence[SupportsIndex] | Tensor  # numpy's whole numbers too


class OutOfReachError(ValueError):
    """A number of tokens that the sizes of the cells do not reach."""


class Marks(NamedTuple):
    """Split masks, and what the host knows about the resulting leaves.

    Attributes:
        split: bool (b, f, inner).
        lengths: leaves per sample, or None.
        total: leaves of the batch if their number is known and `lengths` is not, else None.
    """

    split: Tensor
    lengths: Lengths | None
    total: int | None = None


@runtime_checkable
class Marking(Protocol):
    """Turns node scores into split masks.

    `monotone` says that no child outscores its parent; `shared` is the number of frames that use
    each tiling; budgets and lengths count the leaves of all frames of a sample. `controls` names
    what may change per call. A marking whose number of leaves does not depend on the scores sets
    ``static = True``; then a whole step can be compiled. One that asks how well cells hold the
    field sets ``needs_errors = True``; it is called with ``errors`` (b, f, nodes) too, the squared
    errors of all nodes, which add up to that of the tiling (`relative_errors`).
    """

    controls: tuple[str, ...]

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
    ) -> Marks:
        """Marks the nodes to split."""
        ...


def finite(scores: Float[Tensor, "b f inner"]) -> Float[Tensor, "b f inner"]:
    """Returns scores that can be compared, whatever an indicator gives: infinity becomes the
    largest number, and so does NaN, since nothing that is known argues against splitting there.
    """
    most = torch.finfo(scores.dtype).max
    return scores.nan_to_num(most, most, -most)


def rankable(scores: Float[Tensor, "b f inner"], tree: Tree) -> Float[Tensor, "b f inner"]:
    """Returns finite scores, but +inf for nodes that the borders force to split, and -inf for those
    that do not exist.
    """
    scores = finite(scores)
    if tree.divides:
        return scores
    nodes = tree.nodes(scores.device)
    return scores.masked_fill(nodes.forced, torch.inf).masked_fill(nodes.outside, -torch.inf)


def per_sample(budget: Budget, batch: Count) -> Lengths:
    """Returns one host budget per sample; a CUDA tensor of budgets costs a synchronisation.

    Raises:
        ValueError: not whole numbers, or not one per sample.
    """
    meta = isinstance(budget, Tensor) and budget.is_meta
    values: Any = budget.tolist() if isinstance(budget, Tensor) and not meta else budget
    if isinstance(values, Integral) and not isinstance(values, bool):
        return repeated(int(values), batch)
    if isinstance(batch, torch.SymInt):
        raise ValueError(
            f"a program for any batch takes one budget for all samples, got {budget!r}"
        )
    listed = isinstance(values, Sequence) and len(values) == batch
    if listed and all(isinstance(v, Integral) and not isinstance(v, bool) for v in values):
        return tuple(int(v) for v in values)
    raise ValueError(
        f"budget is a whole number or {batch} of them, one per sample; got {shown(budget)}"
    )
