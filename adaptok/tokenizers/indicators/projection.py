"""Errors of the best polynomial on every node of a tree, merged from fine to coarse."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.patches import pad_end
from adaptok.tokenizers.indicators.base import Field
from adaptok.tree import Tree
from adaptok.utils.magnitude import squarable, standardised


class _Fit(NamedTuple):
    """The best polynomial on each box of a grid, per map.

    Attributes:
        mean: of the values, (b, m, *grid).
        slopes: along each axis, per grid point; none for degree 0.
        square: mean squared residual; None for points, which have none.
    """

    mean: Tensor
    slopes: tuple[Tensor, ...]
    square: Tensor | None


def local_errors(
    maps: Float[Tensor, "b m *s"], tree: Tree, degree: int = 0
) -> Float[Tensor, "b m nodes"]:
    """Computes the mean squared residual of the best polynomial on every node, the finest included.

    Boxes are merged along one axis after the other. The residual of a whole is that of its parts
    plus the distance of their polynomials from that of the whole (they are orthogonal), so that
    nothing is subtracted, and a node on which a map is constant has 0 exactly. Points outside of
    the domain have no weight.

    Args:
        maps: at least float32; deviations from a value nearby, if they are to be exact.
        degree: of the polynomial: 0 (the mean) or 1 (the mean and a slope per axis).
    """
    axes = range(len(tree.shape))
    whole = pad_end(maps, tree.sizes[0])
    lengths = [
        (torch.arange(n, device=maps.device) < inside).to(maps.dtype)
        for n, inside in zip(whole.shape[2:], tree.shape, strict=True)
    ]
    slopes = (torch.zeros_like(whole),) * len(axes) if degree else ()
    fit = _Fit(whole, slopes, None)
    out = []
    for ratio in (tree.sizes[-1], *reversed(tree.ratios)):
        for axis in axes:
            if ratio[axis] > 1:
                fit = _merge(fit, axis, ratio[axis], lengths)
                lengths[axis] = lengths[axis].unflatten(0, (-1, ratio[axis])).sum(1)
        square = torch.zeros_like(fit.mean) if fit.square is None else fit.square
        out.append(square.flatten(2))
    return torch.cat(out[::-1], 2)


def _merge(fit: _Fit, axis: int, ratio: int, lengths: list[Tensor]) -> _Fit:
    """Joins `ratio` neighbours along an axis; `lengths` are the points of each box along each."""
    dim = axis + 2
    behind = [1] * (fit.mean.ndim - dim - 1)  # axes that follow
    own = lengths[axis].unflatten(0, (-1, ratio))
    total = own.sum(1, keepdim=True)
    place = own.cumsum(1) - own / 2 - total / 2  # of each center, from that of the whole
    weight, place = ((x.view(*x.shape, *behind)) for x in (own / total.clamp(min=1), place))
    parts = fit.mean.unflatten(dim, (-1, ratio))
    first = parts.narrow(dim + 1, 0, 1)  # of a box that meets the domain, the first part does too
    away = parts - first
    shift = (away * weight).sum(dim + 1, keepdim=True)
    away = away - shift
    mean = (first + shift).squeeze(dim + 1)
    apart: Tensor | float = 0.0  # of the parts: their residuals, and their slopes from the whole's
    if fit.square is not None:
        apart = fit.square.unflatten(dim, (-1, ratio))
    slopes = []
    for other, slope in enumerate(fit.slopes):
        steep = slope.unflatten(dim, (-1, ratio))
        spread = _spread(lengths[other])  # of the coordinate inside of each part
        if other == axis:
            spread = spread.unflatten(0, (-1, ratio)).view_as(weight)
            over = _spread(total).view(-1, 1, *behind)
            joined = (weight * (away * place + spread * steep)).sum(dim + 1, keepdim=True)
            joined = joined / torch.where(over > 0, over, 1)
            away = away - joined * place
        else:
            trailing = [1] * (fit.mean.ndim - other - 3 + (other < axis))
            spread = spread.view(-1, *trailing)
            joined = (weight * steep).sum(dim + 1, keepdim=True)
        apart = apart + spread * (steep - joined).square()
        slopes.append(joined.squeeze(dim + 1))
    square = (weight * (away.square() + apart)).sum(dim + 1)
    return _Fit(mean, tuple(slopes), square)


def _spread(lengths: Tensor) -> Tensor:
    """Variance of the coordinate of that many neighbouring points."""
    return (lengths.square() - 1).clamp(min=0) / 12


def relative_errors(
    field: Field, tree: Tree, degree: int = 0, *, normalise: bool = False
) -> Float[Tensor, "b nodes"]:
    """Computes the squared error of the projection onto polynomials, summed over the points,
    channels and frames of every node, relative to that of the mean of each channel.

    So the errors of a tiling add up to ``||f - Pf||^2 / ||f - mean f||^2`` of the sample; 0 if all
    its channels are constant. Each frame of a node has a polynomial of its own.

    Args:
        degree: of the polynomials, 0 or 1.
        normalise: measure each channel in units of its own spread over the sample.
    """
    axes = (1, *range(3, field.ndim))  # the frames and points of a channel
    if normalise:
        field = standardised(field, axes)
    else:
        field = squarable(field.detach(), (*axes, 2))
        field = field - field[(slice(None), slice(1), slice(None), *[slice(1)] * (field.ndim - 3))]
        field = field - field.mean(axes, keepdim=True)
    whole = field.square().mean((1, *range(3, field.ndim))).sum(1)  # over channels
    maps = field.flatten(1, 2)
    errors = local_errors(maps, tree, degree).sum(1) / field.shape[1]
    points = tree.nodes(field.device).points
    share = points / points[: tree.offsets[1]].sum()  # the coarsest nodes hold every point once
    whole = torch.where(whole > 0, whole, torch.inf)
    return errors * share.to(errors.dtype) / whole[:, None]
