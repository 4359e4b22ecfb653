"""Boundary codes as calls of tokenizers take them; the codes are in `adaptok.utils.boundary`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from adaptok.cells import Count
from adaptok.utils.arguments import accepts, shown
from adaptok.utils.boundary import OPEN, PERIODIC
from adaptok.utils.reading import reads_are_free

Boundary = Int[Tensor, "..."] | None  # codes (d, 2), or (b, d, 2) per sample


CODES = Integer[Tensor, "... 2"]


def codes_of_samples(boundary: Tensor, batch: Count, ndim: int) -> Int[Tensor, "#b d 2"]:
    """Gives boundary codes the axis of the samples, which may share them.

    Raises:
        ValueError: another shape.
    """
    codes = boundary if boundary.ndim == 3 else boundary[None]
    if codes.shape[1:] != (ndim, 2) or codes.shape[0] not in (1, batch):
        raise ValueError(
            f"boundary codes are ({ndim}, 2) or (b, {ndim}, 2), got shape {tuple(boundary.shape)} "
            f"for b = {batch}; at both ends of each axis: wall 0, open 1, periodic 2"
        )
    return codes


def codes_of_frames(boundary: Boundary, frames: Count) -> Boundary:
    """Gives every frame the codes of its sample, where frames are as many samples; codes that all
    samples share stay as they are.
    """
    if boundary is None or boundary.ndim == 2 or boundary.shape[0] == 1:
        return boundary
    return boundary.repeat_interleave(frames, 0)


def check_boundary(boundary: Any, batch: Count, ndim: int) -> None:
    """Checks boundary codes wherever they enter; values on the CPU only, elsewhere it would sync.

    Raises:
        ValueError: no integer tensor, another shape, an unknown code, or an axis that is periodic
            at one end only.
    """
    if boundary is None or torch.compiler.is_compiling():
        return
    if not accepts(CODES, boundary):
        raise ValueError(
            f"boundary must be an integer tensor ({ndim}, 2) or (b, {ndim}, 2) with a code for "
            f"both ends of each axis: wall 0, open 1, periodic 2; torch.full(({ndim}, 2), 2) is "
            f"periodic everywhere; got {shown(boundary)}"
        )
    if boundary.is_meta:
        raise ValueError("the boundary is on the meta device, where it has no values")
    codes = codes_of_samples(boundary, batch, ndim)
    if not reads_are_free(codes):
        return
    if unknown := set(codes.unique().tolist()) - {0, 1, 2}:
        given = ", ".join(map(str, sorted(unknown)))
        raise ValueError(f"unknown boundary code {given}; wall is 0, open 1, periodic 2")
    periodic = codes == PERIODIC
    if bool((periodic[..., 0] != periodic[..., 1]).any()):
        raise ValueError(
            f"boundary: an axis is periodic at both ends or at none, got {codes.tolist()}"
        )


def periodic_axes(boundary: Boundary, ndim: int, like: Tensor) -> list[Tensor | None]:
    """Returns per axis a bool tensor that broadcasts against `like`; the host reads no code."""
    if boundary is None:
        return [None] * ndim
    codes = codes_of_samples(boundary, like.shape[0], ndim)
    periodic = (codes.to(like.device) == PERIODIC).all(-1).expand(like.shape[0], ndim)
    return [periodic[:, axis].view(-1, *[1] * (like.ndim - 1)) for axis in range(ndim)]


def pad_beyond(
    x: Float[Tensor, "b t c *s"], space: Sequence[int], boundary: Boundary
) -> Float[Tensor, "b t c *r"]:
    """Continues a field beyond the far end of each axis up to `space` grid points, see
    `pad_around`.
    """
    here = x.shape[x.ndim - len(space) :]
    return pad_around(x, [(0, end - n) for n, end in zip(here, space, strict=True)], boundary)


def pad_around(
    x: Float[Tensor, "b *cs"], margins: Sequence[tuple[int, int]], boundary: Boundary
) -> Float[Tensor, "b *cr"]:
    """Continues a field before and after each space axis.

    A periodic axis starts anew, however wide the margin; a wall and an open end repeat the last
    value.

    Args:
        margins: grid points before and after, one pair per space axis, which come last in x.
        boundary: codes (d, 2), or (b, d, 2) per sample.
    """
    first = x.ndim - len(margins)
    for axis, wrap in enumerate(periodic_axes(boundary, len(margins), x), start=first):
        n, (before, after) = x.shape[axis], margins[axis - first]
        parts = [x]
        for start, stop in ((-before, 0), (n, n + after)):
            if start == stop:
                continue
            beyond = torch.arange(start, stop, device=x.device)
            more = x.index_select(axis, beyond.clamp(0, n - 1))
            if wrap is not None:
                more = torch.where(wrap, x.index_select(axis, beyond % n), more)
            parts.insert(0 if stop == 0 else len(parts), more)
        x = torch.cat(parts, axis) if len(parts) > 1 else x
    return x


def boundary_codes(
    boundary: Boundary, batch: Count, ndim: int, device: torch.device
) -> Int[Tensor, "#b d 2"]:
    """Brings boundary codes to one per sample, axis and end; None makes every end open.

    Raises:
        ValueError: see `check_boundary`.
    """
    if boundary is None:
        return torch.full((1, ndim, 2), OPEN, device=device)
    check_boundary(boundary, batch, ndim)
    return codes_of_samples(boundary, batch, ndim).to(device).long()
