"""Marking rules: best-first order for any scores, budgets, the paper's counts, random control."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import Forest, boxes, number_of_splits, pop_order, stepwise
from torch._subclasses.fake_tensor import FakeTensorMode

import adaptok
from adaptok.tokenizers.marking import BudgetMarking, split_best_first, split_stepwise, top_mask
from adaptok.tree import Tree, cells_from_splits, sum_pyramid


def number(tree: Tree, node) -> int:
    """Number of a node: level by level, raster order over the overhanging grid."""
    level, index = node
    return tree.offsets[level] + int(np.ravel_multi_index(index, tree.grids[level]))


# ---- arbitrary scores: a child may outscore its parent


def golden_cases(golden):
    arrays = golden("iap_nonmonotone")
    for case, kind in itertools.product(range(4), ("int", "gauss")):
        levels: list[np.ndarray] = []
        while f"case{case}_{kind}_level{len(levels)}" in arrays:
            levels.append(arrays[f"case{case}_{kind}_level{len(levels)}"])
        yield levels, arrays[f"case{case}_{kind}_order"]


def test_the_first_m_pops_of_the_golden_orders_are_the_split_sets(golden):
    cases = list(golden_cases(golden))
    assert len(cases) == 8
    for levels, order in cases:
        ndim, depth = levels[0].ndim, len(levels)
        shape = tuple(n << depth for n in levels[0].shape)
        tree = Tree(shape, tuple((2**i,) * ndim for i in range(depth, -1, -1)))
        assert [level.shape for level in levels] == list(tree.grids[:-1])
        scores = torch.from_numpy(np.concatenate([level.ravel() for level in levels]))
        assert len(order) == tree.inner == len(scores)
        # Every count at once: one sample per number of splits.
        counts = tuple(range(len(order) + 1))
        split = split_best_first(scores.expand(len(counts), 1, -1), tree, counts)[:, 0].numpy()
        expected = np.zeros_like(split)
        for count in counts:
            expected[count, order[:count]] = True
        np.testing.assert_array_equal(split, expected)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 10**6),
)
def test_best_first_equals_a_heap_for_arbitrary_node_scores(roots, depth, values, seed):
    """Few distinct values make ties at every bottleneck of the tree."""
    depth = min(depth, 5 - len(roots))
    sizes = tuple((2**i,) * len(roots) for i in range(depth, -1, -1))
    shape = tuple(n << depth for n in roots)
    tree, forest = Tree(shape, sizes), Forest(shape, sizes)
    rng = np.random.default_rng(seed)
    scores = rng.integers(-values, values + 1, tree.inner).astype(np.float32)
    order = pop_order(forest, lambda node: float(scores[number(tree, node)]))
    counts = tuple(sorted({0, 1, *rng.integers(0, tree.inner + 1, 6).tolist(), tree.inner}))
    split = split_best_first(torch.from_numpy(scores).expand(len(counts), 1, -1), tree, counts)[
        :, 0
    ]
    for row, count in zip(split.tolist(), counts, strict=True):
        chosen = {number(tree, node) for node in order[:count]}
        assert {i for i, taken in enumerate(row) if taken} == chosen


@pytest.mark.parametrize("values", [1, 3, 10**6])
def test_keys_of_deep_trees_take_several_words(values):
    """Eleven levels of ranks with eleven bits each do not fit into one 64-bit number."""
    sizes = tuple((2**i,) for i in range(11, -1, -1))
    tree, forest = Tree((2048,), sizes), Forest((2048,), sizes)
    scores = np.random.default_rng(values).integers(0, values, tree.inner).astype(np.float64)
    order = [
        number(tree, node)
        for node in pop_order(forest, lambda node: float(scores[number(tree, node)]))
    ]
    counts = (0, 1, 5, 50, 333, 1024, 2000, tree.inner)
    split = split_best_first(torch.from_numpy(scores).expand(len(counts), 1, -1), tree, counts)
    for row, count in zip(split[:, 0].tolist(), counts, strict=True):
        assert {i for i, taken in enumerate(row) if taken} == set(order[:count])


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_stepwise_equals_the_literal_loop_for_arbitrary_node_scores(step, values, seed):
    tree = Tree((16, 24), ((8, 8), (4, 4), (2, 2)))
    forest = Forest(tree.shape, tree.sizes)
    rng = np.random.default_rng(seed)
    scores = rng.integers(-values, values + 1, (2, tree.inner)).astype(np.float32)
    counts = tuple(rng.integers(0, tree.inner + 1, 2).tolist())
    split = split_stepwise(torch.from_numpy(scores)[:, None], tree, counts, step)
    for sample, count in enumerate(counts):
        chosen = stepwise(
            forest, set(), lambda n, s=sample: float(scores[s, number(tree, n)]), count, step
        )
        taken = {number(tree, node) for node in chosen}
        assert {i for i, x in enumerate(split[sample, 0].tolist()) if x} == taken


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 5))
def test_top_mask_breaks_ties_by_index(seed, values, rows):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values + 1, (rows, 17)).astype(np.float32)
    counts = tuple(rng.integers(0, 18, rows).tolist())
    for wanted in (counts, (counts[0],) * rows):
        mask = top_mask(torch.from_numpy(scores), wanted).numpy()
        for row, taken, count in zip(scores, mask, wanted, strict=True):
            best = sorted(range(17), key=lambda i, row=row: (-row[i], i))[:count]
            assert set(np.flatnonzero(taken)) == set(best)


def test_the_two_ways_agree_where_scores_are_monotone():
    tree = Tree((32, 32), ((16, 16), (8, 8), (4, 4), (2, 2)))
    sums = sum_pyramid((torch.rand(4, 1, 32, 32) < 0.1).float(), tree)
    for count in (0, 1, 3, 20, 50, tree.inner):
        fast = top_mask(sums.flatten(1), (count,) * 4).view_as(sums)
        assert torch.equal(fast, split_best_first(sums, tree, (count,) * 4))


# ---- budgets


@pytest.mark.parametrize(
    ("shape", "max_size", "tokens"),
    [
        ((256, 256), 32, {1024: 1024, 2048: 2044, 4096: 4096}),
        ((256, 256), 16, {2048: 2044, 4096: 4096}),
        ((128, 384), 32, {1024: 1020, 2048: 2040, 4096: 4092}),
        ((64, 64, 64), 16, {1024: 1016, 2048: 2024, 4096: 4096}),
    ],
)
def test_token_counts_of_table_1(shape, max_size, tokens):
    tokenizer = adaptok.create_tokenizer(
        "iap",
        ndim=len(shape),
        in_channels=1,
        dim=8,
        min_size=2,
        max_size=max_size,
        splits_per_step=4,
    )
    field = torch.rand(1, 1, 1, *shape)
    for budget, count in tokens.items():
        cells = tokenizer.cells(field, budget=budget)
        assert cells.cu_seqlens.tolist() == [0, count]
        assert cells.volume.sum() == field.numel()


@given(st.integers(3, 40), st.integers(3, 40), st.integers(1, 5), st.integers(0, 200))
def test_a_budget_is_never_exceeded_and_equation_1_holds(height, width, step, extra):
    sizes = ((8, 8), (4, 4), (2, 2))
    forest = Forest((height, width), sizes)
    least = len(forest.leaves(forest.forced()))
    budget = least + extra
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the budget may lie above the finest count
        cells = adaptok.cells_from_score(
            torch.rand(1, height, width),
            min_size=2,
            max_size=8,
            budget=budget,
            splits_per_step=step,
            border="split",
        )
    assert len(cells) == least + 3 * number_of_splits(forest, budget, step) <= budget


def test_budgets_per_sample_as_list_and_as_tensor():
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=8, budget=16)
    field = torch.rand(3, 1, 1, 32, 32)
    wanted = [16, 100, 43]
    for budget in (wanted, tuple(wanted), torch.tensor(wanted)):
        cells = tokenizer.cells(field, budget=budget).validate()
        assert cells.cu_seqlens.diff().tolist() == [16, 100, 43]
        for i, each in enumerate(wanted):
            assert boxes(cells, i) == boxes(tokenizer.cells(field[i : i + 1], budget=each))
    assert tokenizer.cells(field).cu_seqlens.diff().tolist() == [16, 16, 16]


@pytest.mark.parametrize("budget", [3.5, "many", [16, 16], [16, 16, 2.5], torch.ones(3), True])
def test_a_budget_is_a_whole_number_or_one_per_sample(budget):
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=8)
    with pytest.raises(ValueError, match="budget is a whole number or 3 of them"):
        tokenizer.cells(torch.rand(3, 1, 1, 32, 32), budget=budget)


def test_numpy_whole_numbers_are_budgets_too():
    score = torch.rand(2, 32, 32)
    sizes = {"min_size": 2, "max_size": 16}
    expected = adaptok.cells_from_score(score, **sizes, budget=[64, 64])
    for budget in (np.int64(64), [np.int64(64), 64]):
        assert boxes(adaptok.cells_from_score(score, **sizes, budget=budget)) == boxes(expected)


def test_a_budget_below_the_roots_names_what_is_needed():
    score = torch.rand(2, 32, 32)
    with pytest.raises(ValueError, match=r"budget 3 is below the 4 cells .* at most \(16, 16\)"):
        adaptok.cells_from_score(score, min_size=2, max_size=16, budget=3)
    with pytest.raises(ValueError, match="budget 3 is below the 4 cells"):
        adaptok.cells_from_score(score, min_size=2, max_size=16, budget=[64, 3])


@pytest.mark.parametrize("budget", [257, 10**9, [300, 400]])
def test_a_budget_above_the_finest_warns_and_gives_the_finest(budget):
    score = torch.rand(2, 32, 32)
    with pytest.warns(UserWarning, match="every cell is the finest") as caught:
        cells = adaptok.cells_from_score(score, min_size=2, max_size=16, budget=budget)
    assert len(caught) == len({budget} if isinstance(budget, int) else set(budget))
    assert cells.cu_seqlens.tolist() == [0, 256, 512]
    assert cells.size[:, 1:].unique().tolist() == [2]


def test_exactly_the_finest_does_not_warn(recwarn):
    cells = adaptok.cells_from_score(torch.rand(1, 32, 32), min_size=2, max_size=16, budget=256)
    assert len(cells) == 256
    assert not recwarn.list


def test_a_budget_refuses_a_tree_of_mixed_ratios():
    tree = Tree((16,), ((16,), (4,), (2,)))
    with pytest.raises(ValueError, match="one ratio between all levels"):
        BudgetMarking()(torch.rand(1, 1, tree.inner), tree, budget=8)


def test_a_tree_of_one_level_has_nothing_to_mark():
    tree = Tree((8, 8), ((4, 4),))
    split, lengths, _ = BudgetMarking()(torch.zeros(2, 1, 0), tree, budget=4)
    assert lengths == (4, 4)
    assert cells_from_splits(split, tree, frames=1).validate().lengths == (4, 4)


@pytest.mark.parametrize("steps", [0, -1])
def test_splits_per_step_is_positive(steps):
    with pytest.raises(ValueError, match=rf"splits_per_step must be .* at least 1, got {steps}"):
        adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=8, splits_per_step=steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_do_not_overflow(dtype):
    """Sums over a large cell leave the range of float16; they are taken in float32."""
    score = (torch.arange(60 * 60).view(1, 60, 60) % 7 * 1000).to(dtype)
    options = {"min_size": 2, "max_size": 32, "budget": 200}
    half = adaptok.cells_from_score(score, **options)
    assert boxes(half) == boxes(adaptok.cells_from_score(score.float(), **options))
    half.validate()


# ---- frames


def test_a_budget_counts_all_frames():
    options = {"ndim": 2, "in_channels": 1, "dim": 8, "min_size": 2, "max_size": 8}
    field = torch.rand(2, 4, 1, 16, 16)
    shared = adaptok.create_tokenizer("iap", **options).cells(field, budget=100).validate()
    assert shared.cu_seqlens.diff().tolist() == [100, 100]  # four frames of 25
    frames = [boxes_of_frame(shared, 0, frame) for frame in range(4)]
    assert frames[0] == frames[1] == frames[2] == frames[3]

    single = adaptok.create_tokenizer("iap", **options, per_frame=True)
    cells = single.cells(field, budget=100).validate()
    assert cells.cu_seqlens.diff().tolist() == [100, 100]
    assert len({len(boxes_of_frame(cells, 0, frame)) for frame in range(4)}) > 1

    pairs = adaptok.create_tokenizer("iap", **options, frame_size=2)
    cells = pairs.cells(field, budget=99).validate()
    assert cells.size[:, 0].unique().tolist() == [2]
    assert cells.cu_seqlens.diff().tolist() == [98, 98]  # two frames of 49 each


def boxes_of_frame(cells, sample: int, frame: int):
    start = int(cells.cu_seqlens[sample])
    end = int(cells.cu_seqlens[sample + 1])
    rows = cells.origin[start:end, 0] == frame
    return [box for box, own in zip(boxes(cells, sample), rows.tolist(), strict=True) if own]


def test_frames_of_their_own_share_one_ranking():
    """`per_frame` splits the best nodes of all frames: the roots of both trees are one forest."""
    tree = Tree((8, 8), ((4, 4), (2, 2)))
    scores = torch.tensor([[[9.0, 1, 1, 1], [2, 8, 7, 1]]])
    split, lengths, _ = BudgetMarking()(scores, tree, monotone=True, budget=8 + 3 * 3)
    assert split.tolist() == [[[True, False, False, False], [False, True, True, False]]]
    assert lengths == (17,)


def test_a_frame_that_stands_out_gets_the_cells():
    field = torch.zeros(1, 3, 1, 16, 16)
    field[0, 1, 0, 5:9, 5:9] = 1.0
    options = {"ndim": 2, "in_channels": 1, "dim": 8, "min_size": 2, "max_size": 8}
    tokenizer = adaptok.create_tokenizer("iap", **options, per_frame=True)
    cells = tokenizer.cells(field, budget=36).validate()
    counts = [len(boxes_of_frame(cells, 0, frame)) for frame in range(3)]
    assert counts == [4, 28, 4]


@pytest.mark.parametrize("frame_size", [2, 3])
def test_frames_that_do_not_divide_are_refused(frame_size):
    for name in ("iap", "uniform"):
        tokenizer = adaptok.create_tokenizer(
            name, ndim=1, in_channels=1, dim=8, frame_size=frame_size
        )
        with pytest.raises(ValueError, match=f"5 frame.* frame_size {frame_size}"):
            tokenizer.cells(torch.rand(1, 5, 1, 32))


# ---- random marking


def test_random_marking_depends_on_the_seed_alone():
    make = {"ndim": 2, "in_channels": 1, "dim": 8, "min_size": 2, "max_size": 8}
    tokenizer = adaptok.create_tokenizer("composed", **make, marking={"name": "random", "seed": 3})
    assert tokenizer.controls == ("budget", "seed")
    field = torch.rand(3, 1, 1, 32, 32)
    state = torch.get_rng_state()
    cells = tokenizer.cells(field, budget=100).validate()
    assert torch.equal(torch.get_rng_state(), state)  # leaves the global generator alone
    assert cells.cu_seqlens.diff().tolist() == [100] * 3
    again = tokenizer.cells(torch.rand(1, 1, 1, 32, 32), budget=100)
    assert boxes(cells, 0) == boxes(cells, 1) == boxes(cells, 2) == boxes(again)
    other = tokenizer.cells(field, budget=100, seed=4)
    assert boxes(other) != boxes(cells)
    assert boxes(tokenizer.cells(field, budget=100, seed=3)) == boxes(cells)


def test_random_marking_refines_all_levels():
    make = {"ndim": 2, "in_channels": 1, "dim": 8, "min_size": 1, "max_size": 8}
    tokenizer = adaptok.create_tokenizer("composed", **make, marking="random")
    cells = tokenizer.cells(torch.zeros(1, 1, 1, 64, 64), budget=600)
    assert sorted(cells.level.unique().tolist()) == [0, 1, 2, 3]


# ---- one budget for a batch


@pytest.mark.parametrize("budget", [4, 10, 31, 64])
def test_a_batch_shares_its_budget_as_one_large_domain_would(budget):
    """The samples side by side as one field: the same cells, wherever a tile lies."""
    torch.manual_seed(0)
    score = torch.rand(3, 16, 16) ** 4 * torch.tensor([1.0, 5.0, 0.2])[:, None, None]
    tree = Tree((16, 16), ((8, 8), (4, 4), (2, 2)))
    marks = BudgetMarking(budget=budget, per_batch=True)(
        sum_pyramid(score.unsqueeze(1), tree), tree, monotone=True
    )
    assert marks.lengths is None
    cells = cells_from_splits(marks.split, tree, frames=1, total=marks.total).validate()
    side_by_side = adaptok.cells_from_score(
        score.flatten(0, 1)[None], min_size=2, max_size=8, budget=3 * budget
    )
    assert len(cells) == marks.total == len(side_by_side) <= 3 * budget
    shift = torch.tensor([0, 16, 0]) * cells.sample[:, None]
    ours = torch.cat([cells.origin + shift, cells.size], 1).tolist()
    theirs = torch.cat([side_by_side.origin, side_by_side.size], 1).tolist()
    assert sorted(ours) == sorted(theirs)
    assert budget in (4, 64) or len(set(cells.cu_seqlens.diff().tolist())) > 1


def test_a_shared_budget_needs_no_counts_from_the_device():
    """While compiling, or on an accelerator, offsets stay there; the numbers are the same."""
    torch.manual_seed(0)
    tree = Tree((16, 16), ((8, 8), (4, 4), (2, 2)))
    scores = sum_pyramid(torch.rand(3, 1, 16, 16), tree)
    marks = BudgetMarking(budget=20, per_batch=True)(scores, tree, monotone=True, budget=[20, 9, 7])
    assert marks.total == 36
    eager = cells_from_splits(marks.split, tree, frames=1, total=marks.total)
    assert eager.lengths == tuple(eager.cu_seqlens.diff().tolist())
    with FakeTensorMode(allow_non_fake_inputs=True):
        split = torch.empty(marks.split.shape, dtype=torch.bool, device="cuda")
        there = cells_from_splits(split, tree, frames=1, total=marks.total)
    assert len(there) == 36
    assert there.lengths is None
    assert there.max_seqlen == 36


@pytest.mark.slow
def test_a_shared_budget_compiles_as_one_graph():
    tokenizer = adaptok.create_tokenizer(
        "iap", ndim=2, in_channels=1, dim=8, max_size=8, budget=20, per_batch=True
    )
    field = torch.rand(3, 1, 1, 16, 16) * torch.tensor([1.0, 9.0, 2.0]).view(3, 1, 1, 1, 1)
    whole = torch.compile(tokenizer, fullgraph=True, backend="eager")(field)
    eager = tokenizer(field)
    assert whole.cells.lengths is None
    assert torch.equal(whole.cells.cu_seqlens, eager.cells.cu_seqlens)
    torch.testing.assert_close(whole.features, eager.features)
