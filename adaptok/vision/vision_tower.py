"""A vision tower for vision-language models: cell tokens and their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.tokens import TokenSet
from adaptok.utils.constants import constant


class TowerTokens(NamedTuple):
    """Holds what a projector takes: padded tokens, which of them are real, and their boxes.

    Attributes:
        features: zero rows up to the longest image.
        mask: True for real tokens.
        boxes: centre y, centre x, height and width in units of the image; zero for padding.
    """

    features: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]
    boxes: Float[Tensor, "b m 4"]


class VisionTower(nn.Module):
    """Gives a projector the cell tokens of a wrapped model, without class and register tokens.

    Args:
        model: made by `apply_apt` from a model of timm, or from a vision model of transformers.
        layer: block whose output is taken; by default the last but one, as in LLaVA.

    Raises:
        ValueError: another model, or one without this block.
    """

    def __init__(self, model: nn.Module, layer: int = -2):
        super().__init__()
        if not hasattr(model, "tokens_after"):
            raise ValueError(
                f"a tower is made of what apply_apt returned, got {type(model).__name__}; of a "
                "larger model of transformers give the vision model in it"
            )
        self.model: Any = model
        depth = len(self.model.blocks)
        if not -depth <= layer < depth:
            raise ValueError(f"the model has {depth} blocks, got layer {layer}")
        self.layer = layer % depth

    def forward(
        self, x: Float[Tensor, "b c h w"] | Sequence[Tensor], **control: Any
    ) -> TowerTokens:
        """Returns the tokens of a batch, or a list, of images; ``mask.sum(1)`` of each are real."""
        tokens = self.model.tokens_after(x, self.layer, **control)
        features, mask = tokens.padded()
        boxes, _ = tokens.replace(features=cell_boxes(tokens)).padded()
        return TowerTokens(features, mask, boxes)


def cell_boxes(tokens: TokenSet) -> Float[Tensor, "n 4"]:
    """Returns centre y, centre x, height and width of each cell in units of the image."""
    cells = tokens.cells
    return torch.cat([centers(cells), cells.size[:, 1:] / _extent(cells)], 1)


def centers(cells: Cells) -> Float[Tensor, "n 2"]:
    """Returns the centre of each cell in units of the image."""
    return cells.center[:, 1:] / _extent(cells)


def _extent(cells: Cells) -> Float[Tensor, "*n 2"]:
    if cells.mixed is None:
        return constant(tuple(map(float, cells.shape[1:])), cells.device)
    return torch.as_tensor(cells.extents)[:, 1:].float()
