"""Sums that do not change: a global fix of a prediction, and what a conservative decoder needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import boundary_codes
from adaptok.registry import choice
from adaptok.utils.arguments import NonNegative, accepts, shown
from adaptok.utils.boundary import OPEN
from adaptok.utils.constants import constant

Conserve = Literal["all"] | Sequence[NonNegative]  # channels


def channel_numbers(given: Any, fields: Sequence[str], what: str) -> Any:
    """Returns predicted channels with numbers in place of names of fields.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        return given
    names = dict.fromkeys(fields)
    return [
        list(fields).index(choice(f"each of {what}", one, names)) if isinstance(one, str) else one
        for one in given
    ]


def conserved_channels(conserve: Any, channels: int) -> tuple[int, ...]:
    """Lists the channels whose sums are kept: none for None, every one for "all".

    Raises:
        ValueError: something else, or a channel that does not exist.
    """
    if conserve is None:
        return ()
    if isinstance(conserve, str) and conserve == "all":
        return tuple(range(channels))
    if isinstance(conserve, str) or not accepts(Sequence[NonNegative], conserve):
        raise ValueError(f'conserve is "all" or a list of channels, got {shown(conserve)}')
    if wrong := [channel for channel in conserve if channel >= channels]:
        raise ValueError(f"conserved channel {wrong[0]} does not exist: the field has {channels}")
    return tuple(sorted({*map(int, conserve)}))


def conserving(
    made: Float[Tensor, "b t c *s"],
    before: Float[Tensor, "b t c *s"],
    channels: Sequence[int],
    boundary: Tensor | None,
) -> Float[Tensor, "b t c *s"]:
    """Shifts a prediction by a number per sample, frame and channel so that its sum is that of the
    frame before; samples with an open end (or without boundary codes) stay as they are.

    Args:
        made: the prediction.
        before: the frame before each predicted one.
        channels: that are conserved.
        boundary: codes (d, 2) or (b, d, 2).
    """
    if not channels:
        return made
    axes = tuple(range(3, made.ndim))
    codes = boundary_codes(boundary, made.shape[0], len(axes), made.device)
    closed = (codes != OPEN).flatten(1).all(1).view(-1, *[1] * (made.ndim - 1))
    change = made - before
    kept = change
    for _ in range(2):  # the second round takes away what the round-off of the first one left
        kept = kept - kept.mean(axes, keepdim=True)
    listed = tuple(float(channel in channels) for channel in range(made.shape[2]))
    mask = constant(listed, made.device).view(-1, *[1] * len(axes)) > 0
    return torch.where(closed & mask, before + kept, made)


def check_conserving(decoder: Any, options: Any) -> None:
    """Checks that what a decoder conserves is the sum of the field.

    Args:
        decoder: of a model.
        options: the `OneStepOptions` of the model.

    Raises:
        ValueError: says why it is not.
    """
    if not getattr(decoder, "conserves", False):
        return
    if options.predict != "delta":
        raise ValueError(
            "decoder 'conservative' paints changes whose sum is zero, and this model predicts "
            'states: predict="delta", or conserve="all", which shifts any prediction'
        )
    if options.by_context:
        raise ValueError(
            f'normalise="{options.normalise}" adds the mean change of the history to every '
            'prediction, which decoder "conservative" cannot balance: normalise by "sample", '
            '"dataset" or "none"'
        )
