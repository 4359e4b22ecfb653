"""Reuse in rollouts: what moved little keeps what a block made of it (Dutson et al., "Eventful
Transformers", ICCV 2023), on cells that change from step to step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.blocks import Attention, AttentionBranch, Block
from adaptok.layers.partly import Kept, partly
from adaptok.utils.arguments import NonNegativeFloat, checked


class Reuse:
    """What the blocks of a processor computed in the steps before.

    A token whose cell was there before, and whose input to a block is nearer to the one that the
    block last computed than `tolerance` times its norm, keeps the output of then, and its key and
    value. So what is kept never drifts by more than the tolerance, and at tolerance 0 nothing is
    kept. For inference; the number of tokens to compute sizes their tensors, so that each block
    waits for the device once.

    Args:
        tolerance: relative change of an input below which the output is kept.

    Attributes:
        share: of the outputs in the last call, those that were kept.
    """

    @checked
    def __init__(self, tolerance: NonNegativeFloat):
        self.tolerance = tolerance
        self.share = 0.0
        self._cells: Cells | None = None
        self._match: Tensor | None = None
        self._kept: dict[nn.Module, Kept] = {}
        self._rows = [0, 0]  # kept, all

    def begin(self, cells: Cells) -> None:
        """Starts a call.

        Raises:
            ValueError: gradients are on, or cells of other samples than before.
        """
        if torch.is_grad_enabled():
            raise ValueError("reuse is for inference: call the model under torch.no_grad()")
        if self.tolerance:
            self._match = None if self._cells is None else cells.match(self._cells)
        self._cells, self._rows, self.share = cells, [0, 0], 0.0

    def through(
        self, layer: AttentionBranch, x: Float[Tensor, "n d"], rows: Any
    ) -> Float[Tensor, "n d"]:
        """Runs a layer on the rows that moved, and remembers.

        Args:
            rows: what the layer is called with beside x.
        """
        if not self.tolerance:
            self._kept.clear()
            return layer(x, *rows)
        given = (rows.groups, rows.rotate, rows.sample, rows.samples, rows.key_bias)
        old = self._kept.get(layer)
        if old is None or self._match is None:
            made = partly(layer, x, None, None, *given)
        else:
            kept = old.at(self._match.clamp(min=0))
            limit = self.tolerance * x.norm(dim=1)
            active = (self._match < 0) | ~((x - kept.x).norm(dim=1) < limit)  # NaN is computed
            chosen = active.nonzero().squeeze(1)  # the sync: how many there are sizes the work
            if len(chosen) == len(x):
                made = partly(layer, x, None, None, *given)
            else:
                made = partly(layer, x, chosen, kept, *given) if len(chosen) else kept
            self._rows[0] += len(x) - len(chosen)
        self._rows[1] += len(x)
        self.share = self._rows[0] / max(self._rows[1], 1)
        self._kept[layer] = made
        return made.out


def check_reuse(processor: Any) -> None:
    """Checks that the blocks of a processor can keep what they computed.

    Raises:
        ValueError: says why they cannot.
    """
    own = getattr(processor, "check_reuse", None)
    if own is None:
        raise ValueError(
            f"reuse keeps what blocks compute, and {type(processor).__name__} has none"
        )
    own()


def can_reuse(processor: Any) -> bool:
    """Tells whether `check_reuse` accepts a processor."""
    try:
        check_reuse(processor)
    except ValueError:
        return False
    return True


def check_layers(layers: Iterable[Any], who: str) -> None:
    """Raises ``ValueError`` for layers that are none of which `partly` computes some rows."""
    for layer in layers:
        if type(layer) not in (Block, AttentionBranch) or type(layer.attention) is not Attention:
            raise ValueError(f"reuse keeps keys and values, and the blocks of {who} have others")
