"""The tree, the pyramid, and cells against a heap, node by node."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import Forest, box_sum, boxes, halvings, refine

import adaptok
from adaptok.tokenizers.marking import BudgetMarking
from adaptok.tree import Tree, cells_from_splits, leaves, sum_pyramid


def random_map(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Small whole numbers: their sums are exact in any order, and ties abound."""
    rng = np.random.default_rng(seed)
    if kind == "equal":
        return np.full(shape, 3.0)
    if kind == "sparse":
        return (rng.random(shape) < 0.02) * rng.integers(1, 50, shape).astype(float)
    low = -20 if kind == "signed" else 0
    return rng.integers(low, 20, shape).astype(float)


KINDS = ("positive", "signed", "equal", "sparse")


@st.composite
def domains(draw, ratios=(2,)):
    """(shape, sizes): 1D to 3D, divisible or not, two to four levels."""
    ndim = draw(st.integers(1, 3))
    ratio = draw(st.sampled_from(ratios))
    levels = draw(st.integers(2, 3 if ratio > 2 or ndim == 3 else 4))
    fine = (
        draw(st.tuples(*[st.integers(1, 3)] * ndim)) if ndim < 3 else (draw(st.integers(1, 2)),) * 3
    )
    sizes = tuple(tuple(f * ratio**i for f in fine) for i in reversed(range(levels)))
    longest = {1: 90, 2: 40, 3: 14}[ndim]
    shape = draw(st.tuples(*[st.integers(1, longest)] * ndim))
    return shape, sizes


# ---- golden arrays: score maps of small whole numbers, so that every partition is exact


def sorted_boxes(cells: adaptok.Cells, sample: int) -> np.ndarray:
    rows = [(*origin, size[0]) for _, origin, size in boxes(cells, sample)]
    return np.array(sorted(rows))


