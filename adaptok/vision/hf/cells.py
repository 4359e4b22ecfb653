"""A tower of transformers on cells: embedding, positions and packed rows for its own layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.dinov3_vit.modeling_dinov3_vit import augment_patches_center_coordinates

from adaptok.cells import Cells, Groups
from adaptok.tokenizers.embeddings import ResizeZeroEmbedding
from adaptok.tokens import TokenSet
from adaptok.vision.blocks import Packing
from adaptok.vision.embedding import CellPositions
from adaptok.vision.features import VisionTokens, area_bias, patches_per_cell
from adaptok.vision.hf.families import Family, weight_dtype
from adaptok.vision.hf.outputs import Ran
from adaptok.vision.tiling import ImageCells
from adaptok.vision.vision_tower import centers
from adaptok.vision.windows import window_groups

Images = Float[Tensor, "b c h w"] | Sequence[Tensor]


class CellRun(nn.Module):
    """Runs a tower on cells; made by `adaptok.vision.apply_apt`.

    Args:
        family: where the tower keeps its pieces.
        tiling: finds the cells.
        embed: embeds them.
        options: arguments of `apply_apt`, in plain values.
        window: see `apply_apt`, as `global_blocks`, `weighted` and `pooling`.

    Attributes:
        last_cells: cells of the last forward pass.
    """

    def __init__(
        self,
        family: Family,
        tiling: ImageCells,
        embed: ResizeZeroEmbedding,
        options: dict[str, Any],
        *,
        window: int | None,
        global_blocks: tuple[int, ...],
        weighted: float,
        pooling: str,
    ):
        super().__init__()
        self.family, self.tiling, self.cell_embed, self.options = family, tiling, embed, options
        self.window, self.global_blocks = window, global_blocks
        self.weighted, self.pooling = weighted, pooling
        self.positions, self.last_cells = CellPositions(), None

    @property
    def controls(self) -> tuple[str, ...]:
        """Names that may change per call."""
        return ("cells", *self.tiling.trees.controls)

    def forward(
        self, tower: Any, images: Images, resample: bool, wanted: set[int], **control: Any
    ) -> Ran:
        """Runs the tower; `wanted` are indices of hidden states."""
        final, between = self.run(tower, images, resample, wanted, **control)
        hidden = [None if y is None else y.padded()[0] for y in between]
        last, mask = final.padded()
        counts = patches_per_cell(final.cells)[:, None]
        ones = counts.new_ones(*final.prefix.shape[:2], 1)
        weight, _ = VisionTokens(ones, final.tokens.replace(features=counts)).padded()
        weight = weight[..., 0]
        bias = self.weighted * weight.log() if self.weighted else None
        return Ran(last, hidden, mask, weight, bias, final.cells)

    def run(
        self,
        tower: Any,
        images: Images,
        resample: bool,
        wanted: set[int],
        cells: Cells | None = None,
        **control: Any,
    ) -> tuple[VisionTokens, list[VisionTokens | None]]:
        """Returns tokens after the last norm, and the hidden states that are wanted."""
        family, given = self.family, cells
        sizes, images = _cropped(images, self.tiling.spec.sizes[-1][1:])
        parts = self.tiling.parts(images, given, **control)
        own = [found for _, found in parts]
        cells = own[0] if len(own) == 1 else Cells.cat(own) if given is None else given
        if not torch.compiler.is_exporting():  # what a trace makes would outlive it
            self.last_cells = cells
        prefix, rows = self._embed(tower, parts, sizes, resample)
        b, p = cells.batch_size, prefix.shape[1]
        prefix = prefix.expand(b, -1, -1)
        groups = cells.groups(prefix=p) if p else cells.groups()
        x = groups.gather(torch.cat([prefix.flatten(0, 1), rows]))[None]
        for name in family.before:
            x = family.piece(tower, name)(x)

        turn = {}
        if hasattr(tower, "rope_embeddings"):
            cos, sin = _rotation(tower.rope_embeddings, cells, groups, b * p)
            turn["position_embeddings"] = (cos.to(weight_dtype(tower)), sin.to(weight_dtype(tower)))
        between = [_unpacked(x, groups, cells, p) if 0 in wanted else None]
        layers = family.piece(tower, family.layers)
        for i, (layer, packing) in enumerate(
            zip(layers, self._packings(cells, groups, p, len(layers)), strict=True)
        ):
            x = layer(x, packing, **turn)
            between.append(_unpacked(x, groups, cells, p) if i + 1 in wanted else None)
        if family.norm is not None:
            x = family.piece(tower, family.norm)(x)
        return _unpacked(x, groups, cells, p), between

    def _embed(
        self,
        tower: Any,
        parts: list[tuple[Tensor, Cells]],
        sizes: list[tuple[int, int]],
        resample: bool,
    ) -> tuple[Float[Tensor, "1 p d"], Float[Tensor, "n d"]]:
        """Embeds special tokens and cells, with learned positions.

        Args:
            sizes: of the first image of each part, before what no patch covers is cut off.
        """
        family, dtype = self.family, weight_dtype(tower)
        found, lead, at = [], None, 0
        for images, cells in parts:
            own = self.cell_embed(images.to(dtype).unsqueeze(1), cells)
            if family.table is not None:
                lead, table, grid, fixed = positions(tower, family, sizes[at], resample)
                place = self.positions if fixed else CellPositions()
                own = own + place(table, grid, cells, self.training)
            found.append(own)
            at += images.shape[0]
        rows = found[0] if len(found) == 1 else torch.cat(found)
        width = rows.shape[1]
        special = [family.piece(tower, name).view(1, -1, width) for name in family.positioned]
        if lead is not None:
            special = [token + lead for token in special]  # one token at most has a position
        special += [family.piece(tower, name).view(1, -1, width) for name in family.special]
        prefix = torch.cat(special, 1) if special else rows.new_zeros(1, 0, width)
        return prefix, rows

    def _packings(self, cells: Cells, groups: Groups, prefix: int, depth: int) -> list[Packing]:
        b = cells.batch_size
        images = torch.arange(b, device=cells.device).repeat_interleave(prefix)
        sample = groups.gather(torch.cat([images, cells.sample]))
        bias = area_bias(cells, groups, prefix, self.weighted)
        local = [groups.packed] * depth
        if self.window is not None:
            windows = window_groups(cells, groups, prefix, self.window)
            local = [local[i] if i in self.global_blocks else windows for i in range(depth)]
        return [Packing(own, sample, b, None, bias) for own in local]


def _unpacked(x: Float[Tensor, "1 n d"], groups: Groups, cells: Cells, prefix: int) -> VisionTokens:
    rows, special = groups.scatter(x[0]), cells.batch_size * prefix
    lead = rows[:special].unflatten(0, (cells.batch_size, prefix))
    return VisionTokens(lead, TokenSet(rows[special:], cells))


def project(
    convolution: nn.Module, shape: tuple[int, ...], patches: Float[Tensor, "m k"]
) -> Float[Tensor, "m d"]:
    """Calls the convolution, whose stride is its kernel, on patches as images of their own."""
    return convolution(patches.unflatten(1, shape)).flatten(1)


def cell_embedding(convolution: Any, spec: Any, resize: str, branch: bool) -> ResizeZeroEmbedding:
    """Builds APT's embedding (Eq. 2) around a trained convolution; only the branch is new."""
    out = ResizeZeroEmbedding(spec.in_channels, spec.dim, spec.sizes, resize=resize, branch=branch)
    del out.patch
    shape = (spec.in_channels, *spec.sizes[-1][1:])
    # not a module: the parameters belong to the model and keep their names there
    out.patch = functools.partial(project, convolution, shape)  # pyright: ignore[reportAttributeAccessIssue]
    weight = convolution.weight
    return out.to(weight.device, weight.dtype)


