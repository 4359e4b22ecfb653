"""What a model has to know about a data set."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FieldInfo:
    """Names, shapes and training-split statistics of a data set.

    One channel is one component of one field; channels come in the order of the batches.

    Attributes:
        name: name of the set, as its files say.
        ndim: number of space axes.
        shape: grid points per space axis.
        fields: names of the channels that change with time ("velocity_x").
        constants: names of the channels that do not.
        mean: per field, (c,).
        std: per field, (c,).
        delta_mean: mean change from one frame to the next, (c,).
        delta_std: spread of that change, (c,).
        constant_mean: per constant, (cc,).
        constant_std: per constant, (cc,).
        boundary: type at the low and high end of each axis (wall 0, open 1, periodic 2),
            integers (ndim, 2).
        scalars: names of the physical parameters that a batch has.
    """

    name: str
    ndim: int
    shape: tuple[int, ...]
    fields: tuple[str, ...]
    constants: tuple[str, ...]
    mean: Tensor
    std: Tensor
    delta_mean: Tensor
    delta_std: Tensor
    constant_mean: Tensor
    constant_std: Tensor
    boundary: Tensor
    scalars: tuple[str, ...] = ()
