"""What the processors with separate attention over time and space share."""

from __future__ import annotations

from typing import Any

from torch import nn

from adaptok.cells import Cells, GridLayout, Groups
from adaptok.layers.blocks import AttentionBranch, Block, conditioned
from adaptok.layers.norms import Segments, create_norm
from adaptok.registry import POSITIONS, Part
from adaptok.tokens import TokenizerSpec, TokenSet


class FactorisedTransformer(nn.Module):
    """Blocks of attention over time, attention over space, and an MLP."""

    attends_over_time = True
    needs_frames = True  # where the history is folded into channels, no time is left to attend to

    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        depth: int = 8,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        drop_path: float = 0.0,
        positions: Part = "rotary",
        rope_base: float = 10000.0,
        norm: str = "layer",
        recipe: str = "pre",
        layer_scale: float | None = None,
    ):
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}")
        self.spec, self.by_segment = spec, norm == "instance"
        head_dim = spec.dim // max(heads, 1)
        self.positions = POSITIONS.build(
            positions, spec=spec, head_dim=head_dim, rope_base=rope_base
        )
        options: dict[str, Any] = {"qk_norm": qk_norm, "norm": norm, "recipe": recipe}
        options["layer_scale"] = layer_scale
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.time = nn.ModuleList(
            AttentionBranch(spec.dim, heads, drop_path=rate, **options) for rate in rates
        )
        self.space = nn.ModuleList(
            Block(spec.dim, heads, mlp_ratio, drop_path=rate, **options) for rate in rates
        )
        self.norm = create_norm(norm, spec.dim) if recipe == "pre" else None

    def forward(self, tokens: TokenSet) -> TokenSet:
        """Same cells, new features."""
        cells = tokens.cells
        x, rotate = self.positions(conditioned(tokens), cells, self.spec.position_center(cells))
        time, space = time_groups(cells), self.space_groups(cells)
        in_time, in_frame = self._segments(cells, time)
        batch = cells.sample, cells.batch_size
        for over_time, over_space in zip(self.time, self.space, strict=True):
            x = over_time(x, time, rotate, *batch, in_time)
            x = over_space(x, space, rotate, *batch, in_frame)
        return tokens.replace(features=x if self.norm is None else self.norm(x, in_frame))

    def space_groups(self, cells: Cells) -> Groups | tuple[Groups, ...]:
        """Who attends to whom inside a frame."""
        raise NotImplementedError

    def time_segments(self, cells: Cells, time: Groups) -> Groups:
        """Rows that an instance norm around the attention over time takes together."""
        raise NotImplementedError

    def _segments(self, cells: Cells, time: Groups) -> tuple[Segments | None, Segments | None]:
        if not self.by_segment:
            return None, None
        partitions = self.time_segments(cells, time), frame_groups(cells)
        in_time, in_frame = (Segments.of(groups, len(cells)) for groups in partitions)
        return in_time, in_frame


def frame_groups(cells: Cells) -> Groups:
    """All tokens of a frame."""
    return cells.groups(fixed=(0,)).nonempty


def time_groups(cells: Cells) -> Groups:
    """Tokens of the same cell in different frames.

    In a tiling: tokens whose centres lie in the same cell of the finest grid, which are those of
    the same cell where all frames share a tiling; where each frame has its own, a coarse cell
    meets the fine cell in its middle. Where cells overlap: those of the same level only.
    """
    space = range(1, cells.ndim + 1)
    if isinstance(cells.layout, GridLayout):  # the cells of a grid know their bands
        return cells.groups(fixed=space)
    finest = [cells.sizes[-1][axis] for axis in space]
    return cells.groups(fixed=space, pitch=finest, by_level=not cells.tiling).nonempty
