"""Adapted models as backbones of torchvision's detectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from adaptok.utils.arguments import Positive, PositiveFloat, checked, kind_of
from adaptok.vision.padding import pad_maps
from adaptok.vision.pyramid import FeaturePyramid


class DetectionBackbone(nn.Module):
    """Gives torchvision's detectors the pyramid of an adapted model (ViTDet, Li et al. 2022).

    With the default scales and patches of 16 the maps have strides 4, 8, 16 and 32, and a fifth is
    the last one at every second point. Their names are those that ``FasterRCNN`` and ``MaskRCNN``
    look for: "0", "1", ... and "pool".

    Args:
        model: made by `apply_apt` from a model of timm; one without a head leaves no parameter
            unused.
        out_channels: channels of all maps.
        scales: points per finest cell of each map, see `FeaturePyramid`, from large to small.

    Attributes:
        mean, std: what the detector has to normalise images with (`image_mean` and `image_std`).
        divisor: what both sides of a batch have to be multiples of (`size_divisible`).

    Raises:
        ValueError: another kind of model; scales that do not halve from map to map, or maps finer
            than pixels; patches that are no square of a power of two, for which torchvision would
            round the strides.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        out_channels: Positive = 256,
        scales: Sequence[PositiveFloat] = (4, 2, 1, 0.5),
    ):
        super().__init__()
        if not hasattr(model, "dense_features") or not hasattr(model, "unpad"):
            raise ValueError(
                "a backbone is made of a timm model that apply_apt returned, "
                f"got {type(model).__name__}"
            )
        self.model: Any = model
        height, width = (int(n) for n in self.model.tiling.spec.sizes[-1][1:])
        if height != width or height & (height - 1):
            raise ValueError(
                f"torchvision takes strides that are powers of two, and patches are {height} x "
                f"{width}: build the timm model with patch_size=16, which resamples its weights"
            )
        if not scales or any(a != 2 * b for a, b in pairwise(scales)):
            raise ValueError(f"scales halve from map to map, got {tuple(scales)}")
        if scales[0] > height:
            raise ValueError(
                f"no map may be finer than pixels: the first scale is at most {height}, "
                f"got {scales[0]}"
            )
        self.pyramid = FeaturePyramid(self.model.embed_dim, out_channels, scales)
        self.out_channels, self.scales = out_channels, tuple(float(n) for n in scales)
        self.divisor = max(height, int(height / self.scales[-1]))
        self.mean, self.std = (list(values) for values in self.model.tiling.stats)

    def forward(
        self, images: Float[Tensor, "b c h w"], sizes: Sequence[Sequence[int]] | None = None
    ) -> OrderedDict[str, Tensor]:
        """Returns maps (b, out_channels, _, _) by name, zero where an image is padded.

        An image of a padded batch has the cells and the maps that it would have alone.

        Args:
            images: normalised, padded below and to the right.
            sizes: (height, width) of the real part of each image; by default what `skip_padding`
                left on the batch, else all of it.

        Raises:
            ValueError: no batch, sides that are no multiples of `divisor`, or sizes that the batch
                cannot hold.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            given = tuple(images.shape) if isinstance(images, Tensor) else kind_of(images)
            raise ValueError(f"a backbone takes a batch (b, c, height, width), got {given}")
        grid = tuple(images.shape[2:])
        if any(n % self.divisor for n in grid):
            raise ValueError(
                f"the pyramid needs sides that are multiples of {self.divisor}, got {grid}; give "
                f"the detector size_divisible={self.divisor}"
            )
        sizes = getattr(images, "real_sizes", None) if sizes is None else sizes
        parts = None if sizes is None else self.model.unpad(images, sizes)
        if parts is None or all(part.shape == images.shape[1:] for part in parts):
            maps = self.pyramid(self.model.dense_features(images))
        else:
            patch = self.model.tiling.spec.sizes[-1][1]
            height, width = (n // patch for n in grid)
            each = self.pyramid(self.model.dense_features(parts))
            maps = [
                pad_maps(own, (int(height * scale), int(width * scale)))
                for own, scale in zip(each, self.scales, strict=True)
            ]
        named = OrderedDict((str(i), one) for i, one in enumerate(maps))
        named["pool"] = max_pool2d(maps[-1], 1, stride=2)
        return named


def skip_padding(detector: nn.Module) -> nn.Module:
    """Lets a detector of torchvision spend no token on what pads its images to one batch.

    Its transform then leaves the real sizes on the batch, for the `DetectionBackbone`.

    Returns:
        The detector.

    Raises:
        ValueError: it has no such backbone, or normalises otherwise than cells are scored.
    """
    backbone = next((m for m in detector.modules() if isinstance(m, DetectionBackbone)), None)
    transform: Any = getattr(detector, "transform", None)
    if backbone is None or transform is None:
        raise ValueError(
            "padding is skipped in a detector of torchvision around a DetectionBackbone, got "
            f"{type(detector).__name__}"
        )
    own = ([float(v) for v in values] for values in (transform.image_mean, transform.image_std))
    if [*own] != [backbone.mean, backbone.std]:
        raise ValueError(
            f"the detector normalises by {transform.image_mean} and {transform.image_std}, cells "
            f"are scored for {backbone.mean} and {backbone.std}: give it image_mean=backbone.mean, "
            "image_std=backbone.std"
        )
    transform.register_forward_hook(_leave_sizes)
    return detector


def _leave_sizes(_: nn.Module, __: Any, output: Any) -> None:
    images, _targets = output
    images.tensors.real_sizes = images.image_sizes