def positions(
    tower: Any, family: Family, size: tuple[int, int], resample: bool
) -> tuple[Tensor | None, Float[Tensor, "1 g d"], tuple[int, int], bool]:
    """Returns learned positions for an image size as transformers resamples them: those of special
    tokens, those of patches with their grid, and whether they are the table itself.

    Raises:
        ValueError: another size than the model's without `resample`.
    """
    table = family.piece(tower, family.table or "")
    raw = table.weight[None] if isinstance(table, nn.Embedding) else table
    patch = tower.adaptive.tiling.spec.sizes[-1][1:]
    native, lead = image_size(tower), len(family.positioned)
    grid = (size[0] // patch[0], size[1] // patch[1])
    fixed = size == native
    if not fixed:
        if family.resampled == "asked" and not resample:
            raise ValueError(
                f"images of {size} for a model of {native}: give interpolate_pos_encoding=True"
            )
        like = raw[:, :1].expand(1, lead + grid[0] * grid[1], -1)
        raw = tower.embeddings.interpolate_pos_encoding(like, *size)
    return raw[:, :lead] if lead else None, raw[:, lead:], grid, fixed


def image_size(tower: Any) -> tuple[int, int]:
    """Returns height and width that a tower was made for."""
    size = tower.config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _cropped(images: Any, patch: tuple[int, ...]) -> tuple[list[tuple[int, int]], Any]:
    """Cuts off what no patch covers, as a convolution does; returns the sizes before."""
    one = isinstance(images, Tensor)
    batch = [images] if one else images
    if not isinstance(batch, list | tuple) or any(
        not isinstance(x, Tensor) or x.ndim < 2 for x in batch
    ):
        return [(0, 0)], images  # refused by the tiling, with the reason
    sizes = [(x.shape[-2], x.shape[-1]) for x in batch]
    cut = [
        x[..., : h - h % patch[0], : w - w % patch[1]]
        for x, (h, w) in zip(batch, sizes, strict=True)
    ]
    return sizes, cut[0] if one else cut


def _rotation(
    rope: Any, cells: Cells, groups: Groups, special: int
) -> tuple[Float[Tensor, "n e"], Float[Tensor, "n e"]]:
    """DINOv3's rotary angles at the centres of cells; special tokens do not turn."""
    at = 2 * centers(cells) - 1
    if rope.training:
        own = {name: getattr(rope.config, f"pos_embed_{name}") for name in _AUGMENTED}
        at = augment_patches_center_coordinates(at, **own)
    angles = (2 * math.pi * at[:, :, None] * rope.inv_freq).flatten(1).tile(2)
    angles = groups.gather(torch.cat([angles.new_zeros(special, angles.shape[1]), angles]))
    return angles.cos(), angles.sin()


_AUGMENTED = ("shift", "jitter", "rescale")
