"""Why some timm models cannot run on cells."""

from __future__ import annotations

from typing import Any

from timm.layers.attention_pool import AttentionPoolLatent, AttentionPoolPrr
from timm.layers.patch_embed import PatchEmbed
from torch import nn

from adaptok.vision.blocks import ATTENTIONS, BLOCKS
from adaptok.vision.embedding import convolution_of
from adaptok.vision.models import CLASSES
from adaptok.vision.rope import unsupported_rope

_BIASED = (
    "its attention has relative position biases, which packed attention over cells of several "
    "sizes does not define"
)
_KNOWN = {
    "VisionTransformerRelPos": _BIASED,
    "Beit": _BIASED,
    "VisionTransformerSAM": "it alternates windowed blocks with relative position biases on a "
    "dense map",
    "NaFlexVit": "it packs patches itself; wrap the vit_* model of the same weights",
}


def unsupported_reason(model: nn.Module) -> str | None:
    """Says why a model cannot run on cells, or returns None."""
    if type(model) not in CLASSES:
        return why_no_plain_model(model)
    embed: Any = model.patch_embed
    if type(embed) is not PatchEmbed:
        return f"its patches come from a {type(embed).__name__}, not from one convolution"
    if embed.grid_size is None:
        return "its patch embedding has no image size, so its positions have no grid"
    if convolution_of(embed) is None:
        return "its patches do not come from a convolution"
    return replaced_forward(model) or _of_blocks(model) or _of_rest(model)


def why_no_plain_model(model: nn.Module) -> str:
    """Says why a module is no vision transformer of timm's own classes."""
    kind, package = type(model), type(model).__module__.partition(".")[0]
    if kind.__name__ in _KNOWN:
        return _KNOWN[kind.__name__]
    if hasattr(model, "_orig_mod"):
        return "it is compiled: give the model that was compiled, and compile the result"
    if hasattr(model, "model_args") and hasattr(model, "check_rebuilt"):
        return "it is adapted already: give the timm model that it was made from"
    if isinstance(getattr(model, "module", None), tuple(CLASSES)):
        return "it is wrapped: give its .module, and wrap the result"
    if isinstance(getattr(model, "model", None), tuple(CLASSES)):
        return "it is wrapped: give its .model"
    if isinstance(model, tuple(CLASSES)):
        return "a subclass of timm's class may have another forward pass"
    if package in ("torchvision", "transformers"):
        return f"it is a model of {package}; those of timm are supported"
    return "not a plain vision transformer of timm (VisionTransformer or Eva)"


def replaced_forward(model: Any) -> str | None:
    """Says which module has a forward pass of its own, which a copy would not have, or None."""
    parts = {"blocks": model.blocks, "patch_embed": model.patch_embed}
    for prefix, part in parts.items():
        for name, module in part.named_modules(prefix=prefix):
            if "forward" in vars(module):
                return f"the forward pass of its {name} was replaced: put a module around it"
    return None


def _of_blocks(model: Any) -> str | None:
    for block in model.blocks:
        if type(block) not in BLOCKS:
            return (
                f"its blocks are of type {type(block).__name__} (wrap or shard those of the result)"
            )
        for module in block.modules():
            if "ttention" in type(module).__name__ and type(module) not in ATTENTIONS:
                return f"its attention is of type {type(module).__name__}"
            drop = getattr(module, "attn_drop", None)
            if isinstance(drop, nn.Dropout) and drop.p > 0:
                return "it drops attention weights (attn_drop_rate), which packed kernels cannot"
    return None


def _of_rest(model: Any) -> str | None:
    if getattr(getattr(model, "patch_drop", None), "prob", 0) > 0:
        return "it drops patches in training (patch_drop_rate), as cells do already"
    pool = model.attn_pool
    if pool is not None and type(pool) not in (AttentionPoolLatent, AttentionPoolPrr):
        return f"its pooling is of type {type(pool).__name__}"
    if getattr(pool, "pos_embed", None) is not None:
        return "its attention pooling has position embeddings"
    return unsupported_rope(getattr(model, "rope", None))
