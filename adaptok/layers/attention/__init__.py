"""Attention over groups of packed rows: the one place that knows attention kernels.

Back ends, each with the same result:
    loop: scaled_dot_product_attention per group; the reference, for any device, dtype and mask.
    dense: one reshape and one kernel call, for groups of one length.
    padded: pads groups to the longest, with a mask; needs nothing from the host.
    math: `padded` by matrix products, for derivatives of derivatives and forward mode.
    varlen: torch.nn.attention.varlen (FlashAttention 2 or cuDNN) on CUDA in half precision.
    flash_attn: an installed flash-attn package (FlashAttention 2, 3 or 4).
    efficient: torch's memory-efficient kernel on CUDA, also in float32.
    flex: FlexAttention with a block mask, for biases on ragged groups.
"""

from adaptok.layers.attention.backend import Backend, Options, Request
from adaptok.layers.attention.dispatch import (
    AUTO,
    BACKENDS,
    attend,
    attention_backend,
    automatic,
    choose,
    usable,
)

__all__ = [
    "AUTO",
    "BACKENDS",
    "Backend",
    "Options",
    "Request",
    "attend",
    "attention_backend",
    "automatic",
    "choose",
    "usable",
]
