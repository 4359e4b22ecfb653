"""Why some timm models cannot run on cells."""

from __future__ import annotations

from typing import Any

from timm.layers.attention_pool import AttentionPoolLatent, AttentionPoolPrr
from timm.layers.patch_embed import PatchEmbed
from torch import nn

from adaptok.vision.blocks import ATTENTIONS, BLOCKS
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
    kind = type(model)
    if kind not in CLASSES:
        known = "not a plain vision transformer of timm (VisionTransformer or Eva)"
        return _KNOWN.get(kind.__name__, known)
    embed: Any = model.patch_embed
    if type(embed) is not PatchEmbed:
        return f"its patches come from a {type(embed).__name__}, not from one convolution"
    if embed.grid_size is None:
        return "its patch embedding has no image size, so its positions have no grid"
    return _of_blocks(model) or _of_rest(model)


def _of_blocks(model: Any) -> str | None:
    for block in model.blocks:
        if type(block) not in BLOCKS:
            return f"its blocks are of type {type(block).__name__}"
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
