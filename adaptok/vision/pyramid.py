"""Maps of several scales for detection heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.layers.norms import channel_norm


class FeaturePyramid(nn.Module):
    """Makes maps of several scales from the map of a plain ViT (ViTDet, Li et al. 2022, Sec. 3).

    Each scale uses the last dense map only: deconvolutions of stride 2 enlarge it or max pooling
    shrinks it (an odd last row or column is pooled alone); a 1 x 1 and a 3 x 3 convolution follow.
    Norms are over the channels of each point, so that no map depends on what it is padded with.

    Args:
        dim: width of the model.
        out_dim: channels of all maps.
        scales: points per finest cell of each map, powers of two: 4, 2, 1, 1/2 of a patch of 16
            give strides 4, 8, 16, 32.
    """

    def __init__(
        self, dim: int, out_dim: int = 256, scales: Sequence[float | int] = (4, 2, 1, 0.5)
    ):
        super().__init__()
        self.stages = nn.ModuleList(self._stage(dim, out_dim, scale) for scale in scales)

    def forward(self, dense: Float[Tensor, "b d gh gw"] | Sequence[Tensor]) -> list[Any]:
        """Returns one map per scale, in the order of `scales`; for a list of maps (d, gh, gw) one
        list of maps per scale.
        """
        if not isinstance(dense, Tensor):
            each = [self(one[None]) for one in dense]
            return [[maps[0] for maps in scale] for scale in zip(*each, strict=True)]
        return [stage(dense) for stage in self.stages]

    @staticmethod
    def _stage(dim: int, out_dim: int, scale: float | int) -> nn.Sequential:
        layers: list[nn.Module] = []
        left = float(scale)
        while left > 1:
            if layers:
                layers += [channel_norm("layer", dim, 1), nn.GELU()]
            layers.append(nn.ConvTranspose2d(dim, dim // 2, 2, stride=2))
            dim, left = dim // 2, left / 2
        while 0 < left < 1:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            left *= 2
        if left != 1:
            raise ValueError(f"scales must be powers of two, got {scale}")
        for size in (1, 3):
            layers.append(nn.Conv2d(dim, out_dim, size, padding=size // 2, bias=False))
            layers.append(channel_norm("layer", out_dim, 1))
            dim = out_dim
        return nn.Sequential(*layers)
