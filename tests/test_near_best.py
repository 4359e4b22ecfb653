"""The near-best indicator against least squares, node by node, and against a heap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import Forest, boxes, halvings, pop_order

import adaptok
from adaptok.tokenizers.indicators import NearBestIndicator, relative_errors
from adaptok.tree import Tree


def residual(values: np.ndarray, degree: int) -> float:
    """Squared error of least squares over a box (c, t, *box), one fit per channel and frame."""
    space = values.shape[2:]
    columns = [np.ones(space), *(np.indices(space).astype(float) if degree else [])]
    matrix = np.stack([column.ravel() for column in columns], 1)
    targets = values.reshape(-1, matrix.shape[0]).T
    found = np.linalg.lstsq(matrix, targets, rcond=None)[0]
    return float(((targets - matrix @ found) ** 2).sum())


def node_errors(field: np.ndarray, forest: Forest, degree: int) -> dict:
    """Relative squared error of every node of one sample (t, c, *s), coarse to fine."""
    x = field.swapaxes(0, 1)
    mean = x.mean(tuple(range(1, x.ndim)), keepdims=True)
    whole = ((x - mean) ** 2).sum()
    found = {}
    nodes = [*forest.inner()]
    last = {child for node in nodes for child in forest.children(node)} if nodes else set()
    for node in dict.fromkeys([*forest.roots(), *nodes, *last]):
        _, origin, size = forest.box(node)
        box = tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))
        found[node] = residual(x[(slice(None), slice(None), *box)], degree) / whole
    return found


def modified_errors(errors: dict, forest: Forest) -> dict:
    """1 / s = 1 / e + 1 / s(parent), node by node."""
    scores = {}

    def visit(node, above):
        own = errors[node]
        scores[node] = own if above is None else (own * above / (own + above) if own else 0.0)
        if node[0] < forest.last:
            for child in forest.children(node):
                visit(child, scores[node])

    for root in forest.roots():
        visit(root, None)
    return scores


def number(tree: Tree, node) -> int:
    level, index = node
    return tree.offsets[level] + int(np.ravel_multi_index(index, tree.grids[level]))


def smooth(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype).cumsum(-1).cumsum(-2)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(0, 1), st.integers(1, 2), st.data())
def test_errors_and_scores_equal_least_squares(ndim, degree, frames, data):
    fine, ratio = (
        tuple(data.draw(st.sampled_from(options)) for _ in range(ndim))
        for options in ([1, 2, 3], [2, 3] if ndim < 3 else [2])
    )
    sizes = (tuple(f * r for f, r in zip(fine, ratio, strict=True)), fine)
    if ndim < 3:
        sizes = (tuple(2 * n for n in sizes[0]), *sizes)
    shape = tuple(data.draw(st.integers(3, 8 if ndim == 3 else 17)) for _ in range(ndim))
    border = data.draw(st.sampled_from(["clip", "split"]))
    tree, forest = Tree(shape, sizes, border=border), Forest(shape, sizes)
    field = smooth(2, frames, 2, *shape)
    indicator = NearBestIndicator(degree=degree)
    errors, scores = indicator.errors(field, tree), indicator(field, tree)
    assert errors.shape == (2, tree.offsets[-1])
    for sample in range(2):
        wanted = node_errors(field[sample].numpy(), forest, degree)
        places = [number(tree, node) for node in wanted]
        # of an error as small as the rounding of the least squares, nothing is known
        close = {"rtol": 1e-7, "atol": 1e-15}
        np.testing.assert_allclose(errors[sample, places].numpy(), [*wanted.values()], **close)
        for node, score in modified_errors(wanted, forest).items():
            if node[0] < forest.last:
                np.testing.assert_allclose(scores[sample, number(tree, node)], score, **close)


def test_cells_are_those_of_a_heap():
    """Splitting the highest modified error first, one node at a time, gives the same cells."""
    sizes, shape = halvings(2, 16, 2), (32, 32)
    forest = Forest(shape, sizes)
    field = smooth(2, 2, 2, *shape)
    tokenizer = adaptok.create_tokenizer("near_best", ndim=2, in_channels=2, dim=4)
    for sample, x in enumerate(field.numpy()):
        scores = modified_errors(node_errors(x, forest, 0), forest)
        order = pop_order(forest, scores.__getitem__)
        for splits in (1, 40):
            cells = tokenizer.cells(field, budget=2 * (4 + 3 * splits))
            wanted = [forest.box(leaf) for leaf in forest.leaves(set(order[:splits]))]
            assert boxes(cells, sample) == wanted * 2  # the same in both frames


def test_a_field_that_the_polynomials_hold_scores_nothing():
    tree = Tree((16, 24), ((8, 8), (4, 4), (2, 2)))
    steps = torch.randn(1, 1, 1, 4, 6).repeat_interleave(4, 3).repeat_interleave(4, 4)
    levels = tree.per_level(NearBestIndicator().errors(steps, tree))
    assert levels[0].gt(0).all()
    assert levels[1].eq(0).all()
    assert levels[2].eq(0).all()
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    plane = (1e3 + 3 * y - x)[None, None, None]
    assert NearBestIndicator(degree=1)(plane, tree).max() < 1e-12
    assert NearBestIndicator()(plane, tree).min() > 1e-4


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("degree", [0, 1])
def test_constants_score_zero_and_nothing_is_nan(degree, normalise):
    tree = Tree((13, 24), ((12, 12), (6, 6), (2, 2)), border="clip")
    field = torch.full((3, 2, 2, 13, 24), 0.1)
    field[1, :, 0] = torch.randn(13, 24)
    field[2] = 0
    indicator = NearBestIndicator(degree=degree, normalise=normalise)
    for scores in (indicator(field, tree), indicator.errors(field, tree)):
        assert scores.isfinite().all()
        assert scores[[0, 2]].eq(0).all()
        assert scores[1].gt(0).any()


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_nothing_cancels_where_the_mean_is_large(degree, offset):
    """Single precision, as good as the rounding of the field itself allows."""
    field = (offset + smooth(1, 1, 1, 32, 32) * 20).float()
    tree = Tree((32, 32), ((16, 16), (8, 8), (4, 4), (2, 2)))
    found = relative_errors(field, tree, degree).double()
    torch.testing.assert_close(
        found, relative_errors(field.double(), tree, degree), rtol=2e-4, atol=1e-12
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(-30, 30), st.integers(0, 1000))
def test_the_unit_of_the_field_does_not_matter(power, seed):
    field = torch.randn(1, 1, 2, 16, 16, generator=torch.Generator().manual_seed(seed)).cumsum(-1)
    tree = Tree((16, 16), ((8, 8), (4, 4), (2, 2)))
    found = NearBestIndicator()(field * 10.0**power, tree)
    torch.testing.assert_close(found, NearBestIndicator()(field, tree), rtol=1e-4, atol=1e-9)


def test_normalise_gives_each_channel_the_same_say():
    field = smooth(2, 2, 2, 16, 16)
    other = field * torch.tensor([1e-3, 40.0]).view(2, 1, 1) + 5
    tree = Tree((16, 16), ((8, 8), (4, 4)))
    own, each = NearBestIndicator(), NearBestIndicator(normalise=True)
    torch.testing.assert_close(each(other, tree), each(field, tree))
    largest = own(other[:, :, 1:], tree)
    torch.testing.assert_close(own(other, tree), largest, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"degree must be a whole number .* got 2"):
        NearBestIndicator(degree=2)