@pytest.mark.parametrize("name", ["iap_2d_small", "iap_ties", "iap_2d_256"])
def test_cells_equal_the_golden_arrays(golden, name):
    arrays = golden(name)
    maps = [arrays[key] for key in sorted(arrays) if key.startswith("score")]
    scores = torch.from_numpy(np.stack(maps).astype(np.float32))
    compared = 0
    for budget, step in itertools.product(arrays["budgets"].tolist(), arrays["Ks"].tolist()):
        cells = adaptok.cells_from_score(
            scores,
            min_size=int(arrays["p_min"]),
            max_size=int(arrays["p_max"]),
            budget=min(budget, scores[0].numel() // int(arrays["p_min"]) ** 2),
            splits_per_step=step,
        )
        for i in range(len(maps)):
            expected = arrays[f"leaves{i}_T{budget}_K{step}"]
            np.testing.assert_array_equal(sorted_boxes(cells, i), expected)
            compared += 1
    assert compared == len([key for key in arrays if key.startswith("leaves")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_cells_do_not_depend_on_the_dtype(golden, dtype):
    score = torch.from_numpy(golden("iap_2d_256")["score1"].astype(np.float64)).to(dtype)
    cells = adaptok.cells_from_score(score[None], min_size=2, max_size=32, budget=1024)
    expected = golden("iap_2d_256")["leaves1_T1024_K1"]
    np.testing.assert_array_equal(sorted_boxes(cells, 0), expected)


# ---- random maps against the heap


@given(domains(), st.sampled_from(KINDS), st.floats(0, 1), st.integers(0, 10**6))
def test_cells_equal_a_heap(domain, kind, fill, seed):
    shape, sizes = domain
    score = random_map(kind, shape, seed)
    forest = Forest(shape, sizes)
    least, most = len(forest.leaves(forest.forced())), len(forest.leaves(set(forest.inner())))
    budget = least + int(fill * (most - least))
    cells = adaptok.cells_from_score(
        torch.from_numpy(score)[None],
        min_size=sizes[-1],
        max_size=sizes[0],
        budget=budget,
        border="split",
    )
    assert boxes(cells) == refine(score, sizes, budget)
    assert len(cells) <= budget


@given(domains(), st.sampled_from(KINDS), st.integers(2, 7), st.floats(0, 1), st.integers(0, 99))
def test_several_splits_per_step_equal_the_literal_loop(domain, kind, step, fill, seed):
    shape, sizes = domain
    scores = np.stack([random_map(kind, shape, seed + i) for i in range(2)])
    forest = Forest(shape, sizes)
    least, most = len(forest.leaves(forest.forced())), len(forest.leaves(set(forest.inner())))
    budgets = [least + int(f * (most - least)) for f in (fill, fill / 2)]
    cells = adaptok.cells_from_score(
        torch.from_numpy(scores),
        min_size=sizes[-1],
        max_size=sizes[0],
        budget=budgets,
        splits_per_step=step,
        border="split",
    )
    for sample, budget in enumerate(budgets):
        assert boxes(cells, sample) == refine(scores[sample], sizes, budget, step)


@given(domains(ratios=(2, 3, 4)), st.sampled_from(KINDS), st.floats(0, 1), st.integers(0, 10**6))
def test_other_ratios_equal_a_heap_in_both_orders_of_marking(domain, kind, fill, seed):
    """Ratio 4 (MATEY's) and 3; the monotone shortcut agrees wherever it may be used."""
    shape, sizes = domain
    score = random_map(kind, shape, seed)
    forest = Forest(shape, sizes)
    least, most = len(forest.leaves(forest.forced())), len(forest.leaves(set(forest.inner())))
    budget = least + int(fill * (most - least))
    tree = Tree(shape, sizes)
    sums = sum_pyramid(torch.from_numpy(score)[None, None], tree)
    expected = refine(score, sizes, budget)
    for monotone in {False, kind != "signed"}:
        split, lengths, _ = BudgetMarking()(sums, tree, monotone=monotone, budget=budget)
        cells = cells_from_splits(split, tree, frames=1, lengths=lengths)
        assert boxes(cells) == expected


def test_a_batch_of_budgets_equals_the_samples_one_by_one():
    scores = torch.rand(3, 24, 40)
    budgets = [15, 100, 57]
    together = adaptok.cells_from_score(scores, min_size=2, max_size=8, budget=budgets)
    for i, budget in enumerate(budgets):
        alone = adaptok.cells_from_score(scores[i : i + 1], min_size=2, max_size=8, budget=budget)
        assert boxes(together, i) == boxes(alone)
    assert together.lengths == tuple(together.cu_seqlens.diff().tolist())


# ---- tiling


@given(domains(ratios=(2, 4)), st.integers(0, 10**6), st.data())
def test_any_split_mask_tiles_the_domain_in_depth_first_order(domain, seed, data):
    """Whatever the mask says (also below nodes that do not split), the leaves tile the domain."""
    shape, sizes = domain
    tree = Tree(shape, sizes)
    frames = data.draw(st.integers(1, 2))
    rng = np.random.default_rng(seed)
    split = torch.from_numpy(rng.random((2, frames, tree.inner)) < 0.5)
    split = split | tree.nodes(split.device).forced
    cells = cells_from_splits(split, tree, frames=frames).validate()
    assert cells.shape == (frames, *shape)
    assert cells.owner_map().shape == (2, frames, *shape)

    forest = Forest(shape, sizes)
    numbers = {}
    for level, grid in enumerate(tree.grids):
        for raster, index in enumerate(itertools.product(*map(range, grid))):
            numbers[level, index] = tree.offsets[level] + raster
    inner = forest.inner()
    for sample in range(2):
        expected = []
        for frame in range(frames):
            chosen = {node for node in inner if split[sample, frame, numbers[node]]}
            expected += [forest.box(leaf) for leaf in forest.leaves(chosen)]
        assert boxes(cells, sample) == expected


def test_rows_are_frame_major_and_frames_have_their_size():
    tree = Tree((4, 4), ((2, 2), (1, 1)))
    split = torch.zeros(1, 1, 4, dtype=torch.bool)
    split[0, 0, 3] = True
    cells = cells_from_splits(split, tree, frames=3, frame_size=2).validate()
    assert cells.shape == (6, 4, 4)
    assert cells.origin[:, 0].tolist() == [0] * 7 + [2] * 7 + [4] * 7
    assert cells.size[:, 0].unique().tolist() == [2]
    assert cells.sizes == ((2, 2, 2), (2, 1, 1))


@given(domains())
def test_order_level_is_coarse_first_then_raster(domain):
    shape, sizes = domain
    tree = Tree(shape, sizes, "level")
    split = torch.rand(1, 1, tree.inner) < 0.5
    split = split | tree.nodes(split.device).forced
    rows = boxes(cells_from_splits(split, tree, frames=1).validate())
    assert rows == sorted(rows)
    same = cells_from_splits(split, Tree(shape, sizes), frames=1)
    assert sorted(boxes(same)) == rows


@given(domains(ratios=(2, 3, 4)))
def test_counts_equal_brute_force(domain):
    shape, sizes = domain
    forest = Forest(shape, sizes)
    forced = forest.forced()
    expected = len(forest.leaves(forced)), len(forced), len(forest.inner())
    assert Tree(shape, sizes).counts() == expected


def test_the_border_rule():
    """With "split" a node that crosses the border splits; a finest cell that does is clipped."""
    knobs = {"min_size": 2, "max_size": 8, "border": "split"}
    cells = adaptok.cells_from_score(torch.zeros(1, 8, 11), **knobs, budget=24)
    least = adaptok.cells_from_score(torch.zeros(1, 8, 11), **knobs, budget=9)
    assert boxes(least) == [
        (0, (0, 0), (8, 8)),
        *[(2, (y, x), (2, min(2, 11 - x))) for y in (0, 2) for x in (8, 10)],
        *[(2, (y, x), (2, min(2, 11 - x))) for y in (4, 6) for x in (8, 10)],
    ]
    assert cells.size[:, 2].min() == 1
    with pytest.raises(ValueError, match="budget 8 is below the 9 cells"):
        adaptok.cells_from_score(torch.zeros(1, 8, 11), **knobs, budget=8)


# ---- pyramid


@given(domains(ratios=(2, 3, 4)), st.sampled_from(KINDS), st.integers(0, 10**6))
def test_sum_pyramid_equals_sums_over_boxes(domain, kind, seed):
    shape, sizes = domain
    score = random_map(kind, shape, seed)
    tree = Tree(shape, sizes)
    sums = sum_pyramid(torch.from_numpy(score)[None, None], tree)
    forest = Forest(shape, sizes)
    for level, values in enumerate(tree.per_level(sums)):
        grid = values.reshape(tree.grids[level]).numpy()
        for index in itertools.product(*map(range, grid.shape)):
            node = (level, index)
            inside = all(o < n for o, n in zip(forest.origin(node), shape, strict=True))
            assert grid[index] == (box_sum(score, forest.box(node)) if inside else 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [((16, 16), (8, 8), (4, 4), (2, 2), (1, 1)), ((12, 9), (4, 3))])
def test_sums_of_non_negative_maps_never_grow_downwards(dtype, sizes):
    """Exactly, in any precision: what lets one top-k replace the loop."""
    tree = Tree((48, 45), sizes)
    spikes = torch.rand(2, 1, 48, 45) * (1 + 1e3 * (torch.rand(2, 1, 48, 45) < 0.01))
    levels = tree.per_level(sum_pyramid((spikes * 1e-2).to(dtype), tree))
    for level, (parents, children) in enumerate(itertools.pairwise(levels)):
        assert bool((children <= tree.expand(parents, level)).all())


def test_leaves_ignore_splits_below_a_node_that_does_not_split():
    tree = Tree((4,), ((4,), (2,), (1,)))
    split = torch.tensor([[[False, True, True]]])
    assert leaves(split, tree).tolist() == [[[True, *[False] * 6]]]


def test_expand_hands_values_to_the_children():
    tree = Tree((4, 6), ((4, 6), (2, 2)))
    assert tree.expand(torch.tensor([[7.0]]), 0).tolist() == [[7.0] * 6]
    assert tree.ratios == ((2, 3),)


# ---- bad input


@pytest.mark.parametrize(
    ("sizes", "order", "message"),
    [
        (((8, 8), (3, 3)), "depth_first", "integer factors"),
        (((8, 8), (8, 8)), "depth_first", "integer factors"),
        (((8,), (4,)), "depth_first", "2 axes"),
        (((8, 8),), "hilbert", "depth_first, level, got 'hilbert'"),
    ],
)
def test_a_tree_that_makes_no_sense_is_refused(sizes, order, message):
    with pytest.raises(ValueError, match=message):
        Tree((16, 16), sizes, order)


def test_nodes_are_numbered_level_by_level_in_raster_order():
    tree = Tree((5, 4), ((4, 4), (2, 2)), "level")
    nodes = tree.nodes(torch.device("cpu"))
    assert tree.grids == ((2, 1), (4, 2))
    assert nodes.origin.tolist()[:4] == [[0, 0], [4, 0], [0, 0], [0, 2]]
    assert nodes.forced.tolist() == [False, True]
    assert nodes.inside.tolist() == [True, True, *[True] * 6, False, False]
    depth_first = Tree((5, 4), ((4, 4), (2, 2))).nodes(torch.device("cpu"))
    assert depth_first.order.tolist() == [0, 2, 3, 4, 5, 1, 6, 7, 8, 9]


def test_halvings_are_the_level_sizes():
    tokenizer = adaptok.create_tokenizer(
        "iap", ndim=2, in_channels=1, dim=8, min_size=2, max_size=32, budget=64
    )
    assert [size[1:] for size in tokenizer.spec.sizes] == halvings(2, 32, 2)
