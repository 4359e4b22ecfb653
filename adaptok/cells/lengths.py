"""Numbers of rows per sample or group that the host knows, for a known batch or any."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from adaptok.utils.constants import cached_constant

# A number that is a symbol in a program which is exported with a dynamic batch.
if TYPE_CHECKING:
    Count = int
else:
    Count = int | torch.SymInt


@dataclasses.dataclass(frozen=True)
class Equal:
    """One length for all groups of a batch whose size is a symbol: only inside of a program that
    ``torch.export`` traces with a dynamic batch. Elsewhere lengths are a tuple.

    Attributes:
        length: rows of each group.
        count: number of groups, a ``torch.SymInt``.
    """

    length: int
    count: Any


Lengths = tuple[int, ...] | Equal


def repeated(length: int, count: Count) -> Lengths:
    """`count` groups of one length."""
    return Equal(length, count) if isinstance(count, torch.SymInt) else (length,) * count


def common(lengths: Lengths | None) -> int | None:
    """The length that all groups have, None if they differ, are unknown or there are none."""
    if isinstance(lengths, Equal):
        return lengths.length
    if lengths and lengths.count(lengths[0]) == len(lengths):
        return lengths[0]
    return None


def distinct(lengths: Lengths) -> tuple[int, ...]:
    """Every length that occurs, once."""
    return (lengths.length,) if isinstance(lengths, Equal) else tuple(dict.fromkeys(lengths))


def each(lengths: Lengths, change: Callable[[int], int]) -> Lengths:
    """Changes every length."""
    if isinstance(lengths, Equal):
        return Equal(change(lengths.length), lengths.count)
    return tuple(map(change, lengths))


def number(lengths: Lengths) -> Count:
    """Number of groups."""
    return lengths.count if isinstance(lengths, Equal) else len(lengths)


def total(lengths: Lengths) -> Count:
    """Number of rows of all groups."""
    return lengths.length * lengths.count if isinstance(lengths, Equal) else sum(lengths)


def column(lengths: Lengths, device: torch.device) -> Int[Tensor, "b 1"]:
    """The lengths as an int64 tensor."""
    if isinstance(lengths, Equal):
        return torch.full((lengths.count, 1), lengths.length, device=device)
    return torch.tensor(lengths, device=device)[:, None]


def offsets_of(lengths: Lengths, device: torch.device) -> Int32[Tensor, " b1"]:
    """Offset of each group, and the total at the end."""
    if isinstance(lengths, Equal):
        count = torch.arange(lengths.count + 1, dtype=torch.int32, device=device)
        return count * lengths.length
    return offsets_tensor(tuple(itertools.accumulate(lengths, initial=0)), device)


@cached_constant()
def offsets_tensor(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """Makes a small constant int32 tensor, cached so that a fixed budget uploads it once."""
    return torch.tensor(offsets, dtype=torch.int32).to(device)
