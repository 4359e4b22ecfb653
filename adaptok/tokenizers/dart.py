"""DART, tokens at quantiles of a learned density (Yin et al., "Differentiable Dynamic Adaptive
Region Tokenizer for Vision Transformer and Mamba")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, Count, product
from adaptok.cells.lengths import common
from adaptok.layers.boundary import Boundary, check_boundary
from adaptok.layers.mixed import takes_lists
from adaptok.layers.strip import (
    StripCells,
    StripLayout,
    average_table,
    make_strip,
    sample_strip,
    strip_cells,
)
from adaptok.patches import level_grid
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.base import CellTokenizer, check_controls, frames_of_cells, per_axis
from adaptok.tokenizers.density import Density, PointFeatures
from adaptok.tokenizers.ignoring import Ignore, IgnoresChannels, as_ignore, only
from adaptok.tokenizers.marking import Budget, OutOfReachError, per_sample
from adaptok.tokens import TokenizerSpec, as_field
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, checked


class DartTokenizer(IgnoresChannels, CellTokenizer):
    """Tokens of equal mass of a density, along a strip of bands (`adaptok.layers.strip`).

    The field inside each token is sampled at the same number of points, differentiably in where the
    token lies, and embedded by one linear map: so what the tokens are good for trains the density.
    `Cells` are the boxes around the tokens in whole grid points, with the real ends in
    ``cells.strip``; gradients go through cells here.

    Args:
        spec: one size: that of a cell of the density, time first.
        density: called as ``density(field, boundary)``, gives positive (b, *grid).
        points: samples per token and space axis.
        budget: tokens per sample over all frames; None: as many as the density has cells.
        bands: of each axis but the last; None: in proportion to the density's grid.
        positions: side of a learned table of positions, averaged over each token; None: no table.
        zeros: 0 follows the ends of the domain, as in the authors' code, instead of the field that
            the boundary's rule continues.
        ignore: channels that the density does not see.
    """

    controls = ("budget",)
    static = True

    def __init__(
        self,
        spec: TokenizerSpec,
        density: nn.Module,
        *,
        points: int,
        budget: int | None = None,
        bands: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        zeros: bool = False,
        ignore: Ignore = "constants",
    ):
        frame, *size = spec.sizes[0]
        inside = spec.in_channels * frame * points**spec.ndim
        super().__init__(spec, nn.Linear(inside, spec.dim))
        self.density = density
        self.size, self.points, self.budget = tuple(size), points, budget
        if bands is not None and len(bands) != spec.ndim - 1:
            raise ValueError(f"bands are {spec.ndim - 1} number(s), got {list(bands)}")
        self.bands, self.zeros = bands, zeros
        self.table = None if positions is None else nn.Parameter(torch.empty(*positions, spec.dim))
        if self.table is not None:
            nn.init.trunc_normal_(self.table, std=0.02)
        self.ignore = as_ignore(ignore)

    @takes_lists
    def cells(
        self, field: Float[Tensor, "b *tcs"], *, boundary: Boundary = None, **control: Any
    ) -> Cells:
        """Computes the density and divides it; has a graph if the density has one.

        Args:
            control: ``budget``, one number for all samples.

        Raises:
            ValueError: a wrong field, an unknown control, or a budget below one token per frame.
        """
        check_controls(control, self.controls)
        field = as_field(field, self.spec.ndim)
        check_boundary(boundary, field.shape[0], self.spec.ndim)
        b, t, channels, *space = field.shape
        frames = frames_of_cells(t, self.spec.sizes[0][0])
        bands, count = self.parts(tuple(space), b, frames, control.get("budget"))
        density = self.density(only(field, self.seen(channels)), boundary)
        for axis, (n, s) in enumerate(zip(space, self.size, strict=True), start=1):
            if n % s:  # the last cell is shorter
                share = torch.ones(density.shape[axis], device=density.device, dtype=density.dtype)
                share[-1] = n % s / s
                density = density * share.view(-1, *[1] * (density.ndim - 1 - axis))
        strip = make_strip(density, bands, count)
        return strip_cells(strip, StripLayout(self.size), (t, *space), self.spec.sizes, b)

    def parts(
        self, space: tuple[int, ...], batch: Count, frames: int, budget: Budget | None = None
    ) -> tuple[list[int], int]:
        """Counts bands per axis and tokens of a frame.

        Raises:
            ValueError: a budget without tokens, or one that differs from sample to sample.
        """
        grid = level_grid(space, self.size)
        budget = self.budget if budget is None else budget
        count = product(grid)
        if budget is not None:
            total = common(per_sample(budget, batch))
            if total is None:
                raise ValueError(f"dart has one budget for all samples of a batch, got {budget}")
            count = total // frames
        if count < 1:
            raise OutOfReachError(f"budget {budget} leaves no token in each of {frames} frame(s)")
        share = (count / product(grid)) ** (1 / len(grid))
        if self.bands is not None:
            return list(self.bands), count
        return [max(1, round(n * share)) for n in grid[:-1]], count

    def features(
        self, x: Float[Tensor, "b t c *s"], cells: Cells, boundary: Boundary
    ) -> Float[Tensor, "n d"]:
        """Samples each token at its real place; raises ``ValueError`` for cells without one."""
        if not isinstance(cells, StripCells) or cells.strip is None:
            raise ValueError(
                "these cells have no strip: give those of `cells`, or some of their samples"
            )
        x = rearrange(x, "b (f fs) c ... -> b f (fs c) ...", fs=self.spec.sizes[0][0])
        strip = cells.strip
        inside = sample_strip(x, strip, self.size, self.points, boundary, zeros=self.zeros)
        features = self.embedding(inside)  # (b, f, n, d)
        if self.table is not None:
            position = average_table(self.table, strip, level_grid(cells.shape[1:], self.size))
            features = features + position[:, None].to(features.dtype)
        return features.flatten(0, 2)


@TOKENIZERS.register("dart")
@checked
def dart(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    size: PerAxis | None = None,
    points: Positive | None = None,
    budget: Positive | None = None,
    bands: Sequence[Positive] | None = None,
    positions: PerAxis | None = None,
    width: Positive = 96,
    version: Literal["points", "channels"] = "points",
    statistics: Literal["sample", "batch"] = "sample",
    zeros: bool = False,
    frame_size: Positive = 1,
    ignore: Ignore = "constants",
) -> DartTokenizer:
    """DART: boundaries at quantiles of a learned density, differentiable, in one shot.

    The number of tokens is fixed. A token is a piece of a row of an image, of varying height and
    width; a few cross the end of their row. The density is computed from the points of each of its
    cells; another one, such as on features of a frozen network, goes to `DartTokenizer`.

    Args:
        size: grid points of a cell of the density (authors: 16), one number or one per axis; None:
            8, or what suits the budget of a run.
        points: samples per token and axis; None: the largest of `size`.
        budget: tokens per sample over all frames; None: as many as the density has cells. Also per
            call.
        bands: along each axis but the last; None: in proportion to the grid of the density
            (authors: 14 of 224 points, whatever the number of tokens).
        positions: side of a learned table of positions, averaged over each token, one number or one
            per axis (authors: 14); None: no table (rotary positions belong to the processor).
        width: features of a cell of the density, and of the hidden layer behind them.
        version: of the density: "points" or "channels" (the authors' second one).
        statistics: that standardise its scores, of each "sample", or of the whole "batch" as the
            authors', with which the tokens of a sample depend on those beside it.
        zeros: at the ends of the domain interpolate towards 0, as in the authors' code, instead of
            towards the field continued by the boundary's rule.
        frame_size: extent of every cell in time.
        ignore: what the density does not see: "constants" (the static fields of a surrogate), or
            channels by number; [] for none.

    Raises:
        ValueError: knobs that make no sense, such as another number of bands.
    """
    own = per_axis(8 if size is None else size, ndim)
    spec = TokenizerSpec(ndim, in_channels, dim, ((frame_size, *own),), False, StripLayout)
    features = PointFeatures(own, width)
    return DartTokenizer(
        spec,
        Density(features, own, width, version=version, statistics=statistics),
        points=max(own) if points is None else points,
        budget=budget,
        bands=bands,
        positions=None if positions is None else per_axis(positions, ndim, "positions"),
        zeros=zeros,
        ignore=ignore,
    )
