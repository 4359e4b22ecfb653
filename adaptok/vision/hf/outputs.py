"""What an adapted tower returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from adaptok.cells import Cells


@dataclass
class TowerOutput(BaseModelOutputWithPooling):
    """Extends transformers' output; its own tensors are padded with zeros to the longest image.

    Special tokens come first, then cells: the coarsest first, each level in raster order.

    Attributes:
        hidden_states: as in transformers; None in the place of those not asked for.
        attention_mask: bool (b, m), True for real rows.
        weight: float (b, m), patches that each row stands for; 1 for special tokens, 0 for padding
            and, while a reducer learns, for rows that are out.
        cells: cells of the rows, without special tokens; None of a reduced model.
        image_tokens: tokens of each image, in a vision-language model.
        unmerged_tokens: those it would have without merging, where images are cut into tiles.
    """

    hidden_states: tuple[Tensor | None, ...] | None = None  # pyright: ignore
    attention_mask: Bool[Tensor, "b m"] | None = None
    weight: Float[Tensor, "b m"] | None = None
    cells: Cells | None = None
    image_tokens: tuple[int, ...] | None = None
    unmerged_tokens: list[int] | None = None


class Ran(NamedTuple):
    """Holds what the layers of a tower made.

    Attributes:
        last: after the last norm.
        hidden: before the first layer and after each; None for those not asked for.
        mask: which rows of `last` are real.
        weight: patches that they stand for; 0 for padding, and for rows that are out in training.
        bias: added to the score of each row as a key where attention pools, or None.
        cells: their cells, if they have some.
    """

    last: Float[Tensor, "b m d"]
    hidden: list[Tensor | None]
    mask: Bool[Tensor, "b m"]
    weight: Float[Tensor, "b m"]
    bias: Float[Tensor, "b m"] | None
    cells: Cells | None
