"""The transformer that the processors with a constructor in common extend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, Count, Groups
from adaptok.layers.blocks import (
    AttentionBranch,
    Block,
    bias_by_weight,
    conditioned,
    drop_path_rates,
)
from adaptok.layers.norms import Segments, create_norm
from adaptok.layers.positions import Rotary
from adaptok.registry import POSITIONS, PROCESSORS, Part
from adaptok.tokens import TokenizerSpec, TokenSet, check_tokens
from adaptok.utils.arguments import (
    Base,
    Depth,
    Positive,
    Rate,
    Ratio,
    Scale,
    Weighted,
    checked,
)


class Rows(NamedTuple):
    """What the layers of a stack are called with beside the rows themselves, see `Block`."""

    groups: Groups | Sequence[Groups]
    rotate: Rotary | None
    sample: Tensor
    samples: Count
    segments: Segments | None
    key_bias: Tensor | None


class Transformer(nn.Module):
    """Positions, `depth` blocks, and a last norm; each block is one layer of every stack.

    Subclasses name their stacks and say who attends to whom in each.

    Args:
        spec: specification of the tokenizer.
        depth: number of blocks.
        heads: attention heads, a divisor of ``spec.dim``.
        mlp_ratio: hidden width of the MLP over dim.
        qk_norm: layer norm on queries and keys.
        drop_path: stochastic depth rate of the last block, growing linearly from 0; per sample.
        positions: "rotary", "fourier" or "none", or a mapping of name and knobs.
        rope_base: base of the rotary frequencies, positions in grid points.
        norm: "layer", "rms" or "instance" (over the tokens that the processor names, as MATEY).
        norm_placement: "pre", or "matey": MATEY's norm placement, no final norm.
        layer_scale: initial factor per channel on the output of a branch (MATEY: 1e-6).
        weighted: let a token count as a key for what it stands for, by the logarithm of its area in
            finest cells (or ``payload["weight"]``) added to its scores; a number is a factor on it.

    Raises:
        ValueError: a negative depth, heads that do not divide dim, an unknown choice or option.
    """

    stacks: ClassVar[dict[str, type[AttentionBranch]]]  # by the name of their attribute

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        depth: Depth = 8,
        heads: Positive = 6,
        mlp_ratio: Ratio = 4.0,
        qk_norm: bool = False,
        drop_path: Rate = 0.0,
        positions: Part = "rotary",
        rope_base: Base = 10000.0,
        norm: str = "layer",
        norm_placement: str = "pre",
        layer_scale: Scale | None = None,
        weighted: Weighted = False,
        **unknown: Any,
    ):
        PROCESSORS.check_knobs(type(self), unknown)  # says more than Python would
        super().__init__()
        rates = drop_path_rates(depth, drop_path)
        self.spec, self.by_segment, self.weighted = spec, norm == "instance", float(weighted)
        head_dim = spec.dim // max(heads, 1)  # the attention refuses heads that do not fit
        self.positions = POSITIONS.build(
            positions, spec=spec, head_dim=head_dim, rope_base=rope_base
        )
        options: dict[str, Any] = {"qk_norm": qk_norm, "norm": norm, "layer_scale": layer_scale}
        options["norm_placement"] = norm_placement
        for name, layer in self.stacks.items():
            more = {"mlp_ratio": mlp_ratio} if issubclass(layer, Block) else {}
            layers = (layer(spec.dim, heads, drop_path=r, **more, **options) for r in rates)
            setattr(self, name, nn.ModuleList(layers))
        self.norm = create_norm(norm, spec.dim) if norm_placement == "pre" else None

    def forward(self, tokens: TokenSet) -> TokenSet:
        """Maps tokens to tokens of the same cells."""
        check_tokens(tokens, self.spec, self)
        cells = tokens.cells
        x, rotate = self.positions(conditioned(tokens), cells, self.spec.position_center(cells))
        groups = self.groups(cells)
        segments: list[Segments | None] = [None] * len(groups)
        if self.by_segment:
            segments = [Segments.of(each, cells.count) for each in self.norm_groups(cells, groups)]
        sample, samples = cells.sample, cells.batch_size
        key_bias = bias_by_weight(tokens, self.weighted)
        rows = [
            Rows(group, rotate, sample, samples, segment, key_bias)
            for group, segment in zip(groups, segments, strict=True)
        ]
        x = self.run(x, rows, cells)
        return tokens.replace(features=x if self.norm is None else self.norm(x, segments[-1]))

    def run(
        self, x: Float[Tensor, "n d"], rows: Sequence[Rows], cells: Cells
    ) -> Float[Tensor, "n d"]:
        """Runs the blocks, each layer with the rows of its stack."""
        for block in zip(*(getattr(self, name) for name in self.stacks), strict=True):
            for layer, own in zip(block, rows, strict=True):
                x = layer(x, *own)
        return x

    def groups(self, cells: Cells) -> Sequence[Groups | tuple[Groups, ...]]:
        """Groups whose tokens attend to one another, per stack; several partitions are averaged."""
        raise NotImplementedError

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> Sequence[Groups]:
        """Groups over which an instance norm takes its statistics, per stack.

        Args:
            groups: the result of `groups`.
        """
        raise NotImplementedError
