"""Uniform cells of which a share is dropped in training (Liu et al., "PatchDropout: economizing
vision transformers using patch dropout", WACV 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Cells, repeated
from adaptok.cells.lengths import common, offsets_of
from adaptok.layers.boundary import Boundary
from adaptok.layers.mixed import takes_lists
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.uniform import UniformTokenizer
from adaptok.utils.arguments import (
    Dimensions,
    PerAxis,
    Positive,
    Rate,
    Seed,
    check_value,
    checked,
)
from adaptok.utils.constants import cached_constant, drawn


@TOKENIZERS.register("patch_dropout")
class PatchDropoutTokenizer(UniformTokenizer):
    """Uniform cells; in training ``max(1, int(n * (1 - drop)))`` of the n cells of each sample, in
    evaluation all: a baseline without content.

    Which ones are kept follows from the seed and their number alone, the same for all samples, so
    that a batch equals its samples. Draw others in every step by the schedule `seeds`
    (``schedule=seeds``). Dropped cells leave holes; how each decoder fills them is on
    the method's page.

    Args:
        size: cell size, one number or one per space axis.
        patch_sizes: sizes that ``patch_size=`` may choose per call, see `uniform`.
        drop: share of the cells of a sample, over all its frames, that training leaves out.
        seed: of the chance; also per call.
        frame_size: extent of every cell in time.
    """

    @checked
    def __init__(
        self,
        ndim: Dimensions,
        in_channels: Positive,
        dim: Positive,
        *,
        size: PerAxis = 8,
        patch_sizes: Sequence[PerAxis] | None = None,
        drop: Rate = 0.5,
        seed: Seed = 0,
        frame_size: Positive = 1,
    ):
        sizes: dict[str, Any] = {"size": size, "patch_sizes": patch_sizes, "frame_size": frame_size}
        super().__init__(ndim, in_channels, dim, **sizes)
        self.spec = dataclasses.replace(self.spec, tiling=False)
        self.drop, self.seed = drop, seed
        self.controls = (*self.controls, "seed")

    @takes_lists
    @torch.no_grad()
    def cells(
        self, field: Float[Tensor, "b *tcs"], *, boundary: Boundary = None, **control: Any
    ) -> Cells:
        """Makes all cells, or in training those that are kept, in raster order.

        Raises:
            ValueError: a wrong field, seed or patch size, or an unknown control.
        """
        seed = control.pop("seed", None)
        seed = self.seed if seed is None else seed
        if not torch.compiler.is_compiling():
            check_value(seed, Seed, "seed")
        every = super().cells(field, boundary=boundary, **control)
        count, b = common(every.lengths), every.batch_size
        assert count is not None, "all samples have one shape"
        kept = max(1, int(count * (1 - self.drop)))
        if not self.training or kept == count:
            return every
        rows = _kept(int(seed), count, kept, every.device)
        rows = (rows + count * torch.arange(b, device=every.device)[:, None]).flatten()
        lengths = repeated(kept, b)
        return every.replace(
            **{name: getattr(every, name)[rows] for name in ("origin", "size", "level")},
            cu_seqlens=offsets_of(lengths, every.device),
            max_seqlen=kept,
            lengths=lengths,
            tiling=False,
        )


@cached_constant(16)  # graphs know no generators
def _kept(seed: int, count: int, kept: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return drawn(lambda: torch.randperm(count, generator=generator)[:kept].sort().values, device)
