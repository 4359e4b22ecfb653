"""Carries a reducer through the blocks of a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from adaptok.cells import Cells, Groups
from adaptok.cells.lengths import Lengths, common, distinct, number, offsets_of, repeated
from adaptok.processors.reducers.base import Reducer, Rotation, Seen
from adaptok.processors.reducers.sequences import Reduction, Sequences
from adaptok.processors.reducers.trail import Trail
from adaptok.tokens import TokenSet

_OUT = 1e-6  # weight of a key that is out but stays as a row: it still has a gradient


class Flow(NamedTuple):
    """State between blocks.

    Attributes:
        mass: what each row stands for, in at least float32.
        power: of the mass, for rows as keys.
        even: whether every row still stands for the same, so that none weighs more as a key.
        first: lengths of the sequences before the first reduction.
        trail: where the original rows are now.
        kept: original row whose place each row has; None before the first reduction.
        gate: see `Reduced`.
    """

    mass: Float[Tensor, " n"]
    power: float
    even: bool
    first: Lengths | None = None
    trail: Trail = Trail()
    kept: Int64[Tensor, " n"] | None = None
    gate: Float[Tensor, " n"] | None = None

    @property
    def counted(self) -> Float[Tensor, " n"]:
        """What each row stands for; 0 for those that are out but stay as rows."""
        return self.mass if self.gate is None else self.mass * self.gate

    @property
    def key_bias(self) -> Float[Tensor, " n"] | None:
        """What is added to the scores of each row as a key."""
        bias = None
        if self.power and not self.even:
            bias = self.power * self.mass.clamp(min=torch.finfo(torch.float32).tiny).log()
        if self.gate is None:
            return bias
        own = (self.gate * (1 - _OUT) + _OUT).log()
        return own if bias is None else bias + own

    def gated(
        self, before: Float[Tensor, "k d"], after: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n d"]:
        """What a block made of its rows; those that are out stay as they were."""
        if self.gate is None:
            return after
        return before + self.gate[:, None].to(after.dtype) * (after - before)

    def unmerged(self, tokens: TokenSet, x: Float[Tensor, "m d"]) -> TokenSet:
        """The original tokens with the features of what they became."""
        return tokens.replace(features=self.trail.unmerge(x))

    def reduced(self, tokens: TokenSet, x: Float[Tensor, "m d"], cells: Cells) -> TokenSet:
        """The tokens that are left, with the payload of those whose place they have, and their mass
        as ``payload["weight"]``.
        """
        payload = dict(tokens.payload)
        if self.kept is not None:
            payload = {name: value[self.kept] for name, value in payload.items()}
            cells = cells.replace(tiling=False)
        return TokenSet(x, cells, tokens.cond, payload={**payload, "weight": self.counted})


class _Gathered(NamedTuple):
    """A rotation of rows that lie group by group."""

    groups: Groups
    rotate: Rotation

    def __call__(self, rows: Float[Tensor, "n h e"]) -> Float[Tensor, "n h e"]:
        return self.groups.gather(self.rotate(self.groups.scatter(rows)))


def begin(reducer: Reducer, tokens: TokenSet, weighted: float) -> Flow:
    """Starts with the weights of the tokens if they have a payload of them, or if the processor
    weighs them (`weighted` is its power), else with 1 each.
    """
    even = not weighted and "weight" not in tokens.payload
    ones = torch.ones_like(tokens.features[:, 0], dtype=torch.float32)
    return Flow(ones if even else tokens.weight, weighted or reducer.weighted, even)


def advance(
    reducer: Reducer,
    flow: Flow,
    block: int,
    x: Float[Tensor, "n d"],
    groups: Groups,
    *,
    observed: Sequence[Tensor] = (),
    rotate: Rotation | None = None,
    key_bias: Float[Tensor, " n"] | None = None,
    prefix: int = 0,
) -> tuple[Float[Tensor, "m d"], Flow, Reduction | None]:
    """Reduces once.

    Args:
        groups: rows that reduce among themselves.
        observed: input of the attention, queries and keys, if the reducer acts between attention
            and MLP.
        rotate: of queries and keys.
        key_bias: what the attention added to the scores of keys.
        prefix: rows at the start of each group that are never reduced.

    Returns:
        x: new rows, group by group.
        flow: the new state.
        found: in terms of the given rows; None if all stay.
    """
    lengths = groups.lengths
    if lengths is None:  # one synchronisation: the shapes of all that follows depend on it
        lengths = tuple(groups.cu_seqlens.diff().tolist())
    sequences = Sequences(lengths, prefix, x.device)
    first = lengths if flow.first is None else flow.first
    given = [groups.gather(each) for each in (x, flow.mass, *observed)]
    seen = Seen(block, given[0], given[1], sequences, first)
    if observed:
        normed, q, k = given[2:]
        seen = seen._replace(normed=normed, q=q, k=k)
    rows = (key_bias, flow.gate)
    bias, gate = (None if each is None else groups.gather(each) for each in rows)
    turn = None if rotate is None else _Gathered(groups, rotate)
    made = reducer(seen._replace(key_bias=bias, rotate=turn, gate=gate))
    flow = flow._replace(first=first)
    if made is None:
        return x, flow, None
    if made.reduction is None:
        rows = (made.mass, made.gate)
        mass, gate = (None if each is None else groups.scatter(each) for each in rows)
        return groups.scatter(made.x), flow._replace(mass=mass, gate=gate), None
    found = made.reduction
    if groups.order is not None:
        kept, target = groups.order[found.kept], groups.scatter(found.target)
        found = Reduction(target, kept, found.lengths)
    flow = flow._replace(
        mass=made.mass,
        even=False,
        trail=flow.trail.after(found, x, reducer.drops),
        kept=found.kept if flow.kept is None else flow.kept[found.kept],
        gate=made.gate,
    )
    return made.x, flow, found


def subset(cells: Cells, groups: Groups, found: Reduction) -> Cells:
    """Cells of the rows that are left.

    They count as the tiling that they are part of: no two of them are at one place, which is all
    that groups ask.
    """
    rows, b = found.kept, cells.batch_size
    whole, old, new = common(cells.lengths), common(groups.lengths), common(found.lengths)
    if whole is not None and old and new is not None:
        lengths = repeated(whole // old * new, b)
    elif groups.order is None and number(found.lengths) == b:
        lengths = found.lengths
    else:  # the groups of a sample differ in length: counting them waits for the device
        counts = torch.zeros(b, dtype=torch.int64, device=cells.device)
        sample = cells.sample[rows]
        lengths = tuple(counts.index_add(0, sample, torch.ones_like(sample)).tolist())
    return cells.replace(
        origin=cells.origin[rows],
        size=cells.size[rows],
        level=cells.level[rows],
        cu_seqlens=offsets_of(lengths, cells.device),
        max_seqlen=max(distinct(lengths), default=0),
        lengths=lengths,
    )
