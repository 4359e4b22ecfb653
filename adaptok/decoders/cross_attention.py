"""IAP's cross-attention decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, Count, Groups, inverse_permutation, owners, product, repeated
from adaptok.cells.lengths import Equal, Lengths, common, offsets_of, offsets_tensor
from adaptok.layers.blocks import Attention, Mlp
from adaptok.layers.mixed import gives_lists
from adaptok.layers.positions import pairs_per_axis, rotary
from adaptok.patches import check_levels, level_grid, owner_grid, rows_of_levels, unpatchify
from adaptok.registry import DECODERS
from adaptok.tokenizers.base import per_axis
from adaptok.tokens import TokenizerSpec, TokenSet, check_sizes
from adaptok.utils.arguments import Base, PerAxis, Positive, Ratio, checked


@DECODERS.register("cross_attention")
class CrossAttentionDecoder(nn.Module):
    """A regular latent grid, filled from the covering tokens, attends to all tokens of its sample.

    IAP Sec. 2 and App. C: latent ``V_o = sigmoid(g(o)) * V_pi + b(o)`` with the covering token
    V_pi and learned tables g, b per level and offset o inside the cell (Eq. 4); one
    cross-attention block with rotary positions on both sides; a linear projection of each latent
    to its patch. If cells overlap, the finest covering cell fills the latent.

    Args:
        spec: specification of the tokenizer.
        out_channels: channels of the decoded field.
        latent: use the tables g and b; False copies the token (Table 2: no measurable difference).
        latent_size: grid points per latent, one number or one per space axis; default the finest
            cell.
        window: grid points per space axis of the windows inside which latents attend to tokens, a
            multiple of the coarsest cell; default the whole domain, as in the paper.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over dim (paper: 2).
        rope_base: base of the rotary frequencies.
    """

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        out_channels: Positive,
        *,
        latent: bool = True,
        latent_size: PerAxis | None = None,
        window: PerAxis | None = None,
        heads: Positive = 6,
        mlp_ratio: Ratio = 2.0,
        rope_base: Base = 10000.0,
    ):
        super().__init__()
        self.spec = spec
        if spec.layout is not None:
            raise ValueError(
                "decoder 'cross_attention' reads the covering cell of each latent off the level "
                f"grids, which a {spec.layout.__name__} lacks; use the decoder paired with it"
            )
        if latent or window is not None:
            check_sizes(spec, "decoder 'cross_attention' (but for latent=False without a window)")
        self.sizes = spec.sizes
        frame, *finest = spec.sizes[-1]
        size = finest if latent_size is None else latent_size
        self.latent_size = (frame, *per_axis(size, spec.ndim, "latent_size"))
        self.window = None if window is None else _window(window, spec)
        self.offsets = tuple(level_grid(s, self.latent_size) for s in spec.sizes)
        entries = sum(map(product, self.offsets)) if latent else 0
        self.gate = nn.Parameter(torch.full((entries, spec.dim), 2.0))
        self.shift = nn.Parameter(torch.zeros(entries, spec.dim))
        self.norm_latent, self.norm_tokens = nn.LayerNorm(spec.dim), nn.LayerNorm(spec.dim)
        self.attention = Attention(spec.dim, heads)
        self.head_dim, self.rope_base = spec.dim // heads, rope_base
        pairs_per_axis(spec.ndim, self.head_dim)  # raises here, not in the first forward
        self.norm_mlp, self.mlp = nn.LayerNorm(spec.dim), Mlp(spec.dim, mlp_ratio)
        self.norm_out = nn.LayerNorm(spec.dim)
        self.head = nn.Linear(spec.dim, out_channels * product(self.latent_size))

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Decodes a field of the shape that the cells were made for."""
        cells = tokens.cells
        if not self.spec.rooted:
            check_levels(cells, self.sizes)
        grid = level_grid(cells.shape, self.latent_size)
        point, center = self._latent_grid(cells, grid)  # (q, a), the same for each sample
        owner = self._owner(cells, point)  # (b * q,)
        x = self._latents(tokens, owner, point)
        groups, context_groups = self._groups(cells, grid, x.device)
        center = center.repeat(cells.batch_size, 1)
        x = x + self.attention(
            self.norm_latent(x),
            groups,
            rotary(center, cells.shape, self.head_dim, self.rope_base),
            context=self.norm_tokens(tokens.features),
            context_groups=context_groups,
            context_rotate=rotary(cells.center, cells.shape, self.head_dim, self.rope_base),
        )
        x = x + self.mlp(self.norm_mlp(x))
        patches = self.head(self.norm_out(x)).unflatten(0, (cells.batch_size, -1))
        return unpatchify(patches, cells.shape, self.latent_size)

    def _groups(
        self, cells: Cells, grid: tuple[int, ...], device: torch.device
    ) -> tuple[Groups, Groups]:
        """Groups the latents and the tokens that they see: by sample, or by sample and window."""
        b = cells.batch_size
        if self.window is None:
            count = product(grid)
            lengths = repeated(count, b)
            offsets = offsets_of(lengths, device)
            return Groups(None, None, offsets, count, lengths), cells.groups()
        axes = range(1, len(grid))
        return (
            _window_groups(b, grid, cells.shape, self.latent_size, self.window, device),
            cells.groups(fixed=axes, pitch=self.window),
        )

    def _latent_grid(
        self, cells: Cells, grid: tuple[int, ...]
    ) -> tuple[Int64[Tensor, "q a"], Float[Tensor, "q a"]]:
        """Exact centre of each latent (clipped at the border), and a grid point nearby."""
        points, centers = [], []
        for g, p, n in zip(grid, self.latent_size, cells.shape, strict=True):
            start = torch.arange(g, device=cells.device) * p
            extent = (n - start).clamp(max=p)
            points.append(start + extent // 2)
            centers.append(start + extent / 2)
        return torch.cartesian_prod(*points), torch.cartesian_prod(*centers)

    def _owner(self, cells: Cells, point: Int64[Tensor, "q a"]) -> Int64[Tensor, " bq"]:
        """Row of the finest cell that covers each latent point."""
        finest = cells.sizes[-1] if cells.on_grid else (1,) * len(cells.shape)
        index = torch.zeros_like(point[:, 0])
        for axis, (g, p) in enumerate(zip(level_grid(cells.shape, finest), finest, strict=True)):
            index = index * g + point[:, axis] // p
        if cells.on_grid:
            return owner_grid(cells)[:, index].flatten()
        return owners(cells, rows_of_levels(cells)).flatten(1)[:, index].flatten()

    def _latents(
        self, tokens: TokenSet, owner: Int64[Tensor, " bq"], point: Int64[Tensor, "q a"]
    ) -> Float[Tensor, "bq d"]:
        covered, owner = owner >= 0, owner.clamp(min=0)
        x = tokens.features[owner] * covered[:, None]  # a hole in the cover has no token to copy
        if len(self.gate) == 0:
            return x
        cells, b = tokens.cells, tokens.cells.batch_size
        inside = point.repeat(b, 1) - cells.origin[owner]  # offset in grid points, (b * q, a)
        level = cells.level[owner]
        entry, first = torch.zeros_like(owner), 0
        for number, counts in enumerate(self.offsets):
            index = torch.zeros_like(owner)
            for axis, (count, p) in enumerate(zip(counts, self.latent_size, strict=True)):
                index = index * count + inside[:, axis].clamp(0, count * p - 1) // p
            entry = torch.where(level == number, first + index, entry)
            first += product(counts)
        return self.gate[entry].sigmoid() * x + self.shift[entry]


def _window(window: int | Sequence[int], spec: TokenizerSpec) -> tuple[int, ...]:
    sizes, coarsest = per_axis(window, spec.ndim, "window"), spec.sizes[0][1:]
    if any(w % c for w, c in zip(sizes, coarsest, strict=True)):  # a cell could lie in two windows
        raise ValueError(f"window must be a multiple of the coarsest cell {coarsest}, got {window}")
    return sizes


def _window_groups(
    batch: Count,
    grid: tuple[int, ...],
    shape: tuple[int, ...],
    latent_size: tuple[int, ...],
    window: tuple[int, ...],
    device: torch.device,
) -> Groups:
    """Groups latents by sample and by the window (of space axes) that holds their centre.

    Lengths come from host arithmetic per axis: a window of bands (i, j) holds the product of the
    numbers of latents in band i of the first axis and in band j of the second.
    """
    bands, counts = [[0] * grid[0]], [[grid[0]]]  # time is not divided
    for g, n, p, w in zip(grid[1:], shape[1:], latent_size[1:], window, strict=True):
        centers = [i * p + min(p, n - i * p) / 2 for i in range(g)]
        bands.append([int(center // w) for center in centers])
        counts.append([bands[-1].count(k) for k in range(math.ceil(n / w))])
    own = tuple(math.prod(each) for each in itertools.product(*counts))
    key = torch.zeros((), dtype=torch.int64, device=device)
    for band, count in zip(bands, counts, strict=True):
        key = key[..., None] * len(count) + offsets_tensor(tuple(band), device).long()
    order = key.flatten().argsort(stable=True)
    order = (order + order.shape[0] * torch.arange(batch, device=device)[:, None]).flatten()
    inverse = inverse_permutation(order)
    if not isinstance(batch, torch.SymInt):
        lengths: Lengths = own * batch
        return Groups(order, inverse, offsets_of(lengths, device), max(own), lengths)
    ends = offsets_tensor(tuple(itertools.accumulate(own)), device)
    first = torch.arange(batch, device=device, dtype=torch.int32) * sum(own)
    offsets = torch.nn.functional.pad((first[:, None] + ends).flatten(), (1, 0))
    same = common(own)  # unequal windows of any number of samples are lengths of no kind
    known = None if same is None else Equal(same, batch * len(own))
    return Groups(order, inverse, offsets, max(own), known)
