"""The Well's random flips, rotations and rolls, for samples of the data module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from the_well.data.augmentation import (
    Augmentation,
    Compose,
    RandomAxisFlip,
    RandomAxisPermute,
    RandomAxisRoll,
    RandomRotation90,
)
from the_well.data.datasets import WellMetadata
from torch import Tensor
from torch.utils.data import Dataset

from adaptok.registry import choice

AUGMENTATIONS: dict[str, Callable[[], Augmentation]] = {
    "flip": RandomAxisFlip,
    "rotate": RandomRotation90,
    "permute": RandomAxisPermute,
    "roll": RandomAxisRoll,
}
SWAPS = ("rotate", "permute")  # these exchange axes

Sample = dict[str, Tensor]


class Augmented(Dataset):
    """Transforms the samples of another data set at random.

    Transforms fields, constants and boundary types alike; vectors and tensors turn with the axes.
    The random numbers come from torch's and numpy's global generators, as in the Well: inside
    :class:`adaptok.data.order.Seeded`, a sample is a function of (seed, epoch, index).

    Args:
        samples: with "input", "target", "boundary" and perhaps "constants", channels first.
        names: any of "flip" (each axis with probability 1/2), "rotate" (by a random multiple of
            90 degrees), "permute" (a random order of the axes) and "roll" (a random shift along
            the periodic axes), applied in the order given.
        metadata: of the set.

    Raises:
        ValueError: for an unknown name, or one that the grid does not allow.
    """

    def __init__(self, samples: Dataset, names: Sequence[str], metadata: WellMetadata):
        check_augmentations(names, metadata)
        self.samples = samples
        self.transform = Compose(*(AUGMENTATIONS[name]() for name in names))
        ndim = metadata.n_spatial_dims
        self.fields = _Channels(metadata.field_names, ndim)
        self.constants = _Channels(metadata.constant_field_names, ndim)
        dataset = SimpleNamespace(n_spatial_dims=ndim, metadata=metadata)
        self.about: Any = SimpleNamespace(dataset=dataset)  # all that the transforms read

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        history, constants = len(sample["input"]), sample.get("constants")
        data: Any = {
            "variable_fields": self.fields.split(torch.cat([sample["input"], sample["target"]])),
            "constant_fields": {} if constants is None else self.constants.split(constants),
            "boundary_conditions": sample["boundary"],
        }
        data = self.transform(data, self.about)
        frames = self.fields.join(data["variable_fields"])
        out = {"input": frames[:history], "target": frames[history:]}
        if constants is not None:
            out["constants"] = self.constants.join(data["constant_fields"])
        return {**sample, **out, "boundary": data["boundary_conditions"]}


class _Channels:
    """Maps channels to fields and back.

    Args:
        names: of the channels by tensor order, as in the Well's metadata.
        ndim: number of space axes.
    """

    def __init__(self, names: Mapping[int, Sequence[str]], ndim: int):
        self.ndim = ndim
        self.orders = [order for order in names for _ in names[order][:: ndim**order]]  # per field

    def split(self, values: Tensor) -> dict[int, dict[str, Tensor]]:
        """Splits channels (..., c, *space) into fields (..., *space, *(ndim,) * order) by order."""
        out: dict[int, dict[str, Tensor]] = {}
        axis = values.ndim - 1 - self.ndim
        parts = values.split([self.ndim**order for order in self.orders], axis)
        for number, (order, part) in enumerate(zip(self.orders, parts, strict=True)):
            part = part.movedim(axis, -1)
            shape = (*part.shape[:-1], *(self.ndim,) * order)
            out.setdefault(order, {})[str(number)] = part.reshape(shape)
        return out

    def join(self, fields: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
        """Inverts :meth:`split`; contiguous."""
        flat = [
            values.unsqueeze(-1).flatten(-1 - order)
            for order, members in fields.items()
            for values in members.values()
        ]
        joined = torch.cat(flat, -1)
        return joined.movedim(-1, joined.ndim - 1 - self.ndim).contiguous()


def check_augmentations(names: Sequence[str], metadata: WellMetadata) -> None:
    """Raises ``ValueError`` for unknown names, and for those that the grid does not allow."""
    shape = tuple(metadata.spatial_resolution)
    for name in names:
        choice("augment", name, AUGMENTATIONS)
        if name in SWAPS and (len(set(shape)) > 1 or len(shape) == 1):
            size = " x ".join(map(str, shape))
            raise ValueError(
                f"augment={name} exchanges axes: it needs 2 or 3 of equal length, not {size}"
            )
    if names and metadata.grid_type != "cartesian":
        raise ValueError(f"a {metadata.grid_type} grid cannot be augmented, only a cartesian one")
