"""The plain vision transformer on packed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from adaptok.cells import Cells, Groups
from adaptok.layers.blocks import Block
from adaptok.processors.transformer import Transformer
from adaptok.registry import PROCESSORS, choice
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import checked


@PROCESSORS.register("vit")
class ViT(Transformer):
    """Pre-norm self-attention over all tokens of a sample, rotary positions at the cell centres.

    The encoder of IAP (App. E, Tables 4 and 5) with ``mlp_ratio=2``; MATEY's ViT (Sec. 3) with
    ``positions="fourier"``. An instance norm is over the tokens of a sample.

    Args:
        attention: "global": over all tokens of a sample. "local": inside each coarsest cell, over
            all frames; tokens of different coarsest cells never meet.
        options: see `Transformer`.
    """

    stacks: ClassVar = {"blocks": Block}

    @checked
    def __init__(self, spec: TokenizerSpec, *, attention: str = "global", **options: Any):
        super().__init__(spec, **options)
        self.attention = choice("attention", attention, ("global", "local"))

    def groups(self, cells: Cells) -> tuple[Groups]:
        """The tokens of a sample, or those of a coarsest cell."""
        if self.attention == "global":
            return (cells.groups(),)
        return (cells.groups(fixed=range(1, cells.ndim + 1)).nonempty,)

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> tuple[Groups]:
        """The tokens of a sample."""
        return (cells.groups(),)
