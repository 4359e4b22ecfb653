"""Patch jitter: the domain is shifted under the grid of cells, and the prediction back again.

As in Walrus (McCabe et al., 2025): periodic axes roll, the others get a margin, so that the borders
of cells lie elsewhere in every step and their artifacts do not add up in rollouts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import codes_of_samples
from adaptok.tokenizers.given import GivenTokenizer
from adaptok.utils.arguments import NonNegative, accepts, shown
from adaptok.utils.boundary import PERIODIC


class Jitter(NamedTuple):
    """A shift of the domain under the cells.

    Attributes:
        offset: int64 (ndim,), grid points per space axis, counted modulo the coarsest cell.
        periodic: which axes are; shapes follow from it, so that the host has to know.
    """

    offset: Tensor
    periodic: tuple[bool, ...]


def periodic_on_host(boundary: Tensor | None, ndim: int) -> tuple[bool, ...]:
    """Reads which axes are periodic; boundary codes on a device are waited for.

    Raises:
        ValueError: samples that differ in it.
    """
    if boundary is None:
        return (False,) * ndim
    codes = codes_of_samples(boundary, len(boundary) if boundary.ndim == 3 else 1, ndim)
    found = {tuple(axes) for axes in (codes == PERIODIC).all(-1).tolist()}
    if len(found) > 1:
        raise ValueError(
            "jitter rolls periodic axes and pads the others: all samples of a batch must have the "
            f"same periodic axes, got {sorted(found)}"
        )
    return found.pop()


def jitter_at(
    jitter: Any,
    steps: Sequence[int],
    ndim: int,
    device: torch.device,
    *,
    boundary: Tensor | None = None,
    periodic: tuple[bool, ...] | None = None,
) -> Jitter | None:
    """Returns the shift of a step.

    Args:
        jitter: a seed, from which (and `steps`) the offset is drawn; or an offset in grid points,
            one number per space axis; or a `Jitter` or None, which are returned.
        steps: number of the step, and of the steps inside of it.
        boundary: codes, which are read unless `periodic` is given.
        periodic: which axes are periodic.

    Raises:
        ValueError: none of these, or samples that differ in which axes are periodic.
    """
    if jitter is None or isinstance(jitter, Jitter):
        return jitter
    if accepts(NonNegative, jitter):
        draw = random.Random("/".join(["jitter", str(jitter), *map(str, steps)]))
        offset = [draw.getrandbits(31) for _ in range(ndim)]
    elif accepts(Sequence[NonNegative], jitter) and len(jitter) == ndim:
        offset = [int(points) for points in jitter]
    else:
        raise ValueError(
            f"jitter is a whole number, the seed of offsets, or an offset of {ndim} whole numbers "
            f"of grid points, got {shown(jitter)}"
        )
    if periodic is None:
        periodic = periodic_on_host(boundary, ndim)
    # Filled on the device, because a copy of numbers would wait for it.
    points = [torch.full((1,), number, dtype=torch.int64, device=device) for number in offset]
    return Jitter(torch.cat(points), periodic)


def coarsest_of(tokenizer: Any) -> tuple[int, ...]:
    """Returns the size of a tokenizer's coarsest cell along the space axes; of a rooted one, whose
    cells grow with the domain, that of its finest.

    Raises:
        ValueError: cells that are given, and do not move with the field.
    """
    if isinstance(tokenizer, GivenTokenizer):
        raise ValueError("jitter shifts a field under its cells, and cells that are given stay")
    return tokenizer.spec.sizes[0][1:]


def shifted(
    x: Float[Tensor, "b t c *s"], jitter: Jitter, coarsest: Sequence[int]
) -> Float[Tensor, "b t c *r"]:
    """Shifts a field by the offset: periodic axes roll, the others grow by the coarsest cell,
    whatever the offset, and their ends are repeated.

    Args:
        coarsest: size of the coarsest cell along the space axes.
    """
    for axis, (size, wraps) in enumerate(zip(coarsest, jitter.periodic, strict=True)):
        place = axis + x.ndim - len(coarsest)
        n = x.shape[place]
        index = torch.arange(n if wraps else n + size, device=x.device)
        index = index - jitter.offset[axis] % size
        x = x.index_select(place, index % n if wraps else index.clamp(0, n - 1))
    return x


def shifted_back(
    x: Float[Tensor, "b t c *r"], jitter: Jitter, coarsest: Sequence[int]
) -> Float[Tensor, "b t c *s"]:
    """Inverts `shifted`; margins are cut off."""
    for axis, (size, wraps) in enumerate(zip(coarsest, jitter.periodic, strict=True)):
        place = axis + x.ndim - len(coarsest)
        n = x.shape[place] - (0 if wraps else size)
        index = torch.arange(n, device=x.device) + jitter.offset[axis] % size
        x = x.index_select(place, index % n if wraps else index)
    return x
