"""What a model has to know about a data set, and how it learns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adaptok.models.one_step import OneStepModel
from adaptok.utils.magnitude import divisor


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
        scalars: names of the physical parameters in a batch.
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

    @property
    def unit(self) -> Tensor:
        """What values are divided by, (c,): the std, or the size of a field that is constant."""
        return divisor(self.mean, self.std)


def set_statistics(model: OneStepModel, info: FieldInfo) -> None:
    """Hands the statistics of the training split to a model."""
    constants = (info.constant_mean, info.constant_std) if info.constants else (None, None)
    names = [*info.fields, *info.constants]
    model.set_statistics(info.mean, info.std, info.delta_std, *constants, names=names)


def system_of(model: Any, info: FieldInfo) -> Any:
    """Returns the one-step model of a data set, with its statistics and the weights of a
    `Multiphysics` model.

    Raises:
        ValueError: the model does not know some fields; says which.
    """
    system = model.system(info.fields, info.constants)
    set_statistics(system, info)
    return system
