"""Batches of images with masks or boxes, augmented by torchvision's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Len
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate
from torchvision.transforms import InterpolationMode, v2
from torchvision.tv_tensors import Image, Mask

from adaptok.data.images.ade20k import ADE20K, UNLABELLED
from adaptok.data.images.coco import COCO
from adaptok.data.order import EpochSampler, ResumableLoader, Seeded
from adaptok.utils.arguments import (
    Finite,
    NonNegative,
    Positive,
    PositiveFloat,
    Seed,
    Share,
    checked,
)

GREY = 124  # of 255: what borders of padded images are filled with


def lists_of(batch: Sequence[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    """Puts the parts of samples, whose sizes differ, side by side in lists."""
    return tuple(map(list, zip(*batch, strict=True)))


class Loaded(LightningDataModule):
    """What both kinds of sets share; the order and augmentation of training images are functions of
    (seed, epoch, image).
    """

    collate: ClassVar[Any] = default_collate
    sets: dict[str, Dataset]
    batch_size: int
    num_workers: int
    seed: int

    def train_dataloader(self) -> ResumableLoader:
        """Returns shuffled, augmented batches, all of `batch_size`."""
        images, (ranks, rank) = self.sets["train"], self._ranks()
        return ResumableLoader(
            Seeded(images, self.seed),
            batch_size=self.batch_size,
            sampler=EpochSampler(images, seed=self.seed, ranks=ranks, rank=rank),
            num_workers=self.num_workers,
            drop_last=True,
            collate_fn=type(self).collate,
        )

    def val_dataloader(self) -> DataLoader:
        """Returns the validation images in order, divided among the processes."""
        images, (ranks, rank) = self.sets["valid"], self._ranks()
        sampler = DistributedSampler(images, ranks, rank, shuffle=False) if ranks > 1 else None
        return DataLoader(
            images,
            1,  # their sizes differ
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=type(self).collate,
        )

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


class SegmentationData(Loaded):
    """Loads `ADE20K` for `adaptok.vision.Segmenter`: images (b, 3, h, w), normalised, and classes
    (b, h, w), of which 255 does not count.

    Training images are resized, cropped, flipped and changed in brightness, contrast, saturation
    and hue, as in the common recipe for ADE20K (that of UperNet in mmsegmentation): the short side
    becomes `crop` times 0.5 to 2. In evaluation it becomes `crop`.

    Args:
        path: see `ADE20K`.
        crop: side of the training images in pixels.
        mean: of the normalisation, per channel, of values in 0..1.
        std: its standard deviation, likewise.
        flip: chance of a left-right flip.
        batch_size: images per batch and process.
        num_workers: processes that load images.
        seed: for order and augmentation.

    Raises:
        ValueError: the images are not found, or an argument is out of range.
    """

    @checked
    def __init__(
        self,
        path: str | Path,
        *,
        crop: Positive = 512,
        mean: Annotated[Sequence[Finite], Len(3, 3)] = (0.5, 0.5, 0.5),
        std: Annotated[Sequence[PositiveFloat], Len(3, 3)] = (0.5, 0.5, 0.5),
        flip: Share = 0.5,
        batch_size: Positive = 16,
        num_workers: NonNegative = 0,
        seed: Seed = 0,
    ):
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        normalised = [
            v2.ToDtype({Image: torch.float32, "others": None}, scale=True),
            v2.Normalize([*mean], [*std]),
            v2.ToPureTensor(),
        ]
        fill: Any = {Image: GREY, Mask: UNLABELLED}
        augmented = [
            v2.RandomResize(crop // 2, 2 * crop + 1, antialias=True),
            v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(flip),
            v2.RandomPhotometricDistort(),
        ]
        whole = v2.Resize(crop, InterpolationMode.BILINEAR, antialias=True)
        self.sets = {
            "train": ADE20K(path, "train", v2.Compose([*augmented, *normalised])),
            "valid": ADE20K(path, "valid", v2.Compose([whole, *normalised])),
        }


class DetectionData(Loaded):
    """Loads `COCO` for torchvision's detectors: a list of images (3, h, w) of 0..1, and of their
    targets.

    Detectors resize and normalise by themselves. Training images are flipped, and scaled by
    0.1 to 2 and cropped to `side` (large-scale jitter, Ghiasi et al. 2021), as ViTDet trains.

    Args:
        path: see `COCO`.
        side: of the training images in pixels.
        masks: load masks too, for Mask R-CNN.
        flip: chance of a left-right flip.
        batch_size: images per batch and process.
        num_workers: processes that load images.
        seed: for order and augmentation.

    Raises:
        ValueError: the images are not found, or an argument is out of range.
    """

    collate = staticmethod(lists_of)

    @checked
    def __init__(
        self,
        path: str | Path,
        *,
        side: Positive = 1024,
        masks: bool = False,
        flip: Share = 0.5,
        batch_size: Positive = 8,
        num_workers: NonNegative = 0,
        seed: Seed = 0,
    ):
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        last = [v2.ToDtype({Image: torch.float32, "others": None}, scale=True), v2.ToPureTensor()]
        augmented = [
            v2.RandomHorizontalFlip(flip),
            v2.ScaleJitter((side, side), (0.1, 2.0), antialias=True),
            v2.RandomCrop(side, pad_if_needed=True, fill={Image: GREY, Mask: 0}),  # pyright: ignore
            v2.SanitizeBoundingBoxes(),
        ]
        self.sets = {
            "train": COCO(path, "train", masks=masks, transform=v2.Compose([*augmented, *last])),
            "valid": COCO(path, "valid", masks=masks, transform=v2.Compose(last)),
        }
