"""`apply_reducer`: a timm vision transformer with fewer tokens from block to block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.attention import Attention, AttentionRope
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models import checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from adaptok.cells import Count, Groups, repeated
from adaptok.cells.lengths import distinct, offsets_of
from adaptok.models.recording import recorded
from adaptok.processors.reducers import Flow, Reducer, advance
from adaptok.registry import REDUCERS
from adaptok.utils.precision import check_alike
from adaptok.vision.blocks import Packing, pack_modules, run_of
from adaptok.vision.intermediates import arranged, check_options, chosen_blocks
from adaptok.vision.pooling import PoolPacking, pack_pool
from adaptok.vision.recording import check_model_args, check_rebuilt, config_of
from adaptok.vision.rope import Rope, rotations, unsupported_rope
from adaptok.vision.support import replaced_forward, why_no_plain_model


class Step:
    """What one block asks of the reducer: the state before it, and after it."""

    def __init__(self, reducer: Reducer, block: int, flow: Flow, prefix: int):
        self.reducer, self.block, self.before, self.prefix = reducer, block, flow, prefix
        self.flow = flow

    def __call__(self, x: Tensor, packing: Packing) -> tuple[Tensor, Packing]:
        """Reduces the rows, and says which of them attend to each other from now on."""
        given: Any = {"observed": packing.observed or (), "rotate": packing.rope}
        given |= {"prefix": self.prefix, "key_bias": packing.key_bias}
        x, self.flow, found = advance(
            self.reducer, self.before, self.block, x, packing.groups, **given
        )
        bias = self.flow.key_bias if self.reducer.place == "before" else None  # else none attends
        if found is None:
            return x, packing._replace(key_bias=bias)
        groups = _groups(packing.samples, distinct(found.lengths)[0], x.device)
        rope = packing.rope and _rows_of(packing.rope, found.kept)
        sample = packing.sample[found.kept]
        return x, packing._replace(groups=groups, sample=sample, rope=rope, key_bias=bias)


class ReducedBlock(nn.Module):
    """Runs a block of timm's on (b, n, d), reduced between attention and MLP."""

    def forward(self, x: Float[Tensor, "b n d"], packing: Packing) -> Float[Tensor, "b m d"]:
        """Runs it; `packing` describes its rows, one image after the other."""
        if packing.between is not None:
            packing = packing._replace(observed=[])  # a checkpoint runs the block twice
        return run_of(self)(self, x.flatten(0, 1), packing).unflatten(0, (x.shape[0], -1))


class _Block(ReducedBlock, Block): ...


class _ResPostBlock(ReducedBlock, ResPostBlock): ...


class _EvaBlock(ReducedBlock, EvaBlock): ...


class _EvaBlockPostNorm(ReducedBlock, EvaBlockPostNorm): ...


