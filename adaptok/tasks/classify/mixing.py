"""Mixup and cutmix of batches of labelled images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pair = tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b classes"]]


class Mix:
    """Mixes the images of a batch in pairs, and their labels by the share of each image.

    The random numbers are torch's global ones, which a training step seeds by its number.

    Args:
        classes: number of classes.
        mixup: strength of mixup, 0 for none.
        cutmix: strength of cutmix, 0 for none.
        chance: that a batch is mixed.
        cutmix_share: chance of cutmix in place of mixup, if both are given.
    """

    def __init__(
        self, classes: int, mixup: float, cutmix: float, chance: float, cutmix_share: float
    ):
        from torchvision.transforms import v2

        self.classes, self.chance = classes, chance
        self.ways: list[Callable[[Tensor, Tensor], Pair]] = []
        if mixup:
            self.ways.append(v2.MixUp(alpha=mixup, num_classes=classes))
        if cutmix:
            self.ways.append(v2.CutMix(alpha=cutmix, num_classes=classes))
        self.share = cutmix_share if len(self.ways) > 1 else 0.0

    def __call__(self, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]) -> Pair:
        """Returns the batch, mixed or not, with the share of each class as labels."""
        mixes, cuts = torch.rand(2).tolist()
        if mixes >= self.chance:
            return images, torch.nn.functional.one_hot(labels, self.classes).to(images.dtype)
        return self.ways[int(cuts < self.share)](images, labels)
