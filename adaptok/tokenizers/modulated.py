"""Base class of CKM and CSM: cells on one regular grid whose pitch is chosen per call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Cells, nested, product
from adaptok.layers.boundary import Boundary
from adaptok.layers.two_stage import KERNELS, ConvLayout, Pairs, cells_of_layout
from adaptok.tokenizers.base import per_axis
from adaptok.tokenizers.embeddings.conv_stem import ConvStem
from adaptok.tokenizers.patch_sizes import PatchSizeTokenizer
from adaptok.tokens import TokenizerSpec


class ModulatedTokenizer(PatchSizeTokenizer):
    """Two-stage convolutional stem (`ConvStem`) at the patch size of each call.

    A subclass says which kernels and strides a patch size stands for.

    Args:
        patch_sizes: sizes that the model is meant for, each one number or one per space axis; the
            largest along each axis decides the size of the learned kernels.
        size: patch size of calls that name none; default the coarsest.
        stem: options of `ConvStem`.
    """

    controls = ("patch_size",)
    tiling: bool

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        dim: int,
        patch_sizes: Sequence[int | Sequence[int]],
        size: int | Sequence[int] | None,
        stem: dict[str, Any],
    ):
        if isinstance(patch_sizes, (int, str)) or not len(patch_sizes):
            raise ValueError(f"patch_sizes is a list of patch sizes, got {patch_sizes!r}")
        spaces = {per_axis(s, ndim, "patch_sizes") for s in patch_sizes}
        sizes = tuple((1, *s) for s in sorted(spaces, key=lambda s: (-product(s), s)))
        _check_table({p for s in spaces for p in s}, tuple(KERNELS), "patch_sizes")
        if not nested(sizes):
            raise ValueError(f"patch_sizes must divide one another, got {patch_sizes}")
        base: Pairs = tuple(KERNELS[p] for p in sizes[0][1:])
        spec = TokenizerSpec(ndim, in_channels, dim, sizes, self.tiling, ConvLayout)
        super().__init__(spec, ConvStem(in_channels, dim, base, **stem))
        self.base = base
        self.size = sizes[0][1:] if size is None else per_axis(size, ndim)
        self.layout(self.size, (1, *self.size))  # raises here if the size makes no sense

    def layout(self, size: tuple[int, ...], shape: tuple[int, ...]) -> ConvLayout:
        """Picks kernels, strides and padding of a patch size, for a field of shape (t, *space)."""
        raise NotImplementedError

    def cells_of_size(self, field: Float[Tensor, "b t c *s"], size: tuple[int, ...]) -> Cells:
        """Makes cells by `layout`.

        Raises:
            ValueError: a patch size without kernels or larger than the axis.
        """
        shape = (field.shape[1], *field.shape[3:])
        layout = self.layout(size, shape)
        for p, n in zip(size, shape[1:], strict=True):
            if p > n:
                fitting = ", ".join(str(k) for k in KERNELS if k <= n)
                raise ValueError(
                    f"patch_size {p} is larger than an axis of {n} grid points; fitting: {fitting}"
                )
        known = (1, *size) in self.spec.sizes
        sizes = self.spec.sizes if known else ((1, *size),)
        level = sizes.index((1, *size))
        return cells_of_layout(field, layout, sizes, level, tiling=self.tiling)

    def sizes_for(self, space: Sequence[int]) -> list[int]:
        """Lists the patch sizes of the table, the same on every axis, that a field can be cut
        into.
        """

        def valid(size: int) -> bool:
            try:
                self.layout((size,) * self.spec.ndim, (1, *[size] * self.spec.ndim))
            except ValueError:
                return False
            return True

        return [p for p in KERNELS if p <= min(space) and valid(p)]

    def tokens_at(self, size: int | Sequence[int], shape: Sequence[int]) -> int:
        """Counts the tokens per sample of a field of shape (t, *space)."""
        sizes = per_axis(size, self.spec.ndim, "patch_size")
        return product(self.layout(sizes, tuple(shape)).grid)

    @property
    def extents(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Grid points (t, *space) that a whole cell of each size sees."""
        sizes = dict.fromkeys([*self.spec.sizes, (1, *self.size)])  # that of most calls too
        return {size: self.layout(size[1:], size).reach for size in sizes}

    def features(
        self, x: Float[Tensor, "b t c *s"], cells: Cells, boundary: Boundary
    ) -> Float[Tensor, "n d"]:
        """Runs the stem over the field; without boundary codes all ends are open."""
        if not isinstance(cells.layout, ConvLayout):
            raise ValueError("these cells are those of another tokenizer: they carry no kernels")
        return self.embedding(x, cells.layout, boundary)


def stages(size: Sequence[int], valid: Sequence[int]) -> Pairs:
    """Looks up the table's pair for each axis; raises ``ValueError`` for a size not in `valid`."""
    _check_table(set(size), valid, "patch_size")
    return tuple(KERNELS[p] for p in size)


def _check_table(sizes: set[int], valid: Sequence[int], name: str) -> None:
    for p in sorted(sizes):
        if p not in valid:
            raise ValueError(
                f"{name} {p} is no product of two stages of the kernel table; "
                f"valid: {', '.join(map(str, valid))}"
            )
