"""Patches kept at random: a baseline blind to the image."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Cells
from adaptok.vision.tiling import ImageCells, finest_cells


class RandomCells(ImageCells):
    """Draws finest cells at random, in each image as many as the thresholds would leave.

    The cells leave holes, so there is no dense map of them. In training every call draws anew; in
    evaluation the choice depends only on the number of patches and images.
    """

    @torch.no_grad()
    def make(self, x: Float[Tensor, "b c h w"], **control: Any) -> Cells:
        """Returns a random subset of the patches in raster order, as many as APT has cells."""
        like, every = super().make(x, **control), finest_cells(x, self.spec)
        b = every.batch_size
        # Drawn on the CPU, so that every device gets the same; all evaluations use seed 0.
        generator = None if self.training else torch.Generator().manual_seed(0)
        chance = torch.rand(b, len(every) // b, generator=generator).to(x.device)
        rank = chance.argsort(1).argsort(1)
        rows = (rank < like.cu_seqlens.diff()[:, None]).flatten().nonzero().squeeze(1)
        kept = {name: getattr(every, name)[rows] for name in ("origin", "size", "level")}
        counts = {k: getattr(like, k) for k in ("cu_seqlens", "max_seqlen", "lengths")}
        return dataclasses.replace(every, **kept, **counts, tiling=False)
