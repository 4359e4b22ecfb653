"""A network on the dense grid as a one-step model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.layers.boundary import check_boundary
from adaptok.models.conserving import Conserve
from adaptok.models.one_step import OneStepModel, OneStepOptions, Prepared
from adaptok.registry import Registry, split_part
from adaptok.utils.arguments import Dimensions, NonNegative, Positive, checked

BASELINES = Registry("baseline")


class Baseline(OneStepModel):
    """Folds the history into channels and hands it to a network ``(b, c, *s) -> (b, c', *s)``.

    Normalises, reads constants, predicts and rolls out as a `Surrogate`. Usually built by
    `create_baseline`.

    Args:
        network: the map on the grid.
        options: what the model reads and returns; ``history_mode="fold"``.
        given: fields of `OneStepOptions`, instead of or on top of `options`.
    """

    def __init__(self, network: nn.Module, options: OneStepOptions | None = None, **given: Any):
        super().__init__(options, **given)
        self.network = network

    def _predict_normalised(
        self, prepared: Prepared, boundary: Tensor | None, control: dict[str, Any]
    ) -> Float[Tensor, "b 1 c *s"]:
        if control:
            raise ValueError(f"a baseline has no controls, got {', '.join(control)}")
        return self.network(prepared.x[:, 0]).unsqueeze(1)


@checked
def create_baseline(
    baseline: str | Mapping[str, Any],
    *,
    ndim: Dimensions,
    in_channels: Positive,
    history: Positive = 1,
    constant_channels: NonNegative = 0,
    boundary: Tensor | Sequence[Sequence[int]] | None = None,
    shape: Sequence[Positive] | None = None,
    normalise: str = "sample",
    predict: str = "delta",
    conserve: Conserve | None = None,
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
            are. Fixed at construction. Default: all open.
        shape: grid points per axis, for baselines that are built for one grid.
        normalise: see `adaptok.create_surrogate`.
        predict: see `adaptok.create_surrogate`.
        conserve: see `adaptok.create_surrogate`.

    Raises:
        ValueError: unknown name or knob, or arguments that make no sense.
    """
    arguments = dict(locals())
    options = OneStepOptions.of(arguments, out_channels=in_channels)
    codes = torch.ones(ndim, 2, dtype=torch.int64, device="cpu")  # also within torch.device("meta")
    if boundary is not None:
        try:
            codes = torch.as_tensor(boundary, device="cpu")
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"boundary must be ({ndim}, 2) codes, got {boundary!r}") from error
        if tuple(codes.shape) != (ndim, 2):
            raise ValueError(f"boundary must be ({ndim}, 2), got {tuple(codes.shape)}")
        check_boundary(codes, 1, ndim)
    wired = {
        "ndim": ndim,
        "in_channels": options.token_channels,
        "out_channels": in_channels,
        "periodic": tuple(bool(p) for p in (codes == 2).all(1)),
        "shape": None if shape is None else tuple(shape),
        "predict": predict,
    }
    model = Baseline(BASELINES.build(baseline, **wired), options)
    name, knobs = split_part(baseline, "baseline")
    plain = {"baseline": {"name": name, **knobs}, "boundary": codes.int().tolist()}
    model.config = {"kind": "baseline", **arguments, **plain, "shape": wired["shape"]}
    return model
