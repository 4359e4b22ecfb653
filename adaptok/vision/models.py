"""timm's models with their forward pass on cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.models import checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adaptok.cells import Cells, Groups
from adaptok.patches import level_grid
from adaptok.tokenizers.embeddings import ResizeZeroEmbedding
from adaptok.tokens import TokenSet
from adaptok.vision.blocks import Packing, run_block
from adaptok.vision.constants import constant
from adaptok.vision.embedding import CellPositions
from adaptok.vision.features import VisionTokens
from adaptok.vision.pooling import pool
from adaptok.vision.rope import Rope, rotations
from adaptok.vision.tiling import ImageCells
from adaptok.vision.windows import window_groups


class AptMixin(nn.Module):
    """The forward pass of a timm ViT on packed cells; see `apply_apt`, which builds it.

    Everything else is timm's: parameters, their names, the head, `group_matcher` and so on.
    """

    tiling: ImageCells
    cell_embed: ResizeZeroEmbedding
    cell_positions: CellPositions
    pooling: str
    window: int | None
    global_blocks: tuple[int, ...]
    last_cells: Cells | None
    options: dict[str, Any]
    blocks: Any

    @property
    def config(self) -> dict[str, Any] | None:
        """Plain values from which `adaptok.from_pretrained` builds the model again; None if timm
        has no name of it. Head and size are read now, they may have changed since.
        """
        model: Any = self
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        if name is None:
            return None
        made = {"num_classes": model.num_classes, "global_pool": model.global_pool}
        made |= {"in_chans": model.patch_embed.proj.in_channels}
        made |= {"img_size": list(model.patch_embed.img_size)}
        return {"kind": "vision", "model": name, "made": made, "options": self.options}

    def forward(
        self, x: Float[Tensor, "b c h w"], *, cells: Cells | None = None, **control: Any
    ) -> Any:
        """Logits, or what the head gives without a classifier.

        Args:
            x: normalised images as for the model itself, of any size from the coarsest cell up.
            cells: a tiling to use instead of the model's own.
            control: thresholds or budget for this call.
        """
        return self.forward_head(self.forward_features(x, cells=cells, **control))

    def forward_features(
        self, x: Float[Tensor, "b c h w"], *, cells: Cells | None = None, **control: Any
    ) -> VisionTokens:
        """Features after the last norm; ``.padded()[0]`` is timm's tensor."""
        return self._run(x, cells, (), **control)[0]

    def forward_head(self, x: VisionTokens | Tensor, pre_logits: bool = False) -> Any:
        """Pooling, norm and classifier; a tensor in timm's layout goes the way it goes in timm."""
        if not isinstance(x, VisionTokens):
            return super().forward_head(x, pre_logits=pre_logits)  # pyright: ignore
        if isinstance(self, VisionTransformerDistilled):
            return super().forward_head(x.prefix, pre_logits=pre_logits)  # pyright: ignore
        model: Any = self
        if not model.global_pool and model.attn_pool is None:
            return self._map(x, model.fc_norm, model.head_drop, *[model.head] * (not pre_logits))
        y = model.head_drop(model.fc_norm(pool(self, x, self.pooling)))
        return y if pre_logits else model.head(y)

    def dense_features(
        self, x: Float[Tensor, "b c h w"], *, cells: Cells | None = None, **control: Any
    ) -> Float[Tensor, "b d gh gw"]:
        """Features with each token replicated over its cell, one point per finest cell."""
        return self.forward_features(x, cells=cells, **control).dense()

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        intermediates_only: bool = False,
        *,
        cells: Cells | None = None,
        **control: Any,
    ) -> Any:
        """Dense maps after chosen blocks, as timm's method of that name gives them ("NCHW").

        Args:
            indices: the last so many blocks, or their numbers; default all.
            norm: apply the final norm to each of them.
            intermediates_only: leave the final features out.
        """
        depth = len(self.blocks)
        chosen = range(depth) if indices is None else indices
        chosen = range(depth - chosen, depth) if isinstance(chosen, int) else chosen
        take = tuple(sorted(i % depth for i in chosen))
        final, between = self._run(x, cells, take, **control)
        model: Any = self
        maps = [self._map(y, model.norm) if norm else y for y in between]
        maps = [y.dense() for y in maps]
        return maps if intermediates_only else (final, maps)

    def tokens_after(
        self,
        x: Float[Tensor, "b c h w"],
        block: int,
        *,
        cells: Cells | None = None,
        **control: Any,
    ) -> TokenSet:
        """Cell tokens as block number `block` leaves them, without the final norm."""
        _, between = self._run(x, cells, (block,), **control)
        return between[0].tokens

    def no_weight_decay(self) -> set[str]:
        """timm's set; the parameters of `cell_embed` decay like any other weight."""
        return super().no_weight_decay()  # pyright: ignore

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups for layer decay; `cell_embed` belongs to the stem."""
        matcher = dict(super().group_matcher(coarse))  # pyright: ignore
        matcher["stem"] = matcher["stem"] + r"|cell_embed"
        return matcher

    def timm_state_dict(self) -> dict[str, Tensor]:
        """The state without what timm's model does not know."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("cell_embed.")}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Also takes a state of timm's model as it is; `cell_embed` then stays what it was."""
        if not any(key.startswith("cell_embed.") for key in state_dict):
            own = self.state_dict()
            new = {k: v for k, v in own.items() if k.startswith("cell_embed.")}
            state_dict = {**state_dict, **new}
        return super().load_state_dict(state_dict, strict, assign)

    def new_parameters(self) -> list[nn.Parameter]:
        """What APT adds to the model."""
        return list(self.cell_embed.parameters())

    def _map(self, x: VisionTokens, *layers: Any) -> VisionTokens:
        """Layers that act on each row, on prefix and cell tokens."""
        prefix, features = x.prefix, x.tokens.features
        for layer in layers:
            prefix, features = layer(prefix), layer(features)
        return VisionTokens(prefix, x.tokens.replace(features=features))

    def _run(
        self, x: Tensor, cells: Cells | None, take: tuple[int, ...], **control: Any
    ) -> tuple[VisionTokens, list[VisionTokens]]:
        model: Any = self
        cells = self._cells(x, cells, **control)
        self.last_cells = cells
        grid = level_grid(cells.shape[1:], cells.sizes[-1][1:])
        prefix, rows = self._embed(x, cells)
        b, p = prefix.shape[:2]
        groups = cells.groups(prefix=p) if p else cells.groups()
        rows = groups.gather(torch.cat([prefix.flatten(0, 1), rows]))
        rows = model.norm_pre(model.pos_drop(rows))
        between = []
        for i, packing in enumerate(self._packings(cells, groups, p, (grid[0], grid[1]))):
            block = self.blocks[i]
            if model.grad_checkpointing and torch.is_grad_enabled():
                rows = checkpoint(run_block, block, rows, packing)
            else:
                rows = run_block(block, rows, packing)
            if i in take:
                between.append(_unpack(rows, groups, cells, b, p))
        return _unpack(model.norm(rows), groups, cells, b, p), between

    def _cells(self, x: Tensor, cells: Cells | None, **control: Any) -> Cells:
        if cells is None:
            return self.tiling(x, **control)
        self.tiling.check(x, cells)
        return cells

    def _embed(
        self, x: Tensor, cells: Cells
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "n d"]]:
        """Special tokens and cell tokens with learned positions, in the embedding's dtype."""
        model: Any = self
        features = self.cell_embed(x.unsqueeze(1), cells)
        special = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        special = [token for token in special if token is not None]
        prefix = features.new_zeros(1, 0, features.shape[1])
        if special:
            prefix = torch.cat(special, 1)
        table = model.pos_embed
        if table is not None:
            count = 0 if model.no_embed_class else prefix.shape[1]
            if count:
                prefix = prefix + table[:, :count]
            grid = model.patch_embed.grid_size
            place = self.cell_positions(table[:, count:], tuple(grid), cells, self.training)
            features = features + place
        return prefix.expand(cells.batch_size, -1, -1).to(features.dtype), features

    def _packings(
        self, cells: Cells, groups: Groups, prefix: int, grid: tuple[int, int]
    ) -> list[Packing]:
        """Per block: who attends to whom, and by how much queries and keys turn."""
        model: Any = self
        b, depth, packed = cells.batch_size, len(self.blocks), groups.packed
        images = torch.arange(b, device=cells.device).repeat_interleave(prefix)
        sample = groups.gather(torch.cat([images, cells.sample]))
        ropes: list[Rope | None] = [None] * depth
        if getattr(model, "rope", None) is not None:
            index = patch_index(cells)
            index = groups.gather(torch.cat([index.new_zeros(b * prefix, 2), index]))
            real = groups.gather(_is_cell(b * prefix, cells))
            ropes = [*rotations(model.rope, index, real, grid, depth)]
        windows = packed
        if self.window is not None:
            windows = window_groups(cells, groups, prefix, self.window)
        everywhere = self.global_blocks if self.window is not None else tuple(range(depth))
        return [
            Packing(packed if i in everywhere else windows, sample, b, ropes[i])
            for i in range(depth)
        ]


