"""CSM, convolutional stride modulation (Mukhopadhyay et al., "Compute-Adaptive Surrogate Modeling
of Partial Differential Equations")."""

from __future__ import annotations

from collections.abc import Sequence

from adaptok.layers.two_stage import KERNELS, ConvLayout, make_layout
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.modulated import ModulatedTokenizer, stages
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, checked


@TOKENIZERS.register("csm")
class CsmTokenizer(ModulatedTokenizer):
    """Overlapping patches of fixed kernels, at a distance that is chosen per call.

    CSM, Sec. 3 and Algorithm 2. With a single patch size strides equal kernels: the fixed-patch
    baseline. Both ends of an axis are padded so that the strides fit exactly: around a periodic
    axis, elsewhere with the learned token of the boundary type (sums of tokens at corners).

    Args:
        patch_sizes: distances of neighbouring patches that the model is meant for, one number or
            one per space axis, nested; the coarsest decides the kernels. Calls may ask for any
            other size of the table whose strides do not exceed the kernels.
        size: patch size of calls without ``patch_size=``; default the coarsest of patch_sizes.
        norm: "group" (paper; over all of a frame), or "layer" or "rms" (over the channels).
        groups: groups of the group norm; default the greatest common divisor of 12 and dim / 4.
        whole_field_tokens: like the authors' code, add the token of the far end to every grid point
            along an axis that needs no padding.
    """

    tiling = False

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
        whole_field_tokens: bool = False,
    ):
        stem = {"norm": norm, "groups": groups, "final_gelu": True}
        stem |= {"whole_field": whole_field_tokens}
        super().__init__(ndim, in_channels, dim, patch_sizes, size, stem)

    def layout(self, size: tuple[int, ...], shape: tuple[int, ...]) -> ConvLayout:
        """Keeps the kernels and takes the strides of the table, which may not leave gaps."""
        for p, (k1, k2) in zip(size, self.base, strict=True):
            stages([p], [q for q, (s1, s2) in KERNELS.items() if s1 <= k1 and s2 <= k2])
        return make_layout(shape, self.base, stages(size, tuple(KERNELS)), centered=True)
