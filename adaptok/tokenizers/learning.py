"""The loss of an indicator that learns from what happens next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import Boundary
from adaptok.tokens import TokenizerSpec, as_field
from adaptok.tree import Tree


@runtime_checkable
class Scoring(Protocol):
    """What an indicator scores a tree for: `TreeTokenizer`, or the choice of refined points."""

    spec: TokenizerSpec
    indicator: Any

    def tree(self, space: Sequence[int]) -> Tree:
        """Returns the tree over a domain."""
        ...

    def as_scored(
        self, field: Float[Tensor, "b t c *s"], boundary: Boundary
    ) -> tuple[Float[Tensor, "bf fs k *s"], Boundary, dict[str, Any]]:
        """Returns what the indicator is called with; frames may be samples."""
        ...


def learns_from_outcome(part: Any) -> TypeGuard[Scoring]:
    """Whether a tokenizer, or what chooses points, has an indicator that learns from what happens
    next.
    """
    return isinstance(part, Scoring) and getattr(part.indicator, "needs_outcome", False)


def indicator_loss(
    tokenizer: Scoring,
    field: Float[Tensor, "b *tcs"],
    outcome: Float[Tensor, "b *tks"],
    *,
    boundary: Boundary = None,
) -> Float[Tensor, ""]:
    """Computes the loss of an indicator that learns from what happens next, such as `learned`.

    Training a surrogate adds ``indicator.weight`` times this loss to its own. A tokenizer alone
    learns by ``indicator_loss(tokenizer, field, after - field).backward()``.

    Args:
        tokenizer: with such an indicator; for refined points the `choice` of a `RefineDecoder`.
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
    b, (field, boundary, given) = field.shape[0], tokenizer.as_scored(field, boundary)
    frames = field.shape[0] // b  # that are scored one by one
    outcome = outcome.expand(-1, t, *outcome.shape[2:]).unflatten(1, (frames, -1))
    last = outcome[:, :, -1].flatten(0, 1)
    return indicator.loss(field, tokenizer.tree(space), last, boundary=boundary, **given)
