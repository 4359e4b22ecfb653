"""Perceiver IO: a fixed number of latents process the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, Groups, repeated
from adaptok.cells.lengths import offsets_of
from adaptok.layers.blocks import Attention, Block, Mlp
from adaptok.layers.norms import Segments, create_norm
from adaptok.processors.transformer import Place, Rows, Transformer
from adaptok.registry import PROCESSORS, Part
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import Positive, Ratio, checked


class CrossBlock(nn.Module):
    """Adds cross-attention to a context, then an MLP, to the rows.

    Args:
        dim: width, divisible by `heads`.
        heads: number of heads.
        mlp_ratio: hidden width of the MLP over dim.
        qk_norm: layer norm on the queries and keys of each head.
        norm: "layer", "rms" or "instance" (over the rows of a segment).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        norm: str = "layer",
    ):
        super().__init__()
        self.norm_rows, self.norm_context = create_norm(norm, dim), create_norm(norm, dim)
        self.attention = Attention(dim, heads, qk_norm)
        self.norm_mlp, self.mlp = create_norm(norm, dim), Mlp(dim, mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        rows: Rows,
        context: Float[Tensor, "m d"],
        seen: Rows,
    ) -> Float[Tensor, "n d"]:
        """Lets each row attend to the context of its group; `seen` belongs to the context."""
        x = x + self.attention(
            self.norm_rows(x, rows.segments),
            rows.groups,
            rows.rotate,
            context=self.norm_context(context, seen.segments),
            context_groups=seen.groups,
            context_rotate=seen.rotate,
            key_bias=seen.key_bias,
        )
        return x + self.mlp(self.norm_mlp(x, rows.segments))


@PROCESSORS.register("perceiver")
class Perceiver(Transformer):
    """Learned latents read the tokens of a sample, attend to one another, and tokens read them.

    Perceiver IO (Jaegle et al., ICLR 2022, Sec. 3): cross-attention into the latents, `depth`
    blocks among them, and cross-attention back, in which each token is a query; the cost is linear
    in the tokens. Latents have no place: with rotary positions they lie at the first grid point.

    Args:
        latents: per sample.
        heads: attention heads, a divisor of ``spec.dim``.
        mlp_ratio: hidden width of the MLPs over dim.
        qk_norm: layer norm on queries and keys.
        positions: "fourier", "rotary" or "none", or a mapping of name and knobs.
        norm: "layer", "rms" or "instance" (over the tokens or latents of a sample).
        options: see `Transformer`; `norm_placement` is that of the blocks among latents.
    """

    stacks: ClassVar = {"blocks": Block}
    blocks: nn.ModuleList
    reducible: ClassVar = False

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        latents: Positive = 64,
        heads: Positive = 6,
        mlp_ratio: Ratio = 4.0,
        qk_norm: bool = False,
        positions: Part = "fourier",
        norm: str = "layer",
        **options: Any,
    ):
        own = {"heads": heads, "mlp_ratio": mlp_ratio, "qk_norm": qk_norm, "norm": norm}
        super().__init__(spec, positions=positions, **own, **options)
        if hasattr(self.positions, "in_block"):
            raise ValueError(
                f"positions {positions!r} act on the tokens of every block, and the blocks of "
                '\'perceiver\' are of latents: use positions="fourier", "rotary" or "none"'
            )
        self.latents = nn.Parameter(torch.randn(latents, spec.dim) * 0.02)
        self.read, self.write = CrossBlock(spec.dim, **own), CrossBlock(spec.dim, **own)

    def run(self, x: Float[Tensor, "n d"], place: Place) -> tuple[Float[Tensor, "n d"], Place]:
        """Reads the tokens into latents, processes these, and reads them back."""
        (tokens,) = place.rows
        count, samples = self.latents.shape[0], place.cells.batch_size
        lengths = repeated(count, samples)
        groups = Groups(None, None, offsets_of(lengths, x.device), count, lengths)
        segments = Segments.of(groups, count * samples) if self.by_segment else None
        sample = torch.arange(samples, device=x.device)[:, None].expand(-1, count).flatten()
        own = Rows(groups, None, sample, samples, segments, None)
        z = self.latents.to(x.dtype).expand(samples, -1, -1).flatten(0, 1)
        z = self.read(z, own, x, tokens)
        for block in self.blocks:
            z = block(z, *own)
        return self.write(x, tokens, z, own), place

    def groups(self, cells: Cells) -> tuple[Groups]:
        """The tokens of a sample."""
        return (cells.groups(),)

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> Sequence[Groups]:
        """The tokens of a sample."""
        return groups