class ReducedMixin(nn.Module):
    """Runs a timm ViT with a reducer; built by `apply_reducer`.

    Attributes:
        last: state after the last forward pass, without gradients: what each token stands for and
            where each patch went.
        last_shape: images and tokens of each after that pass.
    """

    reducer: Reducer
    last: Flow | None
    last_shape: tuple[int, int] | None
    options: dict[str, Any]
    model_args: dict[str, Any]

    @property
    def config(self) -> dict[str, Any] | None:
        """Plain values from which `adaptok.from_pretrained` builds the model again; None if timm
        has no name for it.
        """
        return config_of(self, self.options)

    def check_rebuilt(self) -> None:
        """Raises ``ValueError`` if `config` does not build this model, but for its values."""
        check_rebuilt(self)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Any:
        """Returns logits, or features if the head has no classifier."""
        features, flow, _ = self._run(x)
        return self.forward_head(features, flow=flow)

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m d"]:
        """Returns the tokens that are left, after the last norm; prefix tokens come first."""
        return self._run(x)[0]

    def forward_head(
        self,
        x: Float[Tensor, "b m d"],
        pre_logits: bool = False,
        *,
        flow: Flow | None = None,
    ) -> Any:
        """Applies pooling, norm and classifier.

        Args:
            flow: says what each token stands for, and which are out: for pooling; by default the
                state of the last forward pass, if it had as many images and tokens.
        """
        model: Any = self
        flow = self.last if flow is None and self._is_last(x) else flow
        by_token = model.attn_pool is None and model.global_pool not in ("avg", "avgmax", "max")
        if flow is None or by_token or isinstance(self, VisionTransformerDistilled):
            return super().forward_head(x, pre_logits=pre_logits)  # pyright: ignore
        y = model.head_drop(model.fc_norm(self._pool(x, flow)))
        return y if pre_logits else model.head(y)

    def unmerge(self, features: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """Gives each patch the feature of the token that it became part of in the last forward
        pass; prefix tokens come first. A dropped patch gets the one that it was dropped with.

        Raises:
            ValueError: features of another number of images or tokens.
        """
        if self.last is None or not self._is_last(features):
            images, tokens = self.last_shape or (0, 0)
            known = f"{images} x {tokens} tokens" if images else "none yet"
            raise ValueError(
                f"unmerge takes the features of the last forward pass ({known}), got "
                f"{tuple(features.shape)}"
            )
        return self._unmerged(features, self.last)

    def dense_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d gh gw"]:
        """Features of all patches, after the last norm; see `unmerge`."""
        features, flow, _ = self._run(x)
        return self._map(self._unmerged(features, flow), x)

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: None = None,
        is_causal: bool = False,
    ) -> Any:
        """Returns dense maps after chosen blocks, with the arguments of timm's method.

        Args:
            indices: how many of the last blocks, or their indices; default all.
            return_prefix_tokens: pair each map with the class and register tokens (b, p, d).
            norm: apply the final norm to each of them.
            stop_early: run no block after the last chosen one; the final features are then of it.
            output_fmt: "NCHW" for maps (b, d, gh, gw), "NLC" for their points (b, gh * gw, d).
            intermediates_only: leave out the final features.
            output_dict: return a dictionary with timm's keys.
            attn_mask: refused, as is `is_causal`: tokens that merge have no raster order.

        Raises:
            ValueError: blocks that do not exist, another format, or a mask.
        """
        check_options(output_fmt, attn_mask, is_causal)
        model: Any = self
        take, special = chosen_blocks(indices, len(model.blocks)), model.num_prefix_tokens
        final, _, between = self._run(x, take, take[-1] + 1 if stop_early else None)
        between = [model.norm(y) for y in between] if norm else between
        return arranged(
            final,
            [self._map(y, x) for y in between],
            [y[:, :special] for y in between],
            return_prefix_tokens=return_prefix_tokens,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
        )

    def _run(
        self, x: Tensor, take: Sequence[int] = (), stop: int | None = None
    ) -> tuple[Tensor, Flow, list[Tensor]]:
        model: Any = self
        check_alike(x, model.patch_embed, "batch of images")
        size = x.shape[-2:]
        x = model.patch_embed(x)
        x = model._pos_embed(x)
        x = x[0] if isinstance(x, tuple) else x  # Eva's comes with timm's rotation
        x = model.norm_pre(x)
        ropes, prefix = self._ropes(x, size), model.num_prefix_tokens
        x, flow, states = through(
            self.reducer, model.blocks[:stop], x, ropes[:stop], prefix, self._call, take
        )
        between = [self._unmerged(*state, norm=False) for state in states]
        if not torch.compiler.is_exporting():  # what a trace makes would outlive it
            self.last, self.last_shape = detached(flow), (x.shape[0], x.shape[1])
        return model.norm(x), flow, between

    def _is_last(self, features: Tensor) -> bool:
        return self.last_shape == tuple(features.shape[:2])

    def _call(self, block: Any, x: Tensor, packing: Packing) -> Tensor:
        model: Any = self
        if model.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, packing)
        return block(x, packing)

    def _unmerged(self, features: Tensor, flow: Flow, norm: bool = True) -> Tensor:
        trail, model = flow.trail, self
        if norm and trail.last is not None:
            trail = trail._replace(last=model.norm(trail.last))  # pyright: ignore
        return trail.unmerge(features.flatten(0, 1)).unflatten(0, (features.shape[0], -1))

    def _map(self, x: Tensor, images: Tensor) -> Tensor:
        model: Any = self
        grid = model.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
        return x[:, model.num_prefix_tokens :].unflatten(1, tuple(grid)).permute(0, 3, 1, 2)

    def _ropes(self, x: Tensor, size: Sequence[int]) -> list[Rope | None]:
        model: Any = self
        depth = len(model.blocks)
        if getattr(model, "rope", None) is None:
            return [None] * depth
        height, width = model.patch_embed.dynamic_feat_size(tuple(size))
        axes = (torch.arange(n, device=x.device, dtype=torch.float32) for n in (height, width))
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
        special = model.num_prefix_tokens
        index = torch.cat([index.new_zeros(special, 2), index]).repeat(x.shape[0], 1)
        real = (torch.arange(x.shape[1], device=x.device) >= special).repeat(x.shape[0])[:, None]
        return [*rotations(model.rope, index, real, (height, width), depth)]

    def _pool(self, x: Float[Tensor, "b m d"], flow: Flow) -> Float[Tensor, "b d"]:
        """timm's pooling, of the patches that the tokens stand for."""
        model: Any = self
        with_prefix = getattr(model, "pool_include_prefix", model.attn_pool is not None)
        skip = 0 if with_prefix else model.num_prefix_tokens
        x, whole = x[:, skip:], x.shape[:2]
        if model.attn_pool is not None:
            bias = flow.key_bias
            bias = None if bias is None else bias.view(whole)[:, skip:].flatten()
            b, n = x.shape[:2]
            packing = PoolPacking(_groups(b, n, x.device), b, bias)
            return model.attn_pool(x.flatten(0, 1)[None], attn_mask=packing)
        own = flow.counted.view(whole)[:, skip:, None]
        if model.global_pool == "avg":
            return _mean(x, own)
        highest = _max(x, own)
        return highest if model.global_pool == "max" else 0.5 * (highest + _mean(x, own))


