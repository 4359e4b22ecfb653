"""A vision tower for vision-language models: cell tokens and where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from adaptok.tokens import TokenSet
from adaptok.vision.constants import constant

if TYPE_CHECKING:
    from adaptok.vision.models import AptMixin


class TowerTokens(NamedTuple):
    """What a projector takes: padded tokens, which of them are real, and their boxes.

    Attributes:
        features: zero rows up to the longest image.
        mask: True for real tokens.
        boxes: centre y, centre x, height and width in units of the image; zero where padded.
    """

    features: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]
    boxes: Float[Tensor, "b m 4"]


class VisionTower(nn.Module):
    """Cell tokens of a wrapped model for a projector, without class and register tokens.

    Args:
        model: what `apply_apt` gives.
        layer: block whose output is taken; the last but one by default, as LLaVA does.
    """

    def __init__(self, model: AptMixin, layer: int = -2):
        super().__init__()
        depth = len(model.blocks)
        if not -depth <= layer < depth:
            raise ValueError(f"the model has {depth} blocks, got layer {layer}")
        self.model, self.layer = model, layer % depth

    def forward(self, x: Float[Tensor, "b c h w"], **control: Any) -> TowerTokens:
        """Tokens of a batch of images; the language model sees ``mask.sum(1)`` of each."""
        tokens = self.model.tokens_after(x, self.layer, **control)
        features, mask = tokens.padded()
        boxes, _ = tokens.replace(features=cell_boxes(tokens)).padded()
        return TowerTokens(features, mask, boxes)


def cell_boxes(tokens: TokenSet) -> Float[Tensor, "n 4"]:
    """Centre y, centre x, height and width of each cell in units of the image."""
    cells = tokens.cells
    extent = constant(tuple(map(float, cells.shape[1:])), cells.device)
    return torch.cat([cells.center[:, 1:] / extent, cells.size[:, 1:] / extent], 1)
