"""TokenSet: features and their cells, the contract of tokenizer, processor and decoder."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from adaptok.cells import Cells, register_pytree


def cell_center(cells: Cells) -> Float[Tensor, "n a"]:
    """Centres of the cells in grid points."""
    return cells.center


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """Describes a tokenizer's cells and features; processors and decoders are built from it.

    Attributes:
        ndim: number of space dimensions, 1 to 3.
        in_channels: channels that the tokenizer embeds.
        dim: width of the features.
        sizes: cell size of each level, coarse to fine, time first.
        tiling: whether cells cover the domain exactly once.
        layout: type of ``Cells.layout``, or None if boxes say everything.
        position_center: centres (n, a) in grid points that processors compute positions from. Only
            a tokenizer that reproduces the misplaced positions of published code has others than
            those of its cells (`adaptok.layers.positions.misplaced_center`).
    """

    ndim: int
    in_channels: int
    dim: int
    sizes: tuple[tuple[int, ...], ...]
    tiling: bool = True
    layout: type | None = None
    position_center: Callable[[Cells], Tensor] = dataclasses.field(
        default=cell_center, kw_only=True
    )

    def __post_init__(self):
        if min(map(min, self.sizes)) < 1:
            raise ValueError(f"frame_size and cell sizes must be at least 1, got {self.sizes}")


class Tokenizer(Protocol):
    """Turns fields into tokens; `controls` names what may change per call, such as "budget"."""

    spec: TokenizerSpec

    @property
    def controls(self) -> tuple[str, ...]:
        """Names that may change per call."""
        ...

    def cells(self, field: Tensor, *, boundary: Tensor | None = None, **control: Any) -> Cells:
        """Scores and refines; needs no weights."""
        ...

    def embed(self, x: Tensor, cells: Cells, *, boundary: Tensor | None = None) -> TokenSet:
        """Embeds cells; x may differ from the scored field (normalised, lifted)."""
        ...

    def __call__(
        self, field: Tensor, *, boundary: Tensor | None = None, **control: Any
    ) -> TokenSet:
        """``embed(field, cells(field))``."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSet:
    """Packed features with their cells; immutable, a pytree.

    Attributes:
        features: differentiable, one row per token of the whole batch.
        cells: geometry of the same rows.
        cond: conditioning per sample (lead time, parameters), as wide as the features, or None;
            processors add it to all tokens of the sample.
    """

    features: Float[Tensor, "n d"]
    cells: Cells
    cond: Float[Tensor, "b e"] | None = None

    def replace(self, **changes: Any) -> TokenSet:
        """A copy with other features, cells or cond."""
        return dataclasses.replace(self, **changes)

    def to(self, *args: Any, **kwargs: Any) -> TokenSet:
        """Moves everything; a dtype applies to features and cond only."""
        cond = None if self.cond is None else self.cond.to(*args, **kwargs)
        return TokenSet(self.features.to(*args, **kwargs), self.cells.to(*args, **kwargs), cond)

    def split(self) -> list[Tensor]:
        """Features of each sample, ``[(n_i, d)]``; their concatenation is `features` again."""
        lengths = self.cells.lengths or tuple(self.cells.cu_seqlens.diff().tolist())
        return list(self.features.split(lengths))

    def padded(self) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
        """Pads each sample with zero rows to `max_seqlen`; returns features and a mask of the real
        rows.
        """
        cells = self.cells
        b, m = cells.batch_size, cells.max_seqlen
        dense = self.features.new_zeros(b * m, self.features.shape[1])
        dense = dense.index_copy(0, self._padded_rows(), self.features)
        mask = torch.arange(m, device=cells.device) < cells.cu_seqlens.diff()[:, None]
        return dense.unflatten(0, (b, m)), mask

    def from_padded(self, dense: Float[Tensor, "b m e"]) -> TokenSet:
        """Inverts `padded` exactly; drops whatever stands in the padding."""
        return self.replace(features=dense.flatten(0, 1)[self._padded_rows()])

    def _padded_rows(self) -> Int64[Tensor, " n"]:
        cells = self.cells
        shift = torch.arange(cells.batch_size, device=cells.device) * cells.max_seqlen
        shift = shift - cells.cu_seqlens[:-1]
        return torch.arange(len(cells), device=cells.device) + shift[cells.sample]


register_pytree(TokenSet, ("features", "cells", "cond"))


def as_field(
    field: Tensor, ndim: int, in_channels: int | None = None, *, what: str = "field"
) -> Float[Tensor, "b t c *s"]:
    """Checks a field and gives ``(b, c, *space)`` its time axis.

    Values are checked for NaN and infinity in eager mode on the CPU only: elsewhere it would sync.

    Raises:
        ValueError: not floating point, wrong rank, wrong number of channels, empty, or not finite.
    """
    if not isinstance(field, Tensor) or not field.is_floating_point():
        given = f"{field.dtype} tensor" if isinstance(field, Tensor) else type(field).__name__
        raise ValueError(f"a {what} is a floating-point tensor, got a {given}")
    if field.ndim == ndim + 2:
        field = field.unsqueeze(1)
    if field.ndim != ndim + 3:
        raise ValueError(
            f"a {what} with {ndim} space dimension(s) is (b, t, c, *space) or (b, c, *space), "
            f"got shape {tuple(field.shape)}"
        )
    if in_channels is not None and field.shape[2] != in_channels:
        raise ValueError(f"built for {in_channels} channel(s), the {what} has {field.shape[2]}")
    if 0 in field.shape:
        raise ValueError(f"the {what} is empty: shape {tuple(field.shape)}")
    if torch.compiler.is_compiling():
        for extent in field.shape:
            operator.index(extent)  # trees and groups are constants of a graph: one per shape
    elif field.device.type == "cpu":
        _check_finite(field, what)
    return field


def _check_finite(field: Tensor, what: str) -> None:
    # The sum needs no mask of the field's size; it can overflow, hence the second look.
    if torch.isfinite(field.detach().sum()) or torch.isfinite(field).all():
        return
    sample, frame, channel, *point = torch.nonzero(~torch.isfinite(field))[0].tolist()
    value = float(field[(sample, frame, channel, *point)])
    raise ValueError(
        f"the {what} is not finite: {value} in sample {sample}, frame {frame}, channel {channel} "
        f"at grid point {tuple(point)}"
    )
