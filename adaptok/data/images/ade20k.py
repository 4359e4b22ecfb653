"""ADE20K's scene parsing benchmark: images and a class per pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from adaptok.registry import choice

SPLITS = {"train": "training", "valid": "validation"}
CLASSES = 150
UNLABELLED = 255  # what losses and metrics leave out


class ADE20K(Dataset):
    """Reads ``ADEChallengeData2016`` (Zhou et al. 2017).

    ``<path>/images/{training,validation}/*.jpg`` and ``<path>/annotations/{training,validation}/
    *.png``, grey images of 0 for what is not labelled, then 1 to 150.

    Args:
        path: folder ``ADEChallengeData2016``.
        split: "train" or "valid".
        transform: takes and returns an image (3, h, w) of bytes and a mask (h, w) of torchvision's
            ``tv_tensors``. In the mask classes count from 0, and 255 is not labelled.

    Raises:
        ValueError: no such folder or split, images without a mask, or masks of another set.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ):
        choice("split", split, SPLITS)
        root, self.transform = Path(path).expanduser(), transform
        folders = [root / kind / SPLITS[split] for kind in ("images", "annotations")]
        images, masks = ({f.stem: f for f in folder.glob("*.*g")} for folder in folders)
        if not images:
            raise ValueError(
                f"{root} must hold ADE20K's scene parsing benchmark: there are no images in "
                f"{folders[0]}"
            )
        if without := sorted(images.keys() - masks.keys()):
            raise ValueError(
                f"{folders[1]} has no masks for {len(without)} images, such as {without[0]}.jpg"
            )
        self.files = [(images[name], masks[name]) for name in sorted(images)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        file, labels = self.files[index]
        image, mask = image_of(file), torch.from_numpy(np.array(Image.open(labels))).long()
        if mask.shape != image.shape[1:] or mask.amax() > CLASSES:
            raise ValueError(
                f"{labels} is no mask of {tuple(image.shape[1:])} classes 0 to {CLASSES}: it has "
                f"shape {tuple(mask.shape)} and values up to {int(mask.amax())}"
            )
        mask = torch.where(mask == 0, UNLABELLED, mask - 1)
        pair = image, tv_tensors.Mask(mask)
        return pair if self.transform is None else self.transform(*pair)


def image_of(file: Path) -> Any:
    """Reads an image as a tv_tensor (3, h, w) of bytes, whatever its mode."""
    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB"))
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
