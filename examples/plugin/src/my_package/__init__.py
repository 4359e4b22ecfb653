"""A tokenizer of my own: cells are fine where the field bends."""

from __future__ import annotations

import torch

import adaptok
from adaptok.tree import sum_pyramid


class MyIndicator:
    """Sum over the cell of the absolute second differences.

    Args:
        power: of the differences.
    """

    monotone = True  # sums of non-negative numbers: no child outscores its parent

    def __init__(self, *, power: float = 1.0):  # a parameter with a default is a knob
        self.power = power

    def __call__(self, field, tree, *, boundary=None):
        """Returns the score of every node; `field` is (b, t, c, *space)."""
        points = torch.zeros_like(field[:, 0, 0])
        for axis in range(3, field.ndim):
            inside = field.diff(n=2, dim=axis).abs() ** self.power
            # both ends have no second difference: they get their neighbor's
            ends = [inside.narrow(axis, 0, 1), inside, inside.narrow(axis, -1, 1)]
            points = points + torch.cat(ends, axis).mean((1, 2))
        return sum_pyramid(points[:, None], tree)[:, 0]


def my_tokenizer(
    ndim, in_channels, dim, *, min_size=None, max_size=None, budget: int = 256, power: float = 1.0
):
    """Cells that are fine where the field bends, to a token budget.

    Args:
        min_size: finest cell in grid points; None: what suits the budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: likewise.
        budget: tokens per sample; also per call.
        power: of the second differences.
    """
    return adaptok.TOKENIZERS.create(
        "composed",
        ndim,
        in_channels,
        dim,
        indicator={"name": MyIndicator, "power": power},
        marking={"name": "budget", "budget": budget},
        min_size=min_size,
        max_size=max_size,
    )
