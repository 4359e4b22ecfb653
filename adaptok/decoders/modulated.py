"""Two transposed convolutions, the counterpart of the stem of CKM and CSM."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import product
from adaptok.layers.convolution import conv_transpose_class
from adaptok.layers.mixed import gives_lists
from adaptok.layers.norms import channel_norm
from adaptok.layers.pi_resize import FORMS, KernelResize
from adaptok.layers.two_stage import KERNELS, ConvLayout
from adaptok.registry import DECODERS, choice
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.utils.arguments import Positive, checked


@DECODERS.register("modulated")
class ModulatedDecoder(nn.Module):
    """Transposed convolution, norm, GELU, transposed convolution; then crops the padding.

    CKM and CSM, Algorithms 1 and 2. ``cells.layout`` gives kernel sizes, strides and padding;
    kernels of another size than the largest are PI-resized.

    Args:
        spec: specification of the tokenizer.
        out_channels: channels of the decoded field.
        resize: "mean_preserving", or "pinv" as in the authors' code, which amplifies the output
            of a small kernel (by 4 in 2D and by 8 in 3D if the size halves).
        overlap: "sum" adds overlapping contributions (paper), "mean" averages them (the same
            amplitude for all strides).
        norm: "group" (paper; over the whole frame), or "layer" or "rms" (over the channels).
        groups: groups of the group norm; default the greatest common divisor of 12 and dim / 4.
        mode: interpolation of the kernels, see `pi_resize`; default the paper's.
        antialias: filtered interpolation (the paper's code: False).

    Raises:
        ValueError: the tokens of this tokenizer carry no kernels and strides.
    """

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        out_channels: Positive,
        *,
        resize: str = "mean_preserving",
        overlap: str = "sum",
        norm: str = "group",
        groups: Positive | None = None,
        mode: str | None = None,
        antialias: bool = False,
    ):
        super().__init__()
        self.spec = spec
        if spec.layout is not ConvLayout:
            raise ValueError(
                "decoder 'modulated' mirrors the kernels and strides of a convolutional stem, "
                "which the cells of this tokenizer do not carry; use it with 'ckm' or 'csm'"
            )
        choice("resize", resize, FORMS)
        self.mean = choice("overlap", overlap, ("sum", "mean")) == "mean"
        conv = conv_transpose_class(spec.ndim)
        self._conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spec.ndim - 1]
        hidden, base = spec.dim // 4, [KERNELS[p] for p in spec.sizes[0][1:]]
        first, second = (tuple(pair[stage] for pair in base) for stage in (0, 1))
        groups = math.gcd(12, hidden) if groups is None else groups
        self.conv1 = conv(spec.dim, hidden, second, bias=False)
        self.norm1 = channel_norm(norm, hidden, groups)
        self.conv2 = conv(hidden, out_channels, first)
        options = {"mode": mode, "antialias": antialias, "form": resize}
        self.resize1 = KernelResize(second, [pair[1] for pair in KERNELS.values()], **options)
        self.resize2 = KernelResize(first, [pair[0] for pair in KERNELS.values()], **options)

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Decodes all frames of the field that the cells were made for.

        Raises:
            ValueError: tokens were dropped or added.
        """
        cells, layout = tokens.cells, tokens.cells.layout
        if not isinstance(layout, ConvLayout):
            raise ValueError("these tokens are those of another tokenizer: they carry no kernels")
        whole = cells.batch_size * product(layout.grid)
        if not cells.bounded or cells.count != whole:
            raise ValueError(
                f"decoder 'modulated' needs all {whole} tokens of {cells.batch_size} samples of a "
                f"grid {layout.grid}, as embedded; these are {cells.count}, or were selected"
            )
        frames = cells.batch_size * cells.shape[0]
        x = tokens.features.unflatten(0, (frames, *layout.grid[1:])).movedim(-1, 1)
        (k1, k2) = zip(*layout.kernels, strict=True)
        (s1, s2) = zip(*layout.strides, strict=True)
        x = F.gelu(self.norm1(self._painted(x, self.conv1.weight, self.resize1, k2, s2)))
        x = self._painted(x, self.conv2.weight, self.resize2, k1, s1)
        for axis, (n, (before, _)) in enumerate(zip(cells.shape[1:], layout.padding, strict=True)):
            x = x.narrow(axis + 2, before, n)
        bias = self.conv2.bias
        assert bias is not None
        x = x + bias.view(-1, *(1,) * (x.ndim - 2))
        return x.unflatten(0, (cells.batch_size, -1))

    def _painted(
        self, x: Tensor, weight: Tensor, resize: KernelResize, kernel: tuple, stride: tuple
    ) -> Tensor:
        grid = x.shape[2:]
        x = self._conv(x, resize(weight, kernel).to(weight.dtype), stride=stride)
        if not self.mean:
            return x
        # The contributions to a point, counted axis by axis: a kernel of ones painted from ones.
        for axis, (n, k, s) in enumerate(zip(grid, kernel, stride, strict=True)):
            if k != s:
                ones = x.new_ones(1, 1, n)
                count = F.conv_transpose1d(ones, x.new_ones(1, 1, k), stride=s).flatten()
                x = x / count.view(-1, *(1,) * (x.ndim - axis - 3))
        return x
