"""CKM, convolutional kernel modulation (Mukhopadhyay et al., "Compute-Adaptive Surrogate Modeling
of Partial Differential Equations")."""

from __future__ import annotations

from collections.abc import Sequence

from adaptok.layers.two_stage import KERNELS, ConvLayout, make_layout
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.modulated import ModulatedTokenizer, stages
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, checked


@TOKENIZERS.register("ckm")
class CkmTokenizer(ModulatedTokenizer):
    """Uniform patches of any size of the table, by PI-resized kernels of a two-stage stem.

    CKM, Sec. 3 and Algorithm 1. With a single patch size it is the fixed-patch baseline. If the
    domain does not divide, the last cells are clipped and their patches padded: around a periodic
    axis, elsewhere with the learned token of the boundary type.

    Args:
        patch_sizes: sizes that the model is meant for, one number or one per space axis, nested;
            calls may ask for any other of 1, 4, 8, 12, 16 and 32 too.
        size: patch size of calls without ``patch_size=``; default the coarsest of patch_sizes.
        norm: "group" (paper; over all of a frame), or "layer" or "rms" (over the channels).
        groups: groups of the group norm; default the greatest common divisor of 12 and dim / 4.
        mode: interpolation of the kernels, see `pi_resize`; default the paper's.
        antialias: filtered interpolation (the paper's code: False).
    """

    tiling = True

    @checked
    def __init__(
        self,
        ndim: Dimensions,
        in_channels: Positive,
        dim: Positive,
        *,
        patch_sizes: Sequence[PerAxis] = (4, 8, 16),
        size: PerAxis | None = None,
        norm: str = "group",
        groups: Positive | None = None,
        mode: str | None = None,
        antialias: bool = False,
    ):
        stem = {"norm": norm, "groups": groups, "mode": mode, "antialias": antialias}
        super().__init__(ndim, in_channels, dim, patch_sizes, size, stem)

    def layout(self, size: tuple[int, ...], shape: tuple[int, ...]) -> ConvLayout:
        """Lays patches side by side: strides equal kernels, padding at the far ends only."""
        pairs = stages(size, tuple(KERNELS))
        return make_layout(shape, pairs, pairs, centered=False)
