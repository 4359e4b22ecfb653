"""AViT: attention over time, then along each space axis."""

from __future__ import annotations

from adaptok.cells import Cells, Groups
from adaptok.processors.factorised import FactorisedTransformer, frame_groups
from adaptok.registry import PROCESSORS


@PROCESSORS.register("axial")
class AxialTransformer(FactorisedTransformer):
    """Each cell attends to itself in other frames, then along every space axis, then an MLP.

    MATEY's AViT (Sec. 3, "AViT, SViT, and ViT"): the same queries, keys and values attend along
    each axis, and the results are averaged. On refined cells, which MATEY does not define, a token
    attends along an axis to the band, one coarsest cell wide, that its centre lies in. Needs a
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
        norm: "layer", "rms" or "instance" (over the tokens of a frame, as MATEY).
        recipe: "pre", or "matey" (its places of the norms, and none after the last block).
        layer_scale: initial factor per channel of what a branch adds (MATEY: 1e-6).
    """

    def space_groups(self, cells: Cells) -> Groups | tuple[Groups, ...]:
        """One partition per axis: the tokens of a frame that share a band along it."""
        return tuple(axis_groups(cells, axis) for axis in range(1, cells.ndim + 1))

    def time_segments(self, cells: Cells, time: Groups) -> Groups:
        """The tokens of a frame."""
        return frame_groups(cells)


def axis_groups(cells: Cells, axis: int) -> Groups:
    """Tokens of a frame in the same band along one axis, as wide as the coarsest cell."""
    return cells.groups(fixed=[a for a in range(cells.ndim + 1) if a != axis]).nonempty
