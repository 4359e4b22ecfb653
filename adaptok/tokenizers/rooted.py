"""Trees whose largest cell is the whole domain, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from adaptok.tokenizers.indicators import Indicator
from adaptok.tokenizers.marking import Marking
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import TokenizerSpec
from adaptok.tree import Tree


class RootedTokenizer(TreeTokenizer):
    """A tree tokenizer that finds its coarser sizes from the domain.

    The largest cell is the finest one times the smallest power of two with which it covers the
    shortest side of the domain; a longer domain has several of them in a row.

    Args:
        spec: with the finest size alone, and `rooted`.
        indicator: node scores.
        marking: which nodes split.
        embedding: of boxes of any size.
        options: of `TreeTokenizer`. With the border "split" the largest cells must tile the domain.

    Raises:
        ValueError: a spec of several sizes, or one that is not rooted.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        indicator: Indicator,
        marking: Marking,
        embedding: nn.Module,
        **options: Any,
    ):
        if not spec.rooted or len(spec.sizes) > 1:
            raise ValueError(
                f"a rooted tokenizer has a rooted spec of the finest size alone, got {spec.sizes}"
            )
        super().__init__(spec, indicator, marking, embedding, **options)

    def tree(self, space: Sequence[int]) -> Tree:
        """Returns the tree over a domain.

        Raises:
            ValueError: border "split" and a domain that the largest cells do not tile; names
                sizes that fit.
        """
        finest = self.spec.sizes[-1][1:]
        cells = [-(-n // p) for n, p in zip(space, finest, strict=True)]
        halvings = (min(cells) - 1).bit_length()
        sizes = tuple(tuple(p << k for p in finest) for k in range(halvings, -1, -1))
        tiled = all(n % p == 0 for n, p in zip(space, sizes[0], strict=True))
        if self.border == "split" and not tiled and max(cells) > 1:
            raise ValueError(
                f"with border='split' the largest cell, {finest} times a power of two, is as long "
                "as the shortest side of the domain and tiles it: "
                f"{_fitting(space, finest, halvings - 1)} and {_fitting(space, finest, halvings)} "
                f"fit, the field has {tuple(space)}; border='clip' takes any"
            )
        return Tree(tuple(space), sizes, self.order, self.border)


def _fitting(space: Sequence[int], finest: Sequence[int], halvings: int) -> tuple[int, ...]:
    """A domain like this one that cells of that many halvings tile."""
    root = [p << max(halvings, 0) for p in finest]
    return tuple(max(n // r, 1) * r for n, r in zip(space, root, strict=True))
