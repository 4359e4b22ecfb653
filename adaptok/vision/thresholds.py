"""Thresholds of image tokenizers: their default, and those that give a number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from adaptok.cells import product
from adaptok.layers.mixed import runs
from adaptok.patches import level_grid
from adaptok.registry import INDICATORS, Part, name_of
from adaptok.tokenizers.calibration import calibrate
from adaptok.tokenizers.marking.threshold import as_thresholds
from adaptok.utils.arguments import PositiveShare, check_value, kind_of, shown
from adaptok.vision.cut_images import CutImages
from adaptok.vision.tiling import ImageCells

BITS = (5.5, 4.0)  # thresholds of the paper (App. C)
NAMES = ("pixel_values", "image")  # of images in mappings, such as those of transformers


def default_thresholds(given: Any, indicator: Part, marking: Part | None = None) -> Any:
    """Returns the thresholds that are given, unchecked, or those of the paper, which are bits of
    entropy.

    Raises:
        ValueError: none are given, and the indicator scores in other units.
    """
    if given is not None:
        return given
    if marking is None and not INDICATORS.says(indicator, "in_bits"):
        raise ValueError(
            f"scores of indicator {name_of(indicator)!r} are not bits, so thresholds have no "
            "default: give one per merged level, any positive ones to begin with, and let "
            "calibrate(images, share=0.5) of the result scale them"
        )
    return BITS


def level_thresholds(given: Any, indicator: Part, marking: Part | None = None) -> tuple[float, ...]:
    """Returns the thresholds that are given, one per merged level, or the default.

    Raises:
        ValueError: as `default_thresholds`, or not one number per level.
    """
    found = default_thresholds(given, indicator, marking)
    bars = None
    with suppress(ValueError):
        bars = as_thresholds(found)
    if not isinstance(bars, tuple) or not bars:
        raise ValueError(
            "thresholds are a list of numbers, one per merged level and at least one, such as "
            f"(5.5,); got {shown(given)}"
        )
    return bars


def calibrated(
    tiling: ImageCells,
    images: Tensor | Iterable[Any],
    tokens: float | None = None,
    share: PositiveShare | None = None,
) -> Any:
    """Finds the thresholds (or gamma, or price) that give images a mean number of tokens.

    Args:
        tiling: that of a model.
        images: normalised as for the model: a batch, a list of images (c, h, w), or a loader of
            either, whose items may have labels behind the images, or be mappings with
            "pixel_values" or "image".
        tokens: mean number per image, without class and register tokens.
        share: of the patches, in place of `tokens`.

    Raises:
        ValueError: not one of `tokens` and `share`, no images, or what `adaptok.calibrate` refuses.
    """
    wanted = tokens
    if (tokens is None) == (share is None):
        raise ValueError(f"give tokens or share, one of them, got {tokens} and {share}")
    fields, patches, count = [], 0, 0
    for batch in _batches(images):
        tiling.check_image(batch)
        tiling.check_range(batch)
        fields.append(tiling.restore(batch))
        patches += len(batch) * product(level_grid(fields[-1].shape[2:], tiling.spec.sizes[-1][1:]))
        count += len(batch)
    if share is not None:
        check_value(share, PositiveShare, "share")
        wanted = share * patches / max(count, 1)
    assert wanted is not None
    return calibrate(tiling.trees, fields, wanted)


def _batches(images: Any) -> Iterator[Tensor]:
    """Yields batches of images of one size.

    Raises:
        ValueError: neither images nor a loader of them.
    """
    own = _without_labels(images) if isinstance(images, (CutImages, Mapping)) else images
    if isinstance(own, Tensor) or _is_list_of_images(own):
        yield from _stacked(own)
        return
    loads = isinstance(own, Iterable) or hasattr(own, "__getitem__")
    if not loads or isinstance(own, (str, bytes, Mapping)):
        raise _no_images(own)
    for item in own:
        yield from _stacked(_without_labels(item))


def _stacked(images: Any) -> Iterator[Tensor]:
    """Yields a batch, one image (c, h, w) as a batch, or a list of them by neighbours of one size.

    Raises:
        ValueError: none of these.
    """
    if isinstance(images, Tensor):
        yield images[None] if images.ndim == 3 else images
    elif _is_list_of_images(images):
        for start, stop in runs([image.shape for image in images]):
            yield torch.stack(list(images[start:stop]))
    else:
        raise _no_images(images)


def _without_labels(item: Any) -> Any:
    """The images of an item of a loader: its first entry, or the one by their name."""
    while isinstance(item, (list, tuple)) and not _is_list_of_images(item):
        item = item[0]
    if isinstance(item, Mapping):
        return next((item[name] for name in NAMES if name in item), item)
    return item


def _no_images(given: Any) -> ValueError:
    keys = f" with {', '.join(map(str, given))}" if isinstance(given, Mapping) else ""
    return ValueError(
        "calibrate takes images, or a loader of images with labels behind them or under "
        f"{' or '.join(map(repr, NAMES))}; got {kind_of(given)}{keys}"
    )


def _is_list_of_images(images: Any) -> bool:
    return isinstance(images, (list, tuple)) and all(
        isinstance(image, Tensor) and image.ndim == 3 for image in images
    )
