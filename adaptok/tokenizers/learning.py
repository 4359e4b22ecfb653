"""The loss of an indicator that learns from what happens next."""

from __future__ import annotations

from typing import Any, TypeGuard

from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import Boundary
from adaptok.tokenizers.base import frames_of_cells
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import as_field


def learns_from_outcome(tokenizer: Any) -> TypeGuard[TreeTokenizer]:
    """Whether a tokenizer has an indicator that learns from what happens next."""
    own = isinstance(tokenizer, TreeTokenizer)
    return own and getattr(tokenizer.indicator, "needs_outcome", False)


def indicator_loss(
    tokenizer: TreeTokenizer,
    field: Float[Tensor, "b *tcs"],
    outcome: Float[Tensor, "b *tks"],
    *,
    boundary: Boundary = None,
) -> Float[Tensor, ""]:
    """Computes the loss of an indicator that learns from what happens next, such as `learned`.

    Training a surrogate adds ``indicator.weight`` times this loss to its own. A tokenizer alone
    learns by ``indicator_loss(tokenizer, field, after - field).backward()``.

    Args:
        tokenizer: with such an indicator.
        field: what the indicator sees.
        outcome: what comes after each frame of the field, or after the last one: the change to the
            next frame or, for ``target="error"``, the error of a prediction of it; any number of
            channels, in units in which they compare.
        boundary: codes, as in a call of the tokenizer.

    Raises:
        ValueError: an indicator that does not learn so, or an outcome of other samples, frames or
            grid points.
    """
    if not learns_from_outcome(tokenizer):
        name = type(getattr(tokenizer, "indicator", tokenizer)).__name__
        raise ValueError(f"{name} does not learn from what happens next")
    ndim, indicator = tokenizer.spec.ndim, tokenizer.indicator
    field, outcome = as_field(field, ndim), as_field(outcome, ndim, what="outcome")
    t, space = field.shape[1], field.shape[3:]
    fits = outcome.shape[0] == field.shape[0] and outcome.shape[3:] == space
    if not fits or outcome.shape[1] not in (1, t):
        raise ValueError(
            f"the outcome of a field of shape {tuple(field.shape)} has its samples, grid "
            f"points and frames, or one frame, got {tuple(outcome.shape)}"
        )
    frames = frames_of_cells(t, tokenizer.spec.sizes[0][0]) if tokenizer.per_frame else 1
    outcome = outcome.expand(-1, t, *outcome.shape[2:]).unflatten(1, (frames, -1))
    field, boundary, given = tokenizer.as_scored(field, boundary)
    last = outcome[:, :, -1].flatten(0, 1)
    loss: Any = indicator.loss  # type: ignore[attr-defined]
    return loss(field, tokenizer.tree(space), last, boundary=boundary, **given)
