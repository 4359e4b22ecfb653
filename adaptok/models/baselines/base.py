"""A network on the dense grid as a one-step model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.models.one_step import OneStepModel, Prepared, check_arguments
from adaptok.registry import Registry, split_part

BASELINES = Registry("baseline")


class Baseline(OneStepModel):
    """Folds the history into channels and hands it to a network ``(b, c, *s) -> (b, c', *s)``.

    Normalisation, constants, change or state, and rollouts are those of `Surrogate`. Built by
    `create_baseline`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        ndim: int,
        in_channels: int,
        history: int,
        constant_channels: int,
        normalise: str,
        predict: str,
    ):
        super().__init__(
            ndim=ndim,
            in_channels=in_channels,
            out_channels=in_channels,
            history=history,
            history_mode="fold",
            constant_channels=constant_channels,
            normalise=normalise,
            score_on="normalised",
            predict=predict,
        )
        self.network = network

    def _decode(
        self, prepared: Prepared, boundary: Tensor | None, control: dict[str, Any]
    ) -> Float[Tensor, "b 1 c *s"]:
        if control:
            raise ValueError(f"a baseline has no controls, got {', '.join(control)}")
        return self.network(prepared.x[:, 0]).unsqueeze(1)


def create_baseline(
    baseline: str | Mapping[str, Any],
    *,
    ndim: int,
    in_channels: int,
    history: int = 1,
    constant_channels: int = 0,
    boundary: Tensor | Sequence[Sequence[int]] | None = None,
    shape: Sequence[int] | None = None,
    normalise: str = "sample",
    predict: str = "delta",
) -> Baseline:
    """Builds a baseline.

    Args:
        baseline: one of ``adaptok.models.baselines.BASELINES.names()``, or a mapping of "name" and
            knobs: ``{"name": "fno", "width": 32}``.
        ndim: space dimensions, 1 to 3.
        in_channels: fields per frame, read and predicted.
        history: frames of context, folded into channels.
        constant_channels: static input fields, given per call as `constants`.
        boundary: (ndim, 2) codes (wall 0, open 1, periodic 2); axes are periodic where both ends
            are. Fixed at construction. Default: none is.
        shape: grid points per axis, for baselines that are built for one grid.
        normalise: as of `adaptok.create_surrogate`.
        predict: as of `adaptok.create_surrogate`.

    Raises:
        ValueError: unknown name or knob, or arguments that make no sense.
    """
    if ndim not in (1, 2, 3):
        raise ValueError(f"ndim must be 1, 2 or 3, got {ndim}")
    choices = {"normalise": normalise, "predict": predict}
    check_arguments(history, in_channels, in_channels, constant_channels, choices)
    codes = torch.ones(ndim, 2) if boundary is None else torch.as_tensor(boundary)
    if tuple(codes.shape) != (ndim, 2):
        raise ValueError(f"boundary must be ({ndim}, 2), got {tuple(codes.shape)}")
    wired = {
        "ndim": ndim,
        "in_channels": in_channels * history + constant_channels,
        "out_channels": in_channels,
        "periodic": tuple(bool(p) for p in (codes == 2).all(1)),
        "shape": None if shape is None else tuple(shape),
        "predict": predict,
    }
    model = Baseline(
        BASELINES.build(baseline, **wired),
        ndim=ndim,
        in_channels=in_channels,
        history=history,
        constant_channels=constant_channels,
        normalise=normalise,
        predict=predict,
    )
    name, knobs = split_part(baseline, "baseline")
    model.config = {
        "kind": "baseline",
        "baseline": {"name": name, **knobs},
        "ndim": ndim,
        "in_channels": in_channels,
        "history": history,
        "constant_channels": constant_channels,
        "boundary": codes.int().tolist(),
        "shape": wired["shape"],
        "normalise": normalise,
        "predict": predict,
    }
    return model
