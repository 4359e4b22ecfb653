"""What to do with a model's own output once it has diverged."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LIMIT = 1e15  # squares of fields that have grown by this still fit into float32


def usable(
    window: Float[Tensor, "b t c *s"], start: Float[Tensor, "b t c *s"], unit: Float[Tensor, ""]
) -> tuple[Float[Tensor, "b t c *s"], Bool[Tensor, "b *ones"]]:
    """Puts something harmless in place of the samples that have diverged, without a wait.

    A sample has diverged if a value is not finite, or over 1e15 times as large as everything that
    the rollout started from: no tokenizer could place cells on it.

    Args:
        window: what a rollout would feed back.
        start: what it began with; stands in for what has diverged.
        unit: size of the fields in general, because `start` may be zero.

    Returns:
        The window to feed back, and a mask (b, 1, ...) of the samples whose output counts.
    """
    axes = tuple(range(1, window.ndim))
    size = torch.maximum(start.detach().abs().amax(axes, keepdim=True).float(), unit.float())
    largest = window.detach().abs().amax(axes, keepdim=True).float()
    fine = largest.isfinite() & (largest <= LIMIT * size)
    return torch.where(fine, window, start), fine
