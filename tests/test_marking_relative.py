"""`maximum` and `fraction` against rules written node by node."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import Forest

from adaptok import MARKINGS
from adaptok.tree import Tree, cells_from_splits

CASES = st.tuples(
    st.sampled_from(
        [
            ((32, 32), ((16, 16), (4, 4))),
            ((32, 48), ((16, 16), (8, 8), (2, 2))),
            ((13, 19), ((8, 8), (4, 4), (2, 2))),
            ((50,), ((12,), (4,), (1,))),
            ((8, 10, 9), ((4, 4, 4), (2, 2, 2))),
            ((16, 16), ((4, 4),)),
        ]
    ),
    st.integers(1, 3),
    st.integers(0, 10**6),
)


def number(tree: Tree, node) -> int:
    """Of the node in the tree: level by level in raster order."""
    level, index = node
    flat = 0
    for i, count in zip(index, tree.grids[level], strict=True):
        flat = flat * count + i
    return tree.offsets[level] + flat


def scored(case):
    (shape, sizes), frames, seed = case
    generator = torch.Generator().manual_seed(seed)
    tree, forest = Tree(shape, sizes), Forest(shape, sizes)
    scores = torch.randint(0, 9, (2, frames, tree.inner), generator=generator).float()  # many ties
    return tree, forest, scores


def leaves_of(tree: Tree, forest: Forest, chosen: set) -> list:
    return [forest.box(leaf) for leaf in forest.leaves(chosen)]


def check(tree, forest, scores, marks, rule) -> None:
    for sample, frames in enumerate(scores):
        chosen = rule(sample)
        for frame in range(len(frames)):
            split = marks.split[sample : sample + 1, frame : frame + 1]
            cells = cells_from_splits(split, tree, frames=1)
            rows = zip(cells.level.tolist(), cells.origin[:, 1:].tolist(), strict=True)
            own = {node for f, node in chosen if f == frame}
            expected = [(level, list(o)) for level, o, _ in leaves_of(tree, forest, own)]
            assert list(rows) == expected
    lengths = marks.lengths
    if lengths is not None:
        frames = scores.shape[1]
        assert cells_from_splits(marks.split, tree, frames=frames).lengths == lengths


@given(CASES, st.sampled_from([0.1, 0.5, 0.999, 1.0]))
def test_maximum_splits_what_exceeds_the_share_of_the_largest(case, gamma):
    tree, forest, scores = scored(case)

    def rule(sample):
        frames = range(scores.shape[1])
        values = [
            float(scores[sample, f, number(tree, root)])
            for f in frames
            for root in forest.roots()
            if tree.inner
        ]
        highest, chosen = max(values, default=math.inf), set()
        for f in frames:
            todo = list(forest.roots())
            while todo:
                node = todo.pop()
                if node[0] == forest.last:
                    continue
                score = float(scores[sample, f, number(tree, node)])
                if forest.crosses(node) or score > gamma * highest:
                    chosen.add((f, node))
                    todo += forest.children(node)
        return chosen

    check(tree, forest, scores, MARKINGS.create("maximum", gamma=gamma)(scores, tree), rule)


@given(CASES, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_fraction_splits_the_best_of_each_level(case, ratio):
    tree, forest, scores = scored(case)

    def rule(sample):
        frames = range(scores.shape[1])
        nodes = [(f, root) for f in frames for root in forest.roots()]
        chosen = set()
        for _ in range(forest.last):

            def key(item):
                f, node = item
                return (
                    not forest.crosses(node),
                    -float(scores[sample, f, number(tree, node)]),
                    f,
                    number(tree, node),
                )

            crossing = sum(forest.crosses(node) for _, node in nodes)
            best = sorted(nodes, key=key)[: max(int(ratio * len(nodes)), crossing)]
            chosen |= set(best)
            nodes = [(f, child) for f, node in best for child in forest.children(node)]
        return chosen

    check(tree, forest, scores, MARKINGS.create("fraction", ratio=ratio)(scores, tree), rule)


def test_shared_frames_count_in_the_lengths():
    tree = Tree((16, 16), ((8, 8), (4, 4)))
    marks = MARKINGS.create("fraction", ratio=0.5)(torch.rand(3, 1, tree.inner), tree, shared=4)
    assert marks.lengths == (4 * (2 + 8),) * 3


@pytest.mark.parametrize("gamma", [0, -0.1, 1.01, float("nan")])
def test_gamma_outside_its_range(gamma):
    with pytest.raises(ValueError, match=r"gamma must be a number above 0"):
        MARKINGS.create("maximum", gamma=gamma)
    tree = Tree((8, 8), ((4, 4), (2, 2)))
    with pytest.raises(ValueError, match=r"gamma must be a number above 0"):
        MARKINGS.create("maximum")(torch.rand(1, 1, tree.inner), tree, gamma=gamma)


@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan")])
def test_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match=r"ratio must be a number of at least 0"):
        MARKINGS.create("fraction", ratio=ratio)
