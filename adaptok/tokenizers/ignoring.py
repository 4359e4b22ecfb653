"""Which channels of a field an indicator does not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

# "constants", or channels by number, or (where a data set is at hand) fields by name.
Ignore = Literal["constants"] | Sequence[int | str]


def as_ignore(ignore: Ignore) -> tuple[int, ...] | Literal["constants"]:
    """Returns "constants" or the numbers of channels.

    Raises:
        ValueError: something else. Names of fields become numbers where the data set is known, in
            `adaptok.config.channels`.
    """
    if ignore == "constants":
        return "constants"
    if isinstance(ignore, str) or any(
        not isinstance(i, int) or isinstance(i, bool) for i in ignore
    ):
        raise ValueError(
            f'ignore is "constants" or a list of channels by number, got {ignore!r}; names of '
            "fields go with adaptok train on one data set, which knows them"
        )
    return tuple(int(i) for i in ignore)


class IgnoresChannels:
    """A tokenizer that scores some channels only.

    Attributes:
        ignore: "constants", or the numbers of those that it does not see.
        constants: numbers of the channels that do not change with time.
    """

    ignore: tuple[int, ...] | Literal["constants"]
    constants: tuple[int, ...] = ()

    def tell_channels(self, constants: Sequence[int], channels: int) -> None:
        """Tells which of the channels are static constants; a surrogate does so.

        Raises:
            ValueError: a channel is ignored that does not exist, or all are.
        """
        self.constants = tuple(constants)
        self.seen(channels)

    def seen(self, channels: int) -> list[int]:
        """Lists which channels of a field the indicator sees."""
        ignored = self.constants if isinstance(self.ignore, str) else self.ignore
        return seen_channels(ignored, channels)


def seen_channels(ignored: Sequence[int], channels: int) -> list[int]:
    """Lists the channels that are not ignored; negative numbers count from the end.

    Raises:
        ValueError: an ignored channel that does not exist, or none left.
    """
    for channel in ignored:
        if not -channels <= channel < channels:
            raise ValueError(f"ignored channel {channel}: the field has {channels} channels")
    left_out = [channel % channels for channel in ignored]
    seen = [channel for channel in range(channels) if channel not in left_out]
    if not seen:
        raise ValueError("every channel is ignored: nothing is left to score")
    return seen


def only(field: Float[Tensor, "b t c *s"], channels: Sequence[int]) -> Float[Tensor, "b t k *s"]:
    """Picks sorted channels: a view if they are neighbours, so that nothing is copied."""
    first, count = channels[0], len(channels)
    if channels[-1] - first + 1 == count:
        return field if count == field.shape[2] else field.narrow(2, first, count)
    return torch.cat([field.narrow(2, channel, 1) for channel in channels], 2)
