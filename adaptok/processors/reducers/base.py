"""What all reducers share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Annotated, Any, ClassVar, NamedTuple

import annotated_types as at
import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells.lengths import Lengths, distinct, each
from adaptok.processors.reducers.sequences import Reduction, Sequences
from adaptok.utils.arguments import Finite, NonNegative

# A number, one per block, or upstream's pair of a number and an inflection.
PerBlock = NonNegative | Annotated[Sequence[Finite], at.Len(1)]
Rotation = Callable[[Tensor], Tensor]


class Seen(NamedTuple):
    """What a reducer sees in one block; rows lie sequence by sequence.

    Attributes:
        block: index of the block.
        x: features: with the attention added, before the MLP ("between"), or as they enter the
            block ("before").
        mass: what each row stands for, in at least float32.
        sequences: rows that reduce among themselves.
        first: lengths of the sequences before any reduction.
        normed: input of the attention; None for "before", as all that follows.
        q: queries before rotation.
        k: keys before rotation.
        key_bias: what was added to the scores of keys.
        rotate: rotation of queries and keys.
        gate: 1 for rows that are still in, 0 for others, if they stay as rows.
    """

    block: int
    x: Float[Tensor, "n d"]
    mass: Float[Tensor, " n"]
    sequences: Sequences
    first: Lengths
    normed: Float[Tensor, "n d"] | None = None
    q: Float[Tensor, "n h e"] | None = None
    k: Float[Tensor, "n hk e"] | None = None
    key_bias: Float[Tensor, " n"] | None = None
    rotate: Rotation | None = None
    gate: Float[Tensor, " n"] | None = None


class Reduced(NamedTuple):
    """What a reducer makes of them.

    Attributes:
        x: new features.
        mass: what the new rows stand for.
        reduction: which row went where; None if all rows stay.
        gate: weight of each row as a key and of what blocks add to it, or None for 1.
    """

    x: Float[Tensor, "m d"]
    mass: Float[Tensor, " m"]
    reduction: Reduction | None
    gate: Float[Tensor, " m"] | None = None


class Reducer(nn.Module):
    """Reduces tokens inside the blocks of a transformer.

    Args:
        depth: number of blocks.

    Attributes:
        weighted: power of the mass that weighs a row as a key, in all blocks.
        place: "between" attention and MLP, or "before" a block.
        drops: whether rows may be dropped, rather than merged.
    """

    place: ClassVar[str] = "between"
    drops: bool = False

    def __init__(self, depth: int, weighted: float = 0.0):
        super().__init__()
        self.depth, self.weighted = depth, float(weighted)
        self._warned = False

    def acts(self, block: int) -> bool:
        """Whether it does anything in this block."""
        raise NotImplementedError

    def forward(self, seen: Seen) -> Reduced | None:
        """Reduces; None leaves all as it is."""
        raise NotImplementedError

    def at_most_half(self, sequences: Sequences, r: int) -> Lengths:
        """``r`` rows of each sequence, or half of those without prefix if that is less.

        The first time that it is less, a warning says so.
        """
        most = each(sequences.lengths, lambda n: max(n - sequences.prefix, 0) // 2)
        smallest = min(distinct(most), default=r)
        if smallest < r and not self._warned and not torch.compiler.is_compiling():
            self._warned = True
            warnings.warn(
                f"a reduction by r = {r} is clipped to {smallest}, half of the tokens of the "
                "shortest sequence",
                stacklevel=2,
            )
        return each(most, lambda half: min(half, r))


def per_block(r: Any, depth: int) -> tuple[int, ...]:
    """Tokens that each block takes away.

    Args:
        r: a number for all blocks; one per block, 0 for those that the list does not reach; or
            a pair (r, inflection) whose second is a float or negative: 0.0 is constant, -1.0 falls
            linearly from 2 r to 0, 1.0 rises so, as ToMe's `parse_r` does.
        depth: number of blocks.

    Raises:
        ValueError: more numbers than blocks, or numbers that are not whole or negative.
    """
    given: Any = (r, 0.0) if isinstance(r, Integral) else tuple(r)
    number, last = given[0], given[-1]
    if len(given) == 2 and not (isinstance(last, Integral) and int(last) >= 0):
        if not isinstance(number, Integral) or int(number) < 0 or not -1 <= float(last) <= 1:
            raise ValueError(
                f"r as a pair is a whole number and an inflection from -1 to 1, got {given}"
            )
        first = int(int(number) * (1.0 - float(last)))
        step = (2 * int(number) - 2 * first) / max(depth - 1, 1)
        return tuple(int(first + step * i) for i in range(depth))
    if len(given) > depth or any(not isinstance(n, Integral) or n < 0 for n in given):
        raise ValueError(
            f"r is a whole number of at least 0, or one for each of {depth} block(s), got {r!r}"
        )
    return tuple(map(int, given)) + (0,) * (depth - len(given))


def chosen_blocks(blocks: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Blocks that a reducer acts in; by default those at a quarter, half and three quarters (3, 6
    and 9 of 12, as EViT and DynamicViT).

    Raises:
        ValueError: no block of this index.
    """
    if blocks is None:
        return tuple(sorted({depth * i // 4 for i in (1, 2, 3)} - {0}))
    if any(not 0 <= block < depth for block in blocks):
        raise ValueError(f"there are blocks 0 to {depth - 1}, got {tuple(blocks)}")
    return tuple(sorted(set(blocks)))
