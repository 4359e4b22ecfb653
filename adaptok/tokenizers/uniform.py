"""Uniform cells: the fixed patches of a plain ViT, of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Cells, nested, product, repeated
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.base import frames_of_cells, per_axis
from adaptok.tokenizers.embeddings import LinearEmbedding
from adaptok.tokenizers.patch_sizes import PatchSizeTokenizer
from adaptok.tokens import TokenizerSpec
from adaptok.tree import Tree, cells_from_splits
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, checked


@TOKENIZERS.register("uniform")
class UniformTokenizer(PatchSizeTokenizer):
    """One cell size everywhere, in raster order; the patch embedding of ViT (Dosovitskiy et al.).

    Args:
        size: cell size, one number or one per space axis.
        patch_sizes: sizes that ``patch_size=`` may choose per call, each with its own weights;
            they must nest and contain `size`. Default: `size` alone.
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
        frame_size: Positive = 1,
    ):
        own = per_axis(size, ndim)
        spaces = {per_axis(s, ndim, "patch_sizes") for s in (patch_sizes or [size])}
        ordered = sorted(spaces, key=lambda s: (-product(s), s))
        if own not in spaces or not nested(ordered):
            raise ValueError(
                f"patch_sizes must contain size {size} and divide one another, got {patch_sizes}"
            )
        sizes = tuple((frame_size, *s) for s in ordered)
        spec = TokenizerSpec(ndim, in_channels, dim, sizes, on_grid=True)
        super().__init__(spec, LinearEmbedding(in_channels, dim, sizes))
        self.size = own
        self.controls = ("patch_size",) if len(sizes) > 1 else ()

    def cells_of_size(self, field: Float[Tensor, "b t c *s"], size: tuple[int, ...]) -> Cells:
        """Makes cells in raster order; raises ``ValueError`` for a size that was not built."""
        b, t, _, *space = field.shape
        frame_size = self.spec.sizes[0][0]
        frames = frames_of_cells(t, frame_size)
        if (frame_size, *size) not in self.spec.sizes:
            built = [s[1:] for s in self.spec.sizes]
            raise ValueError(f"patch_size {size} was not built; patch_sizes: {built}")
        tree = Tree(tuple(space), (size,))
        split = torch.zeros(b, 1, 0, dtype=torch.bool, device=field.device)
        known = {"frame_size": frame_size, "lengths": repeated(frames * tree.counts().leaves, b)}
        cells = cells_from_splits(split, tree, frames=frames, **known)
        level = torch.full_like(cells.level, self.spec.sizes.index((frame_size, *size)))
        return cells.replace(level=level, sizes=self.spec.sizes)

    @staticmethod
    def sizes_for(space: Sequence[int]) -> list[int]:
        """Lists sizes, the same on every axis, to choose from for a field: those that divide it, or
        all if almost none do.
        """
        every = range(1, min(space) + 1)
        dividing = [p for p in every if all(n % p == 0 for n in space)]
        return dividing if len(dividing) > 2 else list(every)

    def tokens_at(self, size: int | Sequence[int], shape: Sequence[int]) -> int:
        """Counts the tokens per sample of a field of shape (t, *space)."""
        size = per_axis(size, self.spec.ndim, "patch_size")
        frames = frames_of_cells(shape[0], self.spec.sizes[0][0])
        return frames * Tree(tuple(shape[1:]), (size,)).counts().leaves
