"""Marking by thresholds: golden masks, recursion node by node, caps, and calibration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import Forest, boxes, pop_order

import adaptok
from adaptok import create_tokenizer
from adaptok.tokenizers.marking import BudgetMarking, ThresholdMarking
from adaptok.tree import Tree, cells_from_splits, leaves

BINARY = ((16, 24), ((8, 8), (4, 4), (2, 2)))
CLIPPED = ((13, 22), ((8, 8), (4, 4), (2, 2)))
MIXED = ((40,), ((16,), (4,), (2,)))


def number(tree: Tree, node) -> int:
    level, index = node
    return tree.offsets[level] + int(np.ravel_multi_index(index, tree.grids[level]))


def splits(forest: Forest, tree: Tree, score: np.ndarray, bars) -> set:
    """Top-down, one node at a time; `bars` coarse to fine."""
    found, todo = set(), list(forest.roots())
    while todo:
        node = todo.pop()
        if node[0] == forest.last:
            continue
        if forest.crosses(node) or not score[number(tree, node)] < bars[node[0]]:
            found.add(node)
            todo += forest.children(node)
    return found


def leaf_boxes(forest: Forest, split: set) -> list:
    return [forest.box(leaf) for leaf in forest.leaves(split)]


# ---- the rule


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize(
    ("key", "thresholds"),
    [("mask_5p5_4p0", (5.5, 4.0)), ("mask_6p0_6p0", (6.0, 6.0)), ("mask2_5p5", (5.5,))],
)
def test_golden_masks(golden, patch, key, thresholds):
    """Images of 224 divide by 56 but not by 64: the last row and column split there."""
    arrays = golden(f"apt_maps_224_p{patch}")
    images = torch.from_numpy(golden("apt_images_224")["images_u8"]).float()
    make = {"ndim": 2, "in_channels": 3, "dim": 4, "value_range": (0, 255)}
    tokenizer = create_tokenizer("apt", **make, min_size=patch, thresholds=thresholds)
    cells = tokenizer.cells(images).validate()
    total = 0
    for level, (_, size, _) in enumerate(cells.sizes):
        own = cells.level == level
        mask = np.zeros_like(arrays[f"{key}_{size}"])
        place = (cells.origin[own, 1:] // size).tolist()
        for sample, (y, x) in zip(cells.sample[own].tolist(), place, strict=True):
            mask[sample, y, x] = 1
        np.testing.assert_array_equal(mask, arrays[f"{key}_{size}"])
        total += mask.sum()
    assert total == len(cells)


@given(
    st.sampled_from([BINARY, CLIPPED, MIXED]),
    st.lists(st.integers(0, 6), min_size=2, max_size=2),
    st.integers(0, 10**6),
)
def test_cells_are_those_of_the_recursion(domain, bars, seed):
    """Whole numbers make ties with the thresholds; children outscore parents; some are NaN."""
    tree, forest = Tree(*domain), Forest(*domain)
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (2, tree.inner)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = np.nan
    marking = ThresholdMarking(thresholds=bars)
    split, lengths, _ = marking(torch.from_numpy(scores)[:, None], tree)
    assert lengths is None
    cells = cells_from_splits(split, tree, frames=1).validate()
    for sample in range(2):
        expected = splits(forest, tree, scores[sample], bars[::-1])
        assert boxes(cells, sample) == leaf_boxes(forest, expected)


def test_equal_to_the_threshold_splits():
    tree = Tree((8,), ((8,), (4,)))
    below = float(np.nextafter(np.float32(5.5), np.float32(0)))
    scores = torch.tensor([[[5.5]], [[below]], [[math.nan]]])
    split = ThresholdMarking(thresholds=5.5)(scores, tree).split
    assert split.flatten().tolist() == [True, False, True]


def test_one_number_serves_all_levels():
    tree = Tree(*BINARY)
    scores = torch.rand(2, 1, tree.inner)
    one, many = ThresholdMarking(thresholds=0.4), ThresholdMarking(thresholds=(0.4, 0.4))
    assert torch.equal(one(scores, tree).split, many(scores, tree).split)


def test_thresholds_may_change_per_call():
    tokenizer = create_tokenizer("apt", ndim=2, in_channels=1, dim=8, thresholds=(3.0, 2.0))
    assert tokenizer.controls == ("thresholds", "budget")
    field = torch.randn(2, 1, 1, 32, 48)
    flat = torch.full((2, 1, 1, 32, 48), 3.0)
    assert tokenizer.cells(field, thresholds=(-1, -1)).lengths == (96, 96)
    assert tokenizer.cells(flat, thresholds=(-1, -1)).lengths == (96, 96)
    assert tokenizer.cells(flat, thresholds=(6, 6)).lengths == (6, 6)
    assert tokenizer.cells(field, thresholds=np.array([9.0, 9.0])).lengths == (6, 6)
    assert tokenizer.marking.thresholds == (3.0, 2.0)


# ---- a cap on top


@given(
    st.sampled_from([BINARY, CLIPPED]),
    st.integers(0, 60),
    st.lists(st.integers(0, 4), min_size=2, max_size=2),
    st.integers(0, 10**6),
)
def test_a_cap_keeps_the_best_splits_of_the_threshold_tree(domain, extra, bars, seed):
    tree, forest = Tree(*domain), Forest(*domain)
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (1, tree.inner)).astype(np.float32)
    forced = forest.forced()
    budget = len(forest.leaves(forced)) + extra
    marked = splits(forest, tree, scores[0], bars[::-1])
    ranked = [
        node
        for node in pop_order(
            forest, lambda n: float(scores[0, number(tree, n)]) if n in marked else -1.0
        )
        if node in marked
    ]
    kept = set(ranked[: len(forced) + extra // 3])
    marking = ThresholdMarking(thresholds=bars, budget=budget)
    split = marking(torch.from_numpy(scores)[:, None], tree).split
    cells = cells_from_splits(split, tree, frames=1).validate()
    assert boxes(cells) == leaf_boxes(forest, kept)
    assert len(cells) <= budget


@given(
    st.sampled_from([BINARY, CLIPPED]),
    st.integers(0, 60),
    st.lists(st.integers(0, 4), min_size=2, max_size=2),
    st.integers(0, 10**6),
)
@settings(max_examples=10, deadline=None)
def test_filling_spends_the_rest_of_a_budget_on_the_best_other_cells(domain, extra, bars, seed):
    tree, forest = Tree(*domain), Forest(*domain)
    scores = np.random.default_rng(seed).integers(0, 6, (1, tree.inner)).astype(np.float32)
    given = torch.from_numpy(scores)[:, None]
    budget = tree.counts().leaves + extra
    knobs = {"thresholds": bars, "budget": budget}
    kept = leaf_splits(ThresholdMarking(**knobs)(given, tree).split, tree, forest)
    filling = ThresholdMarking(**knobs, fill=True)
    split, lengths, _ = filling(given, tree)
    assert filling.static
    assert lengths == BudgetMarking(budget=budget)(given, tree).lengths

    def score(node):
        return 100.0 if node in kept else float(scores[0, number(tree, node)])

    count = (lengths[0] - len(list(forest.roots()))) // 3 if domain is BINARY else None
    found = leaf_splits(split, tree, forest)
    assert kept <= found
    if count is not None:
        assert found == set(itertools.islice(pop_order(forest, score), count))


def leaf_splits(split, tree: Tree, forest: Forest) -> set:
    """The nodes that exist and split."""
    found, todo = set(), list(forest.roots())
    while todo:
        node = todo.pop()
        if node[0] < forest.last and bool(split[0, 0, number(tree, node)]):
            found.add(node)
            todo += forest.children(node)
    return found


def test_filling_needs_a_budget():
    assert not ThresholdMarking(budget=5).static
    with pytest.raises(ValueError, match="fill=True splits up to a budget"):
        ThresholdMarking(fill=True)


@pytest.mark.parametrize("monotone", [False, True])
def test_cap_and_thresholds_at_their_limits(monotone):
    tree = Tree(*CLIPPED)
    points = torch.rand(3, 1, *tree.shape)
    scores = adaptok.tree.sum_pyramid(points, tree)
    free = ThresholdMarking(thresholds=20.0)(scores, tree).split
    wide = ThresholdMarking(thresholds=20.0, budget=10**6)(scores, tree, monotone=monotone).split
    assert torch.equal(leaves(free, tree), leaves(wide, tree))
    budgets = [40, 45, 60]
    everything = ThresholdMarking(thresholds=-math.inf)
    capped = everything(scores, tree, monotone=monotone, budget=budgets).split
    exact = BudgetMarking()(scores, tree, monotone=monotone, budget=budgets).split
    assert torch.equal(leaves(capped, tree), leaves(exact, tree))


def test_a_cap_counts_all_frames():
    make = {"ndim": 2, "in_channels": 1, "dim": 8, "thresholds": (-1, -1)}
    field = torch.rand(2, 4, 1, 16, 16)
    assert create_tokenizer("apt", **make).cells(field).lengths == (64, 64)
    cells = create_tokenizer("apt", **make, budget=30).cells(field).validate()
    assert cells.lengths == (28, 28)  # four frames of 7
    own = create_tokenizer("apt", **make, budget=30, per_frame=True).cells(field).validate()
    assert own.lengths == (28, 28)  # eight splits over four trees


# ---- synchronisation


@pytest.mark.slow
def test_marks_without_a_look_at_the_host_compile():
    tokenizer = create_tokenizer("apt", ndim=2, in_channels=3, dim=8, budget=20)
    tree = Tree((24, 40), ((16, 16), (8, 8), (4, 4)))
    field = torch.rand(2, 1, 3, 24, 40)

    def mark(x):
        return tokenizer.marking(tokenizer.indicator(x, tree)[:, None], tree).split

    compiled = torch.compile(mark, fullgraph=True, backend="eager")
    assert torch.equal(compiled(field), mark(field))


def test_cells_are_read_once(monkeypatch):
    """The number of cells per sample is all that the host asks for."""
    tokenizer = create_tokenizer("apt", ndim=2, in_channels=3, dim=8)
    field = torch.rand(2, 1, 3, 32, 40)
    monkeypatch.setattr("adaptok.tokens._check_finite", lambda field, what: None)
    monkeypatch.setattr("adaptok.tokenizers.asked._check_finite", lambda scores, indicator: None)
    monkeypatch.setattr("adaptok.utils.magnitude.reads_are_free", lambda values: False)
    expected = tokenizer(field).features  # fills the caches
    asked = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy"):
        method = getattr(torch.Tensor, name)

        def counted(self, *args, method=method, name=name):
            asked.append(name)
            return method(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    tokens = tokenizer(field)
    monkeypatch.undo()
    assert asked == ["tolist"]
    assert torch.equal(tokens.features, expected)


# ---- calibration


def counts(tokenizer, fields, thresholds) -> float:
    cells = [tokenizer.cells(field, thresholds=thresholds) for field in fields]
    return sum(map(len, cells)) / sum(c.batch_size for c in cells)


@pytest.mark.parametrize("marked", ["apt", "laplacian", "frames", "per_frame"])
def test_calibration_finds_the_best_factor(marked):
    """Against all thresholds that any score can distinguish, tried one by one."""
    t = 1 if marked in ("apt", "laplacian") else 2
    fields = [torch.randn(2, t, 2, 16, 24).cumsum(-1), torch.randn(1, t, 2, 13, 12).cumsum(-1)]
    base = (1.5, 2.0)
    if marked == "laplacian":
        parts = {"indicator": "laplacian", "marking": {"name": "threshold", "thresholds": base}}
        make = {"name": "composed", **parts}
    else:
        make = {"name": "apt", "thresholds": base, "per_frame": marked == "per_frame"}
    tokenizer = create_tokenizer(**make, ndim=2, in_channels=2, dim=4, min_size=2, max_size=8)
    ratios = []
    for field in fields:
        scores, tree = tokenizer.scores(field)
        for bar, level in zip(base[::-1], tree.per_level(scores), strict=True):
            ratios += (level / bar).unique().tolist()
    ratios = sorted(set(ratios))
    tried = [0.0, *[(a + b) / 2 for a, b in itertools.pairwise(ratios)], 1e9]
    reached = sorted({counts(tokenizer, fields, [f * bar for bar in base]) for f in tried})
    assert len(reached) > 4
    for wanted in (reached[0], reached[2], sum(reached[1:3]) / 2, reached[-2], reached[-1]):
        thresholds = adaptok.calibrate(tokenizer, fields, wanted)
        got = counts(tokenizer, fields, thresholds)
        assert got == max(r for r in reached if r <= wanted)
        assert thresholds[1] / thresholds[0] == pytest.approx(base[1] / base[0])
    for wanted in (reached[0] - 0.5, reached[-1] + 0.5):
        with pytest.raises(ValueError, match=f"tokens per sample, {wanted:g} are asked for"):
            adaptok.calibrate(tokenizer, fields, wanted)


def test_calibration_takes_one_batch_too():
    tokenizer = create_tokenizer("apt", ndim=2, in_channels=1, dim=4)
    field = torch.randn(4, 1, 1, 48, 48).cumsum(-1)
    thresholds = adaptok.calibrate(tokenizer, field, 60)
    assert 50 < len(tokenizer.cells(field, thresholds=thresholds)) / 4 <= 60
    assert adaptok.calibrate(tokenizer, field[:, 0], 60) == thresholds


def test_calibration_of_what_has_no_thresholds():
    field = torch.rand(1, 1, 1, 32, 32)
    make = {"ndim": 2, "in_channels": 1, "dim": 4}
    with pytest.raises(ValueError, match="by the maximum or by a price, got BudgetMarking"):
        adaptok.calibrate(create_tokenizer("iap", **make), field, 60)
    with pytest.raises(ValueError, match="positive and finite"):
        adaptok.calibrate(create_tokenizer("apt", **make, thresholds=(-1, 3)), field, 60)
    with pytest.raises(ValueError, match="at least one field"):
        adaptok.calibrate(create_tokenizer("apt", **make), [], 60)


# ---- bad input


@pytest.mark.parametrize("thresholds", [(5.5,), (5.5, 4.0, 3.0), ()])
def test_thresholds_of_the_wrong_length(thresholds):
    message = rf"3 cell sizes need 2 threshold\(s\), smallest .* got {len(thresholds)}"
    tokenizer = create_tokenizer("apt", ndim=2, in_channels=1, dim=8)
    with pytest.raises(ValueError, match=message):
        tokenizer.cells(torch.rand(1, 1, 1, 32, 32), thresholds=thresholds)
    with pytest.raises(ValueError, match=message):
        create_tokenizer("apt", ndim=2, in_channels=1, dim=8, max_size=16, thresholds=thresholds)


@pytest.mark.parametrize("thresholds", ["5", None, (5.5, "4"), (math.nan, 1.0), (True, 1.0)])
def test_thresholds_are_numbers(thresholds):
    with pytest.raises(ValueError, match=r"thresholds (are|must be a) number"):
        create_tokenizer("apt", ndim=2, in_channels=1, dim=8, max_size=16, thresholds=thresholds)


def test_a_field_smaller_than_the_coarsest_cell():
    tokenizer = create_tokenizer("apt", ndim=2, in_channels=3, dim=8, min_size=14)
    tokenizer.cells(torch.rand(1, 3, 56, 56))
    with pytest.raises(
        ValueError, match=r"\(56, 55\) is smaller than the coarsest cell of \(56, 56"
    ):
        tokenizer.cells(torch.rand(1, 3, 56, 55))


def test_a_cap_below_what_the_domain_needs():
    tokenizer = create_tokenizer("apt", ndim=2, in_channels=3, dim=8, budget=3)
    with pytest.raises(ValueError, match="budget 3 is below the 4 cells"):
        tokenizer.cells(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("shape", [(17, 17), (45, 70)])
@pytest.mark.parametrize(
    "marking",
    [{"name": "threshold", "thresholds": 0.6}, {"name": "threshold", "thresholds": 0.0}],
)
def test_a_cap_that_does_not_bind_takes_no_split_at_the_border_away(shape, marking):
    torch.manual_seed(0)
    field = torch.randn(3, 1, 1, *shape).cumsum(-1).cumsum(-2)
    sizes = {"ndim": 2, "in_channels": 1, "dim": 8, "min_size": 2, "max_size": 16}
    free = create_tokenizer("composed", marking=marking, **sizes).cells(field)
    most = max(free.lengths)
    for budget in (most, most + 1, 10 * most):
        capped = {**marking, "budget": budget}
        cells = create_tokenizer("composed", marking=capped, **sizes).cells(field)
        assert cells.lengths == free.lengths
        assert torch.equal(cells.origin, free.origin)
    bound = create_tokenizer("composed", marking={**marking, "budget": most - 9}, **sizes)
    assert most - 9 - 6 < max(bound.cells(field).lengths) <= most - 9


def test_a_tolerance_below_its_cap_is_reached():
    torch.manual_seed(0)
    field = torch.randn(1, 1, 1, 17, 17).cumsum(-1).cumsum(-2)
    sizes = {"ndim": 2, "in_channels": 1, "dim": 8, "min_size": 2, "max_size": 16}
    for budget in (81, 1000):
        tokenizer = create_tokenizer("near_best", tolerance=0.33, budget=budget, **sizes)
        assert float(tokenizer.certificate(field)) <= 0.33
