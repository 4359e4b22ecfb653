"""COCO's boxes and masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from adaptok.data.images.ade20k import image_of
from adaptok.registry import choice

SPLITS = {"train": "train2017", "valid": "val2017"}


class COCO(Dataset):
    """Reads COCO 2017 (Lin et al. 2014) for torchvision's detectors.

    ``<path>/{train2017,val2017}/*.jpg`` and ``<path>/annotations/instances_{train,val}2017.json``.
    Crowds and empty boxes are left out; in training also images without any box. Labels are COCO's
    own numbers, 1 to 90 with gaps, so that a detector has 91 classes.

    Args:
        path: folder with the three.
        split: "train" or "valid".
        masks: draw the polygons, for Mask R-CNN.
        transform: takes and returns image and target.

    Raises:
        ValueError: no such folder or split, or a damaged list.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        masks: bool = False,
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ):
        choice("split", split, SPLITS)
        root, name = Path(path).expanduser(), SPLITS[split]
        self.folder, self.masks, self.transform = root / name, masks, transform
        file = root / "annotations" / f"instances_{name}.json"
        if not file.is_file() or not self.folder.is_dir():
            raise ValueError(f"{root} must hold COCO 2017: {name}/ and annotations/{file.name}")
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            own: dict[int, list[Any]] = {image["id"]: [] for image in about["images"]}
            for one in about["annotations"]:
                if not one.get("iscrowd") and min(one["bbox"][2:]) > 0:
                    own[one["image_id"]].append(one)
            self.names = {one["id"]: one["name"] for one in about["categories"]}
            images = [(one["id"], one["file_name"]) for one in about["images"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no list of COCO's instances: {error!r}") from error
        self.images = [
            (number, name, own[number])
            for number, name in images
            if own[number] or split != "train"
        ]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        """Returns an image (3, h, w) of bytes and its target: ``boxes`` (n, 4) by left, top, right
        and bottom edge, ``labels`` (n,), ``image_id``, and ``masks`` (n, h, w) if asked for.
        """
        number, name, objects = self.images[index]
        image = image_of(self.folder / name)
        size = (image.shape[1], image.shape[2])
        boxes = torch.tensor([one["bbox"] for one in objects], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # pyright: ignore
            "labels": torch.tensor([one["category_id"] for one in objects], dtype=torch.int64),
            "image_id": number,
        }
        if self.masks:
            drawn = [polygons_mask(one["segmentation"], size) for one in objects]
            stacked = torch.stack(drawn) if drawn else torch.zeros(0, *size, dtype=torch.uint8)
            target["masks"] = tv_tensors.Mask(stacked)
        return (image, target) if self.transform is None else self.transform(image, target)


def polygons_mask(
    polygons: Sequence[Sequence[float]] | Mapping[str, Any], size: tuple[int, int]
) -> Tensor:
    """Draws polygons (x, y, x, y ...) of one object into a mask (h, w) of 0 and 1.

    Raises:
        ValueError: runs in place of polygons, which COCO has for crowds.
    """
    if isinstance(polygons, Mapping):
        raise ValueError("masks are drawn from polygons, got the runs of a crowd")
    mask = Image.new("L", (size[1], size[0]))
    for corners in polygons:
        ImageDraw.Draw(mask).polygon([float(x) for x in corners], fill=1)
    return torch.from_numpy(np.array(mask))