def patch_index(cells: Cells) -> Float[Tensor, "n 2"]:
    """Centre of each cell in units of patches, the centre of patch (0, 0) at 0.

    Of whole cells: what the border clips from a patch does not move it.
    """
    sizes = constant(tuple(tuple(map(float, size[1:])) for size in cells.sizes), cells.device)
    center = cells.origin[:, 1:] + sizes[cells.level.long()] / 2
    return center / sizes[-1] - 0.5


def _is_cell(special: int, cells: Cells) -> Bool[Tensor, "n 1"]:
    flags = torch.ones(special + len(cells), 1, dtype=torch.bool, device=cells.device)
    flags[:special] = False
    return flags


def _unpack(rows: Tensor, groups: Groups, cells: Cells, b: int, p: int) -> VisionTokens:
    rows = groups.scatter(rows)
    return VisionTokens(rows[: b * p].unflatten(0, (b, p)), TokenSet(rows[b * p :], cells))


class AptVisionTransformer(AptMixin, VisionTransformer):
    """timm's ``VisionTransformer`` on cells."""


class AptDistilled(AptMixin, VisionTransformerDistilled):
    """timm's ``VisionTransformerDistilled`` on cells."""


class AptEva(AptMixin, Eva):
    """timm's ``Eva`` (EVA-02, DINOv3, Perception Encoder ...) on cells."""


CLASSES: dict[type, type[AptMixin]] = {
    VisionTransformer: AptVisionTransformer,
    VisionTransformerDistilled: AptDistilled,
    Eva: AptEva,
}
