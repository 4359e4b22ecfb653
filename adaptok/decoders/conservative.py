"""A decoder whose cells exchange what they lose: sums over the domain do not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.decoders.auto import painter
from adaptok.layers.boundary import boundary_codes
from adaptok.layers.mixed import gives_lists
from adaptok.layers.zeroed import zeroed
from adaptok.patches import finest_owner, level_grid, owner_grid
from adaptok.registry import DECODERS, Part
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.utils.arguments import NonNegative, Positive, checked, shown
from adaptok.utils.auxiliary import report_figure
from adaptok.utils.boundary import OPEN, PERIODIC
from adaptok.utils.constants import cached_constant
from adaptok.utils.magnitude import wide


@DECODERS.register("conservative")
class ConservativeDecoder(nn.Module):
    """Cell means change by fluxes between neighbouring cells, and another decoder paints detail of
    zero mean inside each cell.

    A finite-volume update on the tiling: ``vol_i dm_i = sum_j A_ij F_ij`` with F_ij = -F_ji, so
    that the sum of a predicted change is zero to round-off, for any tiling and budget. Each face of
    the finest cells that two cells share carries one flux, a small network of the tokens before and
    behind it. None passes a wall; through an open end what the cell at the end decides, and the
    figure ``outflow`` (`adaptok.utils.auxiliary`) reports how much left per grid point. Without
    boundary codes every end is open. Fluxes begin at zero.

    Args:
        spec: specification of the tokenizer.
        out_channels: channels of the decoded field.
        base: the decoder that paints the detail; "auto" is the one that suits the tokenizer.
        channels: which are conserved, fields by name or channels by number; None: every one. The
            others are those of `base`.
        width: of the network of the fluxes.

    Raises:
        ValueError: cells that are no tiling on grids, or of different extents in time; a base that
            reads the field; a channel that does not exist.
    """

    reads_field = True  # to be called with the boundary codes
    conserves = True
    picked: Tensor

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        out_channels: Positive,
        *,
        base: Part = "auto",
        channels: Sequence[NonNegative | str] | None = None,
        width: Positive = 32,
    ):
        super().__init__()
        if spec.layout is not None or not spec.tiling or not spec.on_grid:
            raise ValueError(
                "decoder 'conservative' balances fluxes over the faces of a tiling, and the cells "
                "of this tokenizer overlap, leave holes or lie off the grids of their levels"
            )
        if len({size[0] for size in spec.sizes}) > 1:
            raise ValueError(
                "decoder 'conservative' balances each frame, and these cells differ in time"
            )
        if any(isinstance(channel, str) for channel in channels or ()):
            raise ValueError(
                f"channels are numbers, got {shown(channels)}; names of fields go with adaptok "
                "train, which knows them"
            )
        chosen = range(out_channels) if channels is None else [int(each) for each in channels]
        if not len(chosen):
            raise ValueError("channels is empty: decoder 'conservative' would conserve nothing")
        if wrong := [channel for channel in chosen if channel >= out_channels]:
            raise ValueError(
                f"conserved channel {wrong[0]} does not exist: the field has {out_channels}"
            )
        self.spec, self.out_channels = spec, out_channels
        self.channels = tuple(sorted(set(chosen)))
        self.register_buffer("picked", torch.tensor(self.channels), persistent=False)
        self.base: Any = painter(base, spec, out_channels)
        axes, count = range(spec.ndim), len(self.channels)
        self.before = nn.ModuleList(nn.Linear(spec.dim, width) for _ in axes)
        self.behind = nn.ModuleList(nn.Linear(spec.dim, width, bias=False) for _ in axes)
        self.flux = nn.ModuleList(zeroed(nn.Linear(width, count)) for _ in axes)
        self.ends = nn.ModuleList(zeroed(nn.Linear(spec.dim, 2 * count)) for _ in axes)

    @gives_lists
    def forward(
        self,
        tokens: TokenSet,
        *,
        field: Any = None,
        scored: Any = None,
        boundary: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b t c *s"]:
        """Decodes a change whose sum is zero in every sample, frame and conserved channel but for
        what passes open ends.

        Args:
            tokens: of a tiling.
            field: not read.
            scored: not read.
            boundary: codes (ndim, 2) or (b, ndim, 2): wall 0, open 1, periodic 2.

        Raises:
            ValueError: cells that are no tiling any more, since rows were selected.
        """
        if not tokens.cells.tiling:
            raise ValueError(f"decoder 'conservative' needs a tiling, got {tokens.cells}")
        cells, detail = tokens.cells, wide(self.base(tokens))
        gained = self._gained(tokens, boundary, detail.dtype)  # (n, k)
        owner = finest_owner(cells)  # (b, t, *s)
        volume = volume_of_frame(cells).to(detail.dtype)
        own = detail.index_select(2, self.picked).movedim(2, -1)
        # Two rounds: what the first leaves is the round-off of a mean, the second one's of that.
        for _ in range(2):
            own = own - _means(own, owner, cells, volume)
        moved = own + (gained / volume[:, None])[owner]
        if len(self.channels) == self.out_channels:
            return moved.movedim(-1, 2)
        return detail.index_copy(2, self.picked, moved.movedim(-1, 2))

    def _gained(
        self, tokens: TokenSet, boundary: Tensor | None, dtype: torch.dtype
    ) -> Float[Tensor, "n k"]:
        """What flows into each cell in a frame."""
        cells, x = tokens.cells, tokens.features
        codes = boundary_codes(boundary, cells.batch_size, cells.ndim, cells.device)
        owner = _owners_inside(cells)  # (b, f, *g)
        gained = torch.zeros(cells.count, len(self.channels), dtype=dtype, device=cells.device)
        left = gained.new_zeros(())
        for axis, (before, behind, flux, ends) in enumerate(
            zip(self.before, self.behind, self.flux, self.ends, strict=True)
        ):
            place = axis + 2
            area = _areas(tuple(cells.shape[1:]), cells.sizes[-1][1:], axis, cells.device)
            area = area.to(dtype)
            other = owner.roll(-1, place)
            wraps, open_ends = codes[:, axis, 0] == PERIODIC, codes[:, axis] == OPEN  # (b?, 2)
            inner = torch.ones(owner.shape[place], dtype=torch.bool, device=cells.device)
            inner[-1] = False
            inner = inner.view(-1, *[1] * (owner.ndim - place - 1))
            face = (owner != other) & (inner | wraps.view(-1, *[1] * (owner.ndim - 1)))
            hidden = nn.functional.gelu(before(x)[owner] + behind(x)[other])
            carried = flux(hidden).to(dtype) * (area * face).unsqueeze(-1)
            gained = gained.index_add(0, owner.flatten(), -carried.flatten(0, -2))
            gained = gained.index_add(0, other.flatten(), carried.flatten(0, -2))
            out = ends(x).to(dtype).unflatten(1, (2, -1))  # (n, 2, k)
            for side, index in enumerate((0, owner.shape[place] - 1)):
                at = owner.select(place, index)
                opened = open_ends[:, side].view(-1, *[1] * (at.ndim - 1))
                lost = out[:, side][at] * (area.select(axis, 0) * opened).unsqueeze(-1)
                gained = gained.index_add(0, at.flatten(), -lost.flatten(0, -2))
                left = left + lost.sum()
        points = owner.shape[0] * owner.shape[1] * product(cells.shape[1:])
        report_figure("outflow", left / (points * len(self.channels)))
        return gained


def volume_of_frame(cells: Cells) -> Int64[Tensor, " n"]:
    """Counts the grid points of each cell in one frame, inside the domain; at least 1."""
    return (cells.volume // cells.size[:, 0]).clamp(min=1)


def _owners_inside(cells: Cells) -> Int64[Tensor, "b f *g"]:
    """Rows of the cells over the finest cells that meet the domain."""
    finest = cells.sizes[-1]
    owner = owner_grid(cells).unflatten(1, level_grid(cells.reach, finest))
    inside = level_grid(tuple(cells.shape), finest)
    return owner[(slice(None), *map(slice, inside))]


@cached_constant(64)
def _areas(
    space: tuple[int, ...], finest: tuple[int, ...], axis: int, device: torch.device
) -> Float[Tensor, "*g"]:
    """Grid points across each face of the finest cells that is normal to an axis, inside the
    domain; of extent 1 along that axis.
    """
    area = torch.ones((1,) * len(space), dtype=torch.float64)
    for k, (n, size) in enumerate(zip(space, finest, strict=True)):
        if k != axis:
            extent = (n - torch.arange(0, n, size)).clamp(max=size).double()
            area = area * extent.view([-1 if j == k else 1 for j in range(len(space))])
    return area.to(device)


def _means(
    x: Float[Tensor, "b t *sk"], owner: Int64[Tensor, "b t *s"], cells: Cells, volume: Tensor
) -> Float[Tensor, "b t *sk"]:
    """Means over each cell and frame, at its points."""
    length = cells.sizes[0][0]
    frame = torch.arange(owner.shape[1], device=owner.device) % length
    place = owner * length + frame.view(-1, *[1] * (owner.ndim - 2))
    sums = x.new_zeros(cells.count * length, x.shape[-1])
    sums = sums.index_add(0, place.flatten(), x.flatten(0, -2))
    return (sums / volume.repeat_interleave(length)[:, None])[place]
