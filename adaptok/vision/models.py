"""timm's models with their forward pass on cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from timm.models import checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adaptok.cells import Cells, Count, Groups, product
from adaptok.patches import level_grid
from adaptok.tokenizers.base import per_axis
from adaptok.tokenizers.embeddings import ResizeZeroEmbedding
from adaptok.tokens import TokenSet
from adaptok.utils.arguments import PositiveShare
from adaptok.utils.constants import constant
from adaptok.utils.precision import check_alike
from adaptok.vision.blocks import Packing, run_block
from adaptok.vision.cut_images import CutImages, separated
from adaptok.vision.embedding import CellPositions
from adaptok.vision.features import VisionTokens, area_bias, tokens_per_level
from adaptok.vision.intermediates import arranged, check_options, chosen_blocks
from adaptok.vision.padding import unpadded
from adaptok.vision.pooling import pool
from adaptok.vision.recording import check_rebuilt, config_of
from adaptok.vision.rope import Grid, Rope, rotations
from adaptok.vision.thresholds import calibrated
from adaptok.vision.tiling import ImageCells
from adaptok.vision.windows import check_reach, window_groups

# A batch, a list of (c, h, w) of any sizes, or either with its cells.
Images = Float[Tensor, "b c h w"] | Sequence[Tensor] | CutImages


class AptMixin(nn.Module):
    """Runs a timm ViT on packed cells; built by `apply_apt`.

    Everything but the forward pass is timm's: parameters, their names, the head and so on.
    """

    tiling: ImageCells
    cell_embed: ResizeZeroEmbedding
    cell_positions: CellPositions
    pooling: str
    weighted: float
    window: int | None
    global_blocks: tuple[int, ...]
    last_cells: Cells | None
    options: dict[str, Any]
    model_args: dict[str, Any]
    blocks: Any

    @property
    def config(self) -> dict[str, Any] | None:
        """Plain values from which `adaptok.from_pretrained` builds the model again; None if timm
        has no name for it. Head and size are the current ones.
        """
        return config_of(self, self.options)

    def check_rebuilt(self) -> None:
        """Raises ``ValueError`` if `config` does not build this model, but for its values."""
        check_rebuilt(self)

    def forward(self, x: Images, *, cells: Cells | None = None, **control: Any) -> Any:
        """Returns logits, or features if the head has no classifier.

        Args:
            x: images normalised as for timm's model, no smaller than the coarsest cell; a batch,
                or a list of (c, h, w) of any sizes, which run as one packed batch (NaViT: Dehghani
                et al., arXiv 2307.06304), each as it would alone; or what `Tokenize` made of them,
                which brings its cells.
            cells: a tiling to use instead of the one that the model would make.
            control: thresholds or budget for this call; a budget also one per image.
        """
        return self.forward_head(self.forward_features(x, cells=cells, **control))

    def forward_features(
        self, x: Images, *, cells: Cells | None = None, **control: Any
    ) -> VisionTokens:
        """Returns features after the last norm; ``.padded()[0]`` is timm's tensor."""
        return self._run(x, cells, (), **control)[0]

    def forward_head(self, x: VisionTokens | Tensor, pre_logits: bool = False) -> Any:
        """Applies pooling, norm and classifier; a tensor in timm's layout is handled by timm."""
        if not isinstance(x, VisionTokens):
            return super().forward_head(x, pre_logits=pre_logits)  # pyright: ignore
        if isinstance(self, VisionTransformerDistilled):
            return super().forward_head(x.prefix, pre_logits=pre_logits)  # pyright: ignore
        model: Any = self
        if not model.global_pool and model.attn_pool is None:
            return self._map(x, model.fc_norm, model.head_drop, *[model.head] * (not pre_logits))
        pooled = pool(self, x, self.pooling, self.weighted)
        y = model.head_drop(model.fc_norm(pooled))
        return y if pre_logits else model.head(y)

    def dense_features(self, x: Images, *, cells: Cells | None = None, **control: Any) -> Any:
        """Replicates the feature of each token over its cell, one point per finest cell.

        Returns:
            maps: (b, d, gh, gw), or for a list of images a list of (d, gh, gw).
        """
        x, cells = separated(x, cells, control)
        return _maps(self.forward_features(x, cells=cells, **control), x)

    def forward_intermediates(
        self,
        x: Images,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: None = None,
        is_causal: bool = False,
        *,
        cells: Cells | None = None,
        **control: Any,
    ) -> Any:
        """Returns dense maps after chosen blocks, with the arguments of timm's method; for a list
        of images each is a list.

        Args:
            indices: how many of the last blocks, or their indices; default all.
            return_prefix_tokens: pair each map with the class and register tokens (b, p, d).
            norm: apply the final norm to each of them.
            stop_early: run no block after the last chosen one; the final features are then of it.
            output_fmt: "NCHW" for maps (b, d, gh, gw), "NLC" for their points (b, gh * gw, d).
            intermediates_only: leave out the final features.
            output_dict: return a dictionary with timm's keys.
            attn_mask: refused, as is `is_causal`: cells have no raster order.

        Raises:
            ValueError: blocks that do not exist, another format, or a mask.
        """
        check_options(output_fmt, attn_mask, is_causal)
        x, cells = separated(x, cells, control)
        take = chosen_blocks(indices, len(self.blocks))
        stop = take[-1] + 1 if stop_early else None
        final, between = self._run(x, cells, take, stop, **control)
        model: Any = self
        between = [self._map(y, model.norm) for y in between] if norm else between
        return arranged(
            final,
            [_maps(y, x) for y in between],
            [y.prefix for y in between],
            return_prefix_tokens=return_prefix_tokens,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
        )

    def tokens_after(
        self, x: Images, block: int, *, cells: Cells | None = None, **control: Any
    ) -> TokenSet:
        """Returns the cell tokens after block number `block`, without the final norm.

        Raises:
            ValueError: there is no such block.
        """
        take = chosen_blocks((block,), len(self.blocks))
        _, between = self._run(x, cells, take, take[0] + 1, **control)
        return between[0].tokens

    def calibrate(
        self,
        images: Images | Iterable[Any],
        tokens: float | None = None,
        *,
        share: PositiveShare | None = None,
    ) -> Any:
        """Finds the thresholds that give images a mean number of tokens; the model stays as it is.

        ``fast(images, thresholds=fast.calibrate(images, share=0.5))`` keeps half of the patches.
        The ratios of the model's thresholds, which have to be positive, are kept.

        Args:
            images: normalised as for the model: a batch, a list of images (c, h, w), or a loader of
                either, whose items may have labels behind the images, or be mappings with
                "pixel_values" or "image".
            tokens: mean number per image, without class and register tokens; the result is the
                closest from below.
            share: of the patches, in place of `tokens`.

        Returns:
            thresholds (or gamma, or price), for a call or for another `apply_apt`.

        Raises:
            ValueError: not one of `tokens` and `share`; no images; a number out of reach; a marking
                other than by thresholds, maximum or price.
        """
        return calibrated(self.tiling, images, tokens, share)

    def unpad(
        self, images: Float[Tensor, "b c h w"], sizes: Sequence[Sequence[int]]
    ) -> list[Float[Tensor, "c _ _"]]:
        """Cuts images that were padded to one batch to their real parts, so that padding costs no
        token: the list runs as one packed batch, and `pad_maps` makes maps of equal size again.

        No real pixel is cut, and no image below the coarsest cell. Positions are those of the image
        alone, not of the batch.

        Args:
            images: padded below and to the right.
            sizes: (height, width) of each real part, such as torchvision's ``image_sizes``.

        Raises:
            ValueError: another number of sizes, or one that the batch cannot hold.
        """
        coarsest, *_, patch = (size[1:] for size in self.tiling.spec.sizes)
        return unpadded(images, sizes, patch, coarsest)

    def tokens_per_level(self) -> dict[tuple[int, int], Int64[Tensor, " b"]]:
        """Counts the tokens of each image of the last call by the size of their cells in pixels,
        the smallest first, without class and register tokens. Zeros show a threshold too low.

        Raises:
            ValueError: there was no call yet.
        """
        if self.last_cells is None:
            raise ValueError("tokens_per_level is of the last call, and there was none")
        counts = tokens_per_level(self.last_cells)
        none = torch.zeros_like(next(iter(counts.values())))
        return {(h, w): counts.get((h, w), none) for _, h, w in reversed(self.tiling.spec.sizes)}

    def token_range(self, height: int, width: int) -> tuple[int, int]:
        """Returns the least and the most tokens that an image can have: cells that cross its border
        always split. Class and register tokens are not counted.

        Args:
            height: of the image in pixels.
            width: of the image in pixels.
        """
        space = tuple(self.tiling.whole(torch.empty(height, width, device="meta")).shape)
        most = product(level_grid(space, self.tiling.spec.sizes[-1][1:]))
        return self.tiling.trees.tree(space).counts().leaves, most

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head, as in timm.

        Raises:
            ValueError: it would read a class token that windows keep from seeing the image.
        """
        check_reach(self, self.global_pool if global_pool is None else global_pool)  # pyright: ignore
        super().reset_classifier(num_classes, global_pool)  # pyright: ignore

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Sets the size of the images, as in timm.

        Raises:
            ValueError: another size of patches, from which the cells were derived.
        """
        embed: Any = self.patch_embed
        if patch_size is not None and per_axis(patch_size, 2, "patch_size") != embed.patch_size:
            raise ValueError(
                f"the cells are built of patches of {embed.patch_size}, and set_input_size cannot "
                f"make them {patch_size}: change the timm model, and apply_apt to it again"
            )
        super().set_input_size(img_size)  # pyright: ignore

    def timm_state_dict(self) -> dict[str, Tensor]:
        """Returns the state that timm's model can load: all but `cell_embed`."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("cell_embed.")}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads a state of this model, or of timm's, which leaves `cell_embed` unchanged."""
        if not any(key.startswith("cell_embed.") for key in state_dict):
            new = self.cell_embed.state_dict(prefix="cell_embed.")
            state_dict = {**state_dict, **new}
        return super().load_state_dict(state_dict, strict, assign)

    def new_parameters(self) -> list[nn.Parameter]:
        """Lists the parameters that APT adds to the model."""
        return list(self.cell_embed.parameters())

    def _map(self, x: VisionTokens, *layers: Any) -> VisionTokens:
        """Applies layers that act on each row to prefix and cell tokens."""
        prefix, features = x.prefix, x.tokens.features
        for layer in layers:
            prefix, features = layer(prefix), layer(features)
        return VisionTokens(prefix, x.tokens.replace(features=features))

    def _run(
        self,
        x: Images,
        given: Cells | None,
        take: tuple[int, ...],
        stop: int | None = None,
        **control: Any,
    ) -> tuple[VisionTokens, list[VisionTokens]]:
        model: Any = self
        images, given = separated(x, given, control)
        parts = self.tiling.parts(images, given, **control)
        check_alike(parts[0][0], model.patch_embed, "batch of images")
        own = [cells for _, cells in parts]
        cells = own[0] if len(own) == 1 else Cells.cat(own) if given is None else given
        if not torch.compiler.is_exporting():  # what a trace makes would outlive it
            self.last_cells = cells
        prefix, rows = self._embed(parts, cells.batch_size)
        b, p = prefix.shape[:2]
        groups = cells.groups(prefix=p) if p else cells.groups()
        rows = groups.gather(torch.cat([prefix.flatten(0, 1), rows]))
        if model.pos_embed is not None or isinstance(model, Eva):  # as timm
            rows = model.pos_drop(rows)
        rows = model.norm_pre(rows)[None]  # a batch of one, as blocks expect
        between = []
        packings = self._packings(cells, groups, p)[:stop]
        for i, (block, packing) in enumerate(zip(self.blocks, packings, strict=False)):
            if model.grad_checkpointing and torch.is_grad_enabled():
                rows = checkpoint(run_block, block, rows, packing)
            else:
                rows = run_block(block, rows, packing)
            if i in take:
                between.append(_unpack(rows[0], groups, cells, b, p))
        return _unpack(model.norm(rows)[0], groups, cells, b, p), between

    def _embed(
        self, parts: list[tuple[Tensor, Cells]], batch: Count
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "n d"]]:
        """Embeds special tokens and cells, with learned positions; under autocast their dtypes may
        differ.
        """
        model: Any = self
        features = _joined([self.cell_embed(x.unsqueeze(1), cells) for x, cells in parts])
        special = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        special = [token for token in special if token is not None]
        prefix = torch.cat(special, 1) if special else features.new_zeros(1, 0, features.shape[1])
        table = model.pos_embed
        if table is not None:
            count = 0 if model.no_embed_class else prefix.shape[1]
            if count:
                prefix = prefix + table[:, :count]
            grid = tuple(model.patch_embed.grid_size)
            own, train = table[:, count:], self.training
            places = [self.cell_positions(own, grid, cells, train) for _, cells in parts]
            features = features + _joined(places)
        return prefix.expand(batch, -1, -1), features

    def _packings(self, cells: Cells, groups: Groups, prefix: int) -> list[Packing]:
        """Says for each block which rows attend to which, and how queries and keys rotate."""
        model: Any = self
        b, depth, packed = cells.batch_size, len(self.blocks), groups.packed
        images = torch.arange(b, device=cells.device).repeat_interleave(prefix)
        sample = groups.gather(torch.cat([images, cells.sample]))
        ropes: list[Rope | None] = [None] * depth
        if getattr(model, "rope", None) is not None:
            index = patch_index(cells)
            index = groups.gather(torch.cat([index.new_zeros(b * prefix, 2), index]))
            rows = torch.arange(b * prefix + cells.count, device=cells.device)
            real = groups.gather((rows >= b * prefix)[:, None])  # special tokens come first
            ropes = [*rotations(model.rope, index, real, patch_grid(cells, sample), depth)]
        local = [packed] * depth
        if self.window is not None:
            windows = window_groups(cells, groups, prefix, self.window)
            local = [packed if i in self.global_blocks else windows for i in range(depth)]
        bias = area_bias(cells, groups, prefix, self.weighted)
        pairs = zip(local, ropes, strict=True)
        return [Packing(own, sample, b, rope, bias) for own, rope in pairs]


