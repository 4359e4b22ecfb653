"""Two passes: the cells of a prediction are made for the change that a cheaper one predicts."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Annotated, Any

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from adaptok.models.one_step import OneStepOptions, Prepared
from adaptok.registry import name_of
from adaptok.tokenizers.base import frames_of_cells
from adaptok.tokenizers.tree import TreeTokenizer

Lookahead = Annotated[float, Interval(gt=0, lt=1)]  # share of the budget


def check_lookahead(tokenizer: Any, decoder: Any, options: OneStepOptions) -> None:
    """Checks that a model can look ahead.

    Raises:
        ValueError: says why it cannot.
    """
    who = f"lookahead runs first at a share of the budget, and tokenizer {_name(tokenizer)}"
    if "budget" not in tokenizer.controls:
        accepted = ", ".join(tokenizer.controls) or "none"
        raise ValueError(f"{who} has none; its controls: {accepted}")
    if _budget(tokenizer) is None:
        raise ValueError(f"{who} has none set: tokenizer.budget=..., or budget=... of a run")
    if options.out_channels != options.in_channels:
        raise ValueError(
            f"lookahead scores the change of the fields, but {options.out_channels} channels are "
            f"predicted of {options.in_channels}"
        )
    choice = getattr(decoder, "choice", None)
    for part, what in ((tokenizer, "cells"), (choice, "points")):
        if getattr(getattr(part, "indicator", None), "needs_outcome", False):
            raise ValueError(
                f"a learned indicator predicts the change from the field, and lookahead would show "
                f"it the change: choose {what} by another indicator, or lookahead=null"
            )


def first_controls(
    tokenizer: Any, share: float, shape: Sequence[int], control: dict[str, Any]
) -> dict[str, Any]:
    """Returns the controls of the first pass: a share of each budget, but enough for the coarsest
    tiling.

    Args:
        shape: (t, *space) of the field.
    """
    given = control.get("budget")
    budget = _budget(tokenizer) if given is None else given
    return {**control, "budget": _share_of(budget, share, _least(tokenizer, shape))}


def _name(tokenizer: Any) -> str:
    config = getattr(tokenizer, "config", None) or {}
    return repr(config.get("name") or name_of(type(tokenizer)))


def _budget(tokenizer: Any) -> Any:
    """The budget of a call that sets none."""
    return getattr(getattr(tokenizer, "marking", tokenizer), "budget", None)


def _least(tokenizer: Any, shape: Sequence[int]) -> int:
    if not isinstance(tokenizer, TreeTokenizer):
        return 1
    frames = frames_of_cells(shape[0], tokenizer.spec.sizes[0][0])
    return frames * tokenizer.tree(shape[1:]).counts().leaves


def _share_of(budget: Any, share: float, least: int) -> Any:
    if isinstance(budget, Tensor):
        return (budget * share).round().long().clamp(min=least)
    if isinstance(budget, Sequence) and not isinstance(budget, str):
        return [_share_of(one, share, least) for one in budget]
    if isinstance(budget, Integral) and not isinstance(budget, bool):
        return max(round(int(budget) * share), least)
    return budget  # none, and the tokenizer says so


def change_as_scored(
    options: OneStepOptions, prepared: Prepared, decoded: Float[Tensor, "b t c *s"]
) -> Float[Tensor, "b t e *s"]:
    """Puts a predicted change where the indicator sees the field.

    Each frame of the history becomes the change (with ``history_mode="frames"`` that which follows
    it), constants become 0, and so does what is not finite. The unit of a channel is the size of
    its changes (of its values for ``predict="state"``), or with ``score_on="raw"`` that of the
    field.

    Args:
        decoded: what the model predicts, in normalised units.
    """
    o, like, fields = options, prepared.scored, options.in_channels
    folded = o.history if o.history_mode == "fold" else 1
    change, unit = decoded, prepared.delta_std
    if o.predict == "state":
        newest = (folded - 1) * fields
        change, unit = decoded - prepared.x[:, :, newest : newest + fields], prepared.std
    if o.score_on == "raw":
        change = unit * change
    change = change.to(like.dtype).nan_to_num(0, 0, 0)
    constants = like.new_zeros(like.shape[0], like.shape[1], o.constant_channels, *like.shape[3:])
    return torch.cat([*[change] * folded, constants], 2)
