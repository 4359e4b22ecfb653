"""SViT: attention over time, then over space."""

from __future__ import annotations

from adaptok.cells import Cells, Groups
from adaptok.processors.factorised import FactorisedTransformer, frame_groups
from adaptok.registry import PROCESSORS


@PROCESSORS.register("spacetime")
class SpaceTimeTransformer(FactorisedTransformer):
    """Each cell attends to itself in other frames, then to all cells of its frame, then an MLP.

    MATEY's SViT (Sec. 3, "AViT, SViT, and ViT"; ViViT's factorised self-attention). Needs a
    history of frames; one frame is allowed.

    Args:
        spec: of the tokenizer.
        depth: number of blocks.
        heads: attention heads, a divisor of ``spec.dim``.
        mlp_ratio: hidden width of the MLP over dim.
        qk_norm: layer norm on queries and keys.
        drop_path: stochastic depth rate of the last block, growing linearly from 0; per sample.
        positions: "rotary", "fourier" or "none", or a mapping of name and knobs.
        rope_base: base of the rotary frequencies, positions in grid points.
        norm: "layer", "rms" or "instance" (over the tokens that attend to one another, as MATEY).
        recipe: "pre", or "matey" (its places of the norms, and none after the last block).
        layer_scale: initial factor per channel of what a branch adds (MATEY: 1e-6).
    """

    def space_groups(self, cells: Cells) -> Groups | tuple[Groups, ...]:
        """All tokens of a frame."""
        return frame_groups(cells)

    def time_segments(self, cells: Cells, time: Groups) -> Groups:
        """The tokens of a cell."""
        return time
