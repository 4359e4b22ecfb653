"""The stem of CKM and CSM: two convolutions whose kernels or strides may change per call.

It embeds a whole grid at once instead of cells, so it is a part of those tokenizers and no
registered embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.layers.boundary import Boundary, boundary_codes
from adaptok.layers.convolution import conv_class
from adaptok.layers.norms import channel_norm
from adaptok.layers.pi_resize import KernelResize
from adaptok.layers.two_stage import KERNELS, ConvLayout, Pairs, pad_and_mark
from adaptok.utils.precision import without_autocast


class ConvStem(nn.Module):
    """Lifts to dim / 4 channels, then convolution, norm, GELU, convolution, norm (hMLP, Touvron et
    al.).

    As in CKM and CSM (Sec. 3, App. C). The padding lies in the lifted space, where it is a learned
    token per boundary type. Lift, padding and first convolution are linear, so they run as one
    convolution of the field and three marker channels: the lifted field is never formed, samples
    of different boundary types share a batch, and every parameter always has a gradient.

    Args:
        in_channels: channels of the field.
        dim: width of the features, divisible by 4.
        kernels: base kernel sizes of the two stages, one pair per space axis.
        norm: "group", "layer" or "rms".
        groups: groups of the group norm; default the greatest common divisor of 12 and dim / 4.
        mode: interpolation of the resize to other kernels, see `pi_resize`.
        antialias: whether that interpolation is filtered.
        final_gelu: GELU after the last norm.
        whole_field: see `pad_and_mark`.

    Raises:
        ValueError: a dim that is not divisible by 4, or an unknown norm.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        kernels: Pairs,
        *,
        norm: str = "group",
        groups: int | None = None,
        mode: str | None = None,
        antialias: bool = False,
        final_gelu: bool = False,
        whole_field: bool = False,
    ):
        super().__init__()
        if dim % 4:
            raise ValueError(f"a two-stage stem needs a dim divisible by 4, got {dim}")
        hidden = dim // 4
        groups = math.gcd(12, hidden) if groups is None else groups
        conv: Any = conv_class(len(kernels))
        self._conv = (F.conv1d, F.conv2d, F.conv3d)[len(kernels) - 1]
        first, second = (tuple(pair[stage] for pair in kernels) for stage in (0, 1))
        self.lift = nn.Linear(in_channels, hidden)
        self.padding = nn.Parameter(torch.randn(2, hidden))  # beyond a wall, beyond an open end
        self.conv1 = conv(hidden, hidden, first, bias=False)
        self.norm1 = channel_norm(norm, hidden, groups)
        self.conv2 = conv(hidden, dim, second, bias=False)
        self.norm2 = channel_norm(norm, dim, groups)
        resize = {"mode": mode, "antialias": antialias}
        self.resize1 = KernelResize(first, [pair[0] for pair in KERNELS.values()], **resize)
        self.resize2 = KernelResize(second, [pair[1] for pair in KERNELS.values()], **resize)
        self.final_gelu, self.whole_field = final_gelu, whole_field

    def forward(
        self, x: Float[Tensor, "b t c *s"], layout: ConvLayout, boundary: Boundary = None
    ) -> Float[Tensor, "n d"]:
        """Computes features in the order frames first, then raster order."""
        kernels, strides = zip(*layout.kernels, strict=True), zip(*layout.strides, strict=True)
        (k1, k2), (s1, s2) = kernels, strides
        codes = boundary_codes(boundary, x.shape[0], len(layout.kernels), x.device)
        marked = pad_and_mark(x, layout.padding, codes, whole_field=self.whole_field)
        x = self._conv(marked.flatten(0, 1), self._lifted(k1), stride=s1)
        x = F.gelu(self.norm1(x))
        weight = self.resize2(self.conv2.weight, k2)
        x = self.norm2(self._conv(x, weight.to(self.conv2.weight.dtype), stride=s2))
        x = F.gelu(x) if self.final_gelu else x
        return rearrange(x, "bt d ... -> (bt ...) d")

    def _lifted(self, size: tuple[int, ...]) -> Float[Tensor, "hidden c3 *kernel"]:
        """Composes the first kernel at a size with the lift and the padding tokens."""
        weight = self.resize1(self.conv1.weight, size)
        lift = torch.cat([self.lift.weight, self.lift.bias[:, None], self.padding.mT], 1)
        with without_autocast(weight):
            composed = torch.einsum("oh...,hc->oc...", weight, lift.to(weight.dtype))
        return composed.to(self.conv1.weight.dtype)
