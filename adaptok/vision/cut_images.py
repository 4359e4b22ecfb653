"""Images with their cells, so that they may be cut ahead of the model, in workers of a loader."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.vision.tiling import ImageCells


class CutImages(NamedTuple):
    """Images and the cells that they are cut into; an adapted model takes it in place of images.

    `adaptok.collate` makes a batch of several, and ``to`` and ``pin_memory`` move it.

    Attributes:
        images: normalised as for the model: one (c, h, w), a batch, or a list of (c, h, w).
        cells: packed over the images.
    """

    images: Float[Tensor, "*b c h w"] | Sequence[Tensor]
    cells: Cells

    def to(self, *args: Any, **kwargs: Any) -> CutImages:
        """Moves images and cells to a device; only the images take a dtype."""
        return CutImages(
            _each(self.images, lambda image: image.to(*args, **kwargs)),
            self.cells.to(*args, **kwargs),
        )

    def pin_memory(self) -> CutImages:
        """Copies both into page-locked memory, for loaders."""
        return CutImages(_each(self.images, Tensor.pin_memory), self.cells.pin_memory())


class Tokenize:
    """Cuts an image into the cells that an adapted model would make: a transform for a data set,
    behind the normalisation.

    It holds a copy of the model's tiling and none of its weights, so that workers score images.

    Args:
        model: made by `apply_apt` from a model of timm.
        control: thresholds or a budget in place of the model's.

    Raises:
        ValueError: another model, or one whose indicator learns.
    """

    def __init__(self, model: nn.Module, **control: Any):
        tiling = getattr(model, "tiling", None)
        if not isinstance(tiling, ImageCells):
            raise ValueError(f"Tokenize takes what apply_apt returned, got {type(model).__name__}")
        if any(True for _ in tiling.parameters()):
            raise ValueError("the indicator of this model learns, and workers have no weights")
        self.tiling, self.control = copy.deepcopy(tiling), control

    def __call__(self, image: Float[Tensor, "c h w"], **control: Any) -> CutImages:
        """Cuts one image, normalised as for the model.

        Args:
            control: for this image.

        Raises:
            ValueError: no image (c, h, w), or one that the model would refuse.
        """
        if not isinstance(image, Tensor) or image.ndim != 3:
            given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"Tokenize takes one image (c, height, width), got {given}")
        with torch.no_grad():
            return CutImages(image, self.tiling(image[None], **self.control, **control))


def separated(x: Any, cells: Cells | None, control: dict[str, Any]) -> tuple[Any, Cells | None]:
    """Returns images and their cells, which come with them or beside them.

    Raises:
        ValueError: both ways at once, or thresholds and the like for images that are cut already.
    """
    if not isinstance(x, CutImages):
        return x, cells
    if cells is not None or control:
        more = ["cells"] * (cells is not None) + list(control)
        raise ValueError(f"cells come with the images, and {', '.join(more)} cannot change them")
    if isinstance(x.images, Tensor) and x.images.ndim == 3:
        return x.images[None], x.cells
    return x.images, x.cells


def _each(images: Any, change: Any) -> Any:
    return change(images) if isinstance(images, Tensor) else [change(image) for image in images]
