"""A decoder that costs less than the encoder at small budgets."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.decoders.cross_attention import CrossAttentionDecoder
from adaptok.decoders.linear import LinearDecoder
from adaptok.layers.mixed import gives_lists
from adaptok.registry import DECODERS
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.utils.arguments import Base, PerAxis, Positive, Ratio, checked


@DECODERS.register("local")
class LocalDecoder(nn.Module):
    """Each token paints its cell, and coarse latents that attend to the tokens around smooth it.

    The sum of `linear` and of `cross_attention` on a coarser latent grid and within windows.
    IAP's decoder has a latent per finest cell, so at 1024 tokens on a 256² field it costs twice as
    much as the encoder; here detail comes from the tokens of the fine cells.

    Args:
        spec: specification of the tokenizer.
        out_channels: channels of the decoded field.
        latent_size: grid points per latent, one number or one per space axis; default four times
            the finest cell, at most the coarsest.
        window: extent of the windows, see `CrossAttentionDecoder`; default twice the coarsest cell.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over dim.
        rope_base: base of the rotary frequencies.
    """

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        out_channels: Positive,
        *,
        latent_size: PerAxis | None = None,
        window: PerAxis | None = None,
        heads: Positive = 6,
        mlp_ratio: Ratio = 2.0,
        rope_base: Base = 10000.0,
    ):
        super().__init__()
        self.spec = spec
        self.paint = LinearDecoder(spec, out_channels)
        (_, *coarsest), (_, *finest) = spec.sizes[0], spec.sizes[-1]
        if latent_size is None:
            latent_size = [min(4 * f, c) for f, c in zip(finest, coarsest, strict=True)]
        self.smooth = CrossAttentionDecoder(
            spec,
            out_channels,
            latent_size=latent_size,
            window=[2 * c for c in coarsest] if window is None else window,
            heads=heads,
            mlp_ratio=mlp_ratio,
            rope_base=rope_base,
        )

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Decodes a field of the shape that the cells were made for."""
        return self.paint(tokens) + self.smooth(tokens)
