"""The convolutional output head of MATEY."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.convolution import conv_transpose_class
from adaptok.layers.mixed import gives_lists
from adaptok.patches import (
    check_levels,
    check_on_grid,
    grid_index,
    level_grid,
    pad_end,
    rows_of_levels,
    scatter_to_grid,
    unpatchify,
)
from adaptok.registry import DECODERS
from adaptok.tokenizers.embeddings.hmlp import ImageNorm, check_hmlp, kernels, place_in_parent
from adaptok.tokens import TokenizerSpec, TokenSet, check_sizes
from adaptok.utils.arguments import Positive, checked


@DECODERS.register("hmlp")
class HmlpDecoder(nn.Module):
    """Three transposed convolutions per level whose strides are their kernels, the first two with
    a norm and GELU (as in MATEY's code).

    The norms take statistics over an image per sample and frame. In a tiling, each level decodes
    the whole domain (a place without a token of the level takes the covering coarser token, or the
    mean of the finer ones) and the output shows each level inside its cells. If refined cells stay
    beside their children, the coarsest level decodes the whole domain, and every finer level
    decodes each refined cell alone and adds it; their number costs one host synchronisation.

    Args:
        spec: specification of the tokenizer, with a dim divisible by 4.
        out_channels: channels of the decoded field.
        version: version of MATEY's code, "current" or "paper": norm and order of the kernels.

    Raises:
        ValueError: a width that is not divisible by 4, an unknown version, or tokens with a
            layout.
    """

    @checked
    def __init__(self, spec: TokenizerSpec, out_channels: Positive, *, version: str = "current"):
        super().__init__()
        self.spec = spec
        check_hmlp(spec.dim, version)
        check_sizes(spec, "decoder 'hmlp'")
        if spec.layout is not None:
            raise ValueError(
                f"decoder 'hmlp' decodes level grids, which a {spec.layout.__name__} lacks; "
                "use the decoder paired with it"
            )
        if not spec.on_grid:
            raise ValueError(
                "decoder 'hmlp' decodes cells on the grids of their levels, which this spec does "
                "not promise (on_grid=True); others go with 'linear' or 'boxes'"
            )
        channels = out_channels * spec.sizes[0][0]
        self.out_channels, self.tiling, self.sizes = out_channels, spec.tiling, spec.sizes
        self.levels = nn.ModuleList(
            _head(spec.dim, channels, size[1:], version) for size in spec.sizes
        )

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Decodes a field of the shape that the cells were made for."""
        check_on_grid(tokens.cells, "decoder 'hmlp'")
        check_levels(tokens.cells, self.sizes)
        frames = self._splice(tokens) if self.tiling else self._add(tokens)
        sizes = {"b": tokens.cells.batch_size, "c": self.out_channels}
        return rearrange(frames, "(b f) (s c) ... -> b (f s) c ...", **sizes)

    def _splice(self, tokens: TokenSet) -> Float[Tensor, "bf c *s"]:
        cells = tokens.cells
        domain = (..., *map(slice, cells.shape[1:]))  # crops an image of whole cells
        own = [level_image(tokens, level) for level in range(len(cells.sizes))]
        field = None
        for level, (head, image) in enumerate(zip(self.levels, filled(own, cells), strict=True)):
            decoded = head(image.movedim(-1, 1))[domain]
            shown = _expand(own[level][1], cells.sizes[level][1:], cells.shape[1:])
            decoded = torch.where(shown[:, None], decoded, 0)
            field = decoded if field is None else field + decoded
        assert field is not None
        return field

    def _add(self, tokens: TokenSet) -> Float[Tensor, "bf c *s"]:
        cells = tokens.cells
        frames, *_ = level_grid(cells.shape, cells.sizes[0])
        coarse, _ = level_image(tokens, 0)
        domain = (..., *map(slice, cells.shape[1:]))  # crops an image of whole cells
        field = self.levels[0](coarse.movedim(-1, 1))[domain]
        for level, own in list(enumerate(rows_of_levels(cells)))[1:]:
            own = own[own < cells.count]
            which, crop = grid_index(cells, level - 1)[own].unique(return_inverse=True)
            pairs = zip(cells.sizes[level - 1][1:], cells.sizes[level][1:], strict=True)
            grid = [coarser // finer for coarser, finer in pairs]
            image = tokens.features.new_zeros(len(which), product(grid), tokens.features.shape[1])
            image = image.index_put(
                (crop, place_in_parent(cells, level)[own]), tokens.features[own]
            )
            patches = self.levels[level](image.unflatten(1, grid).movedim(-1, 1)).flatten(1)
            size = (1, *cells.sizes[level - 1][1:])
            count = product(level_grid((1, *cells.shape[1:]), size)) * field.shape[0]
            canvas = patches.new_zeros(count, patches.shape[1]).index_copy(0, which, patches)
            canvas = canvas.unflatten(0, (cells.batch_size, -1))
            added = unpatchify(canvas, (frames, *cells.shape[1:]), size)
            field = field + added.flatten(0, 1)
        return field


def level_image(
    tokens: TokenSet, level: int
) -> tuple[Float[Tensor, "bf *g d"], Bool[Tensor, "bf *g"]]:
    """Features of a level on its grid, frame by frame and 0 at places without a token; and which
    places have one.
    """
    cells = tokens.cells
    own = rows_of_levels(cells)[level]
    features = tokens.features[own.clamp(max=cells.count - 1)]
    image = scatter_to_grid(features, cells, level, own)
    taken = scatter_to_grid(torch.ones_like(own[:, None], dtype=torch.bool), cells, level, own)
    return image.flatten(0, 1), taken.flatten(0, 1)[..., 0]


def filled(own: Sequence[tuple[Tensor, Tensor]], cells: Cells) -> list[Float[Tensor, "bf *g d"]]:
    """Fills the holes of level images: with the covering coarser token, else the mean of the finer
    ones.
    """
    ratios = [
        [coarse // fine for coarse, fine in zip(c[1:], f[1:], strict=True)]
        for c, f in itertools.pairwise(cells.sizes)
    ]
    below = [own[-1]]
    for (image, taken), ratio in zip(reversed(own[:-1]), reversed(ratios), strict=True):
        mean, any_below = _block_mean(*below[0], ratio)
        below.insert(0, (torch.where(taken[..., None], image, mean), taken | any_below))
    out, covered = [below[0][0]], own[0]
    for level, ratio in enumerate(ratios):
        image, taken = own[level + 1]
        above, has_above = (_expand(x, ratio, taken.shape[1:]) for x in covered)
        out.append(torch.where(has_above[..., None], above, below[level + 1][0]))
        covered = torch.where(taken[..., None], image, above), taken | has_above
    return out


def _expand(x: Tensor, ratio: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Repeats each value over a block of `ratio` points, cut to the grid."""
    for axis, (r, n) in enumerate(zip(ratio, grid, strict=True)):
        x = x.repeat_interleave(r, dim=axis + 1).narrow(axis + 1, 0, n)
    return x


def _block_mean(image: Tensor, taken: Tensor, ratio: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean over the taken points of each block, and whether it has any."""
    sums = pad_end(image * taken[..., None], (*ratio, 1))
    counts = pad_end(taken[..., None].to(image.dtype), (*ratio, 1))
    for axis, r in enumerate(ratio):
        sums, counts = (x.unflatten(axis + 1, (-1, r)).sum(axis + 2) for x in (sums, counts))
    return sums / counts.clamp(min=1), counts[..., 0] > 0


def _head(dim: int, channels: int, size: Sequence[int], version: str) -> nn.Sequential:
    conv = conv_transpose_class(len(size))
    first, second, last = reversed(kernels(size, version))
    return nn.Sequential(
        conv(dim, dim // 4, first, first, bias=False),
        ImageNorm(dim // 4, version),
        nn.GELU(),
        conv(dim // 4, dim // 4, second, second, bias=False),
        ImageNorm(dim // 4, version),
        nn.GELU(),
        conv(dim // 4, channels, last, last),
    )
