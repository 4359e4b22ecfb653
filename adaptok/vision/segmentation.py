"""Adapted models with UperNet's head, for segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any

import annotated_types as at
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, pad

from adaptok.layers.norms import channel_norm
from adaptok.utils.arguments import Positive, PositiveFloat, Rate, checked
from adaptok.vision.cut_images import CutImages, separated
from adaptok.vision.pyramid import FeaturePyramid

Norm = Callable[[int], nn.Module]


class UperHead(nn.Module):
    """UperNet's head (Xiao et al. 2018, Sec. 3.2): the coarsest map is pooled at several scales,
    goes from map to map towards the finest one, and all of them are fused there.

    Args:
        dim: channels of the maps.
        maps: their number.
        classes: channels of the result.
        channels: width inside.
        pools: cells per axis of each pooling of the coarsest map.
        dropout: share of the channels that are dropped before the classifier.
        norm: makes the norm of as many channels; by default a layer norm of each point, with which
            a batch gives what its images do. ``nn.SyncBatchNorm`` is the published one.
    """

    @checked
    def __init__(
        self,
        dim: Positive,
        maps: Positive,
        classes: Positive,
        channels: Positive = 512,
        pools: Annotated[Sequence[Positive], at.Len(1)] = (1, 2, 3, 6),
        dropout: Rate = 0.1,
        norm: Norm | None = None,
    ):
        super().__init__()

        def layer(inside: int, size: int) -> nn.Sequential:
            conv = nn.Conv2d(inside, channels, size, padding=size // 2, bias=False)
            own = channel_norm("layer", channels, 1) if norm is None else norm(channels)
            return nn.Sequential(conv, own, nn.ReLU())

        self.sizes = tuple(pools)
        self.pools = nn.ModuleList(layer(dim, 1) for _ in pools)
        self.bottom = layer(dim + len(pools) * channels, 3)
        self.lateral = nn.ModuleList(layer(dim, 1) for _ in range(maps - 1))
        self.smooth = nn.ModuleList(layer(channels, 3) for _ in range(maps - 1))
        self.fuse = layer(maps * channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))

    def forward(self, maps: Sequence[Float[Tensor, "b d _ _"]]) -> Float[Tensor, "b c gh gw"]:
        """Returns logits on the grid of the first map.

        Args:
            maps: from fine to coarse.

        Raises:
            ValueError: another number of maps.
        """
        if len(maps) != len(self.lateral) + 1:
            raise ValueError(f"the head takes {len(self.lateral) + 1} maps, got {len(maps)}")
        *finer, last = maps
        pooled = [
            _to(layer(adaptive_avg_pool2d(last, size)), last)
            for size, layer in zip(self.sizes, self.pools, strict=True)
        ]
        above = self.bottom(torch.cat([last, *pooled], 1))
        out = [above]
        layers = [*zip(finer, self.lateral, self.smooth, strict=True)]
        for one, lateral, smooth in reversed(layers):
            above = lateral(one) + _to(above, one)
            out.append(smooth(above))
        fused = self.fuse(torch.cat([_to(one, maps[0]) for one in reversed(out)], 1))
        return self.classify(fused)


class Segmenter(nn.Module):
    """An adapted model with ViTDet's pyramid and UperNet's head: a class for each pixel.

    Args:
        model: made by `apply_apt` from a model of timm; one without a head leaves no parameter
            unused.
        classes: channels of the result.
        channels: of the pyramid and inside the head.
        scales: points per finest cell of each map, from fine to coarse.
        options: of `UperHead`.

    Raises:
        ValueError: another kind of model, or an argument out of range.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        classes: Positive,
        channels: Positive = 512,
        scales: Annotated[Sequence[PositiveFloat], at.Len(1)] = (4, 2, 1, 0.5),
        **options: Any,
    ):
        super().__init__()
        if not hasattr(model, "dense_features"):
            raise ValueError(
                "a segmenter is made of a timm model that apply_apt returned, "
                f"got {type(model).__name__}"
            )
        if any(a <= b for a, b in pairwise(scales)):
            raise ValueError(f"scales go from fine to coarse, got {tuple(scales)}")
        self.model: Any = model
        self.pyramid = FeaturePyramid(self.model.embed_dim, channels, scales)
        self.head = UperHead(channels, len(scales), classes, channels, **options)

    def forward(
        self, images: Float[Tensor, "b c h w"] | Sequence[Tensor] | CutImages, **control: Any
    ) -> Float[Tensor, "b classes h w"] | list[Float[Tensor, "classes _ _"]]:
        """Returns logits per pixel; of a list of images (c, h, w) a list.

        Pixels at the border that no patch covers get the logits of the nearest one that has some.

        Args:
            images: normalised as for the model, or what `Tokenize` made of them.
            control: thresholds or budget for this call.
        """
        maps = self.pyramid(self.model.dense_features(images, **control))
        images, _ = separated(images, None, {})
        if isinstance(images, Tensor):
            return self._logits(maps, images)
        each = zip(images, *maps, strict=True)
        return [self._logits([own[None] for own in mine], x[None])[0] for x, *mine in each]

    def _logits(
        self, maps: Sequence[Tensor], images: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b classes h w"]:
        height, width = images.shape[2:]
        sides = zip((height, width), self.model.tiling.spec.sizes[-1][1:], strict=True)
        ends = [-(-n // p) * p if self.model.tiling.pad else n // p * p for n, p in sides]
        logits = interpolate(self.head(maps), ends, mode="bilinear")[..., :height, :width]
        below, right = height - logits.shape[2], width - logits.shape[3]
        return pad(logits, (0, right, 0, below), mode="replicate") if below or right else logits


def _to(x: Tensor, like: Tensor) -> Tensor:
    """Resamples a map to the grid of another one."""
    same = x.shape[2:] == like.shape[2:]
    return x if same else interpolate(x, like.shape[2:], mode="bilinear")