class ReducedVisionTransformer(ReducedMixin, VisionTransformer):
    """Runs timm's ``VisionTransformer`` with a reducer."""


class ReducedDistilled(ReducedMixin, VisionTransformerDistilled):
    """Runs timm's ``VisionTransformerDistilled`` with a reducer."""


class ReducedEva(ReducedMixin, Eva):
    """Runs timm's ``Eva`` with a reducer."""


MODELS: dict[type, type[ReducedMixin]] = {
    VisionTransformer: ReducedVisionTransformer,
    VisionTransformerDistilled: ReducedDistilled,
    Eva: ReducedEva,
}
REDUCED_BLOCKS: dict[type, type[ReducedBlock]] = {
    Block: _Block,
    ResPostBlock: _ResPostBlock,
    EvaBlock: _EvaBlock,
    EvaBlockPostNorm: _EvaBlockPostNorm,
}


def reduced_model(
    model: nn.Module, name: Any, model_args: Mapping[str, Any] | None = None, **knobs: Any
) -> ReducedMixin:
    """See `adaptok.vision.apply_reducer`."""
    if reason := reason_against(model):
        raise ValueError(f"{type(model).__name__} cannot run with a reducer: {reason}")
    source: Any = model
    heads, depth = source.blocks[0].attn.num_heads, len(source.blocks)
    part = {"name": name, **knobs} if isinstance(name, str) else name
    reducer = REDUCERS.build(part, dim=source.embed_dim, heads=heads, depth=depth)
    # A deep copy that keeps the tensors: new modules around the same parameters and buffers.
    tensors = [*model.parameters(), *model.buffers()]
    made: Any = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    made.__class__ = MODELS[type(model)]
    for block in made.blocks:
        block.__class__ = REDUCED_BLOCKS[type(block)]
    pack_modules(made.blocks)  # their attentions
    pack_pool(made.attn_pool)
    weight = source.norm.weight if hasattr(source.norm, "weight") else tensors[0]
    made.reducer = reducer.to(weight.device, weight.dtype)
    made.last = made.last_shape = None
    made.options = {"reducer": recorded(part)}
    given = getattr(model, "model_args", {}) if model_args is None else model_args
    made.model_args = check_model_args(given)
    return made.train(model.training)