def patch_index(cells: Cells) -> Float[Tensor, "n 2"]:
    """Returns the centre of each cell in units of patches, the centre of patch (0, 0) at 0.

    The border does not move a centre: cells count as whole.
    """
    sizes = constant(tuple(tuple(map(float, size[1:])) for size in cells.sizes), cells.device)
    center = cells.origin[:, 1:] + sizes[cells.level.long()] / 2
    return center / sizes[-1] - 0.5


def patch_grid(cells: Cells, sample: Int64[Tensor, " m"]) -> Grid:
    """Returns the patches per axis of the images, of each row's image if they differ in size."""
    size = cells.sizes[-1][1:]
    if cells.mixed is None:
        height, width = level_grid(cells.shape[1:], size)
        return height, width
    grids = torch.tensor([level_grid(shape[1:], size) for shape in cells.shapes])
    height, width = grids.to(cells.device)[sample].float().unbind(1)
    return height, width


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _maps(features: VisionTokens, images: Images) -> Any:
    """Dense maps: a list of them for a list of images."""
    maps = features.dense()
    return maps if isinstance(images, Tensor) else list(maps)


def _unpack(rows: Tensor, groups: Groups, cells: Cells, b: Count, p: int) -> VisionTokens:
    rows = groups.scatter(rows)
    return VisionTokens(rows[: b * p].unflatten(0, (b, p)), TokenSet(rows[b * p :], cells))


class AptVisionTransformer(AptMixin, VisionTransformer):
    """Runs timm's ``VisionTransformer`` on cells."""


class AptDistilled(AptMixin, VisionTransformerDistilled):
    """Runs timm's ``VisionTransformerDistilled`` on cells."""


class AptEva(AptMixin, Eva):
    """Runs timm's ``Eva`` (EVA-02, DINOv3, Perception Encoder ...) on cells."""


CLASSES: dict[type, type[AptMixin]] = {
    VisionTransformer: AptVisionTransformer,
    VisionTransformerDistilled: AptDistilled,
    Eva: AptEva,
}