def through(
    reducer: Reducer,
    blocks: Iterable[nn.Module],
    x: Float[Tensor, "b n d"],
    ropes: Sequence[Rope | None],
    prefix: int,
    call: Callable[[Any, Tensor, Packing], Tensor],
    take: Collection[int] = (),
) -> tuple[Tensor, Flow, list[tuple[Tensor, Flow]]]:
    """Carries the tokens of a batch through blocks with a reducer.

    Args:
        ropes: rotation of all rows in each block, or None.
        prefix: special tokens per image, which never merge.
        call: runs a block on (b, n, d); the block asks ``packing.reduced`` between attention and
            MLP.
        take: blocks after which tokens and state are returned as well.

    Returns:
        x: tokens that are left.
        flow: what they stand for.
        states: both after each block of `take`.
    """
    b, n = x.shape[:2]
    ones = torch.ones(b * n, dtype=torch.float32, device=x.device)
    flow, states = Flow(ones, reducer.weighted, True), []
    image = torch.arange(b, device=x.device)
    for i, (block, rope) in enumerate(zip(blocks, ropes, strict=True)):
        rope = _rows_of(rope, flow.kept) if rope is not None and flow.kept is not None else rope
        sample = image.repeat_interleave(x.shape[1], output_size=b * x.shape[1])
        groups = _groups(b, x.shape[1], x.device)
        packing = Packing(groups, sample, b, rope, flow.key_bias)
        acts, step = reducer.acts(i), Step(reducer, i, flow, prefix)
        if acts and reducer.place == "before":
            rows, packing = step(x.flatten(0, 1), packing)
            x, flow = rows.unflatten(0, (b, -1)), step.flow
        elif acts:
            packing = packing._replace(between=step)
        before = x
        x, flow = call(block, x, packing), step.flow
        if flow.gate is not None:
            x = flow.gated(before.flatten(0, 1), x.flatten(0, 1)).unflatten(0, (b, -1))
        if i in take:
            states.append((x, flow))
    return x, flow, states


def detached(flow: Flow) -> Flow:
    """What stays of the state after a forward pass: no gradients."""
    trail = flow.trail
    if trail.last is not None:
        trail = trail._replace(last=trail.last.detach())
    gate = None if flow.gate is None else flow.gate.detach()
    return flow._replace(mass=flow.mass.detach(), trail=trail, gate=gate)


def reason_against(model: nn.Module) -> str | None:
    """Says why a model cannot run with a reducer, or returns None."""
    if type(model) not in MODELS:
        return why_no_plain_model(model)
    source: Any = model
    if reason := replaced_forward(source):
        return reason
    if not len(source.blocks):
        return "it has no blocks"
    for block in source.blocks:
        if type(block) not in REDUCED_BLOCKS:
            return f"its blocks are of type {type(block).__name__}"
        if type(block.attn) not in (Attention, AttentionRope, EvaAttention):
            return f"its attention is of type {type(block.attn).__name__}"
        if getattr(block.attn, "attn_drop", None) is not None and block.attn.attn_drop.p > 0:
            return "it drops attention weights (attn_drop_rate), which packed kernels cannot"
    if getattr(getattr(source, "patch_drop", None), "prob", 0) > 0:
        return "it drops patches in training (patch_drop_rate)"
    if source.attn_pool is not None and type(source.attn_pool) is not AttentionPoolLatent:
        return f"its pooling is of type {type(source.attn_pool).__name__}"
    if getattr(source.attn_pool, "pos_embed", None) is not None:
        return "its attention pooling has position embeddings"
    return unsupported_rope(getattr(source, "rope", None))


def _groups(b: Count, n: int, device: torch.device) -> Groups:
    lengths = repeated(n, b)
    return Groups(None, None, offsets_of(lengths, device), n, lengths)


def _rows_of(rope: Rope, rows: Tensor) -> Rope:
    return rope._replace(sin=rope.sin[rows], cos=rope.cos[rows])


def _mean(x: Float[Tensor, "b m d"], own: Float[Tensor, "b m 1"]) -> Float[Tensor, "b d"]:
    """Mean by what each token stands for; 0 where all are out."""
    return ((x * own).sum(1) / own.sum(1).clamp(min=1)).to(x.dtype)


def _max(x: Float[Tensor, "b m d"], own: Float[Tensor, "b m 1"]) -> Float[Tensor, "b d"]:
    """Maximum of the tokens that are in; of all where none is."""
    out = (own == 0) & (own > 0).any(1, keepdim=True)
    return x.masked_fill(out, -torch.inf).amax(1)
