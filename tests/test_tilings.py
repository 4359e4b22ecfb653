"""Errors of tilings against painted cells, the optimal tree against every tree there is."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import Forest
from test_near_best import number, smooth
from test_tolerance import true_error

import adaptok
from adaptok.evaluation.tilings import energy_share, optimal_errors, tiling_errors, tree_of
from adaptok.tokenizers.indicators import relative_errors
from adaptok.tree import Tree


@pytest.mark.parametrize("shape", [(40,), (24, 36), (8, 12, 10)])
@pytest.mark.parametrize("degree", [0, 1])
def test_errors_of_any_tokenizers_cells(shape, degree):
    field = smooth(2, 1, 2, *shape)
    make = {"ndim": len(shape), "in_channels": 2, "dim": 12}
    for name, knobs in {"iap": {"budget": 30, "max_size": 8}, "uniform": {"size": 4}}.items():
        cells = adaptok.create_tokenizer(name, **make, **knobs).cells(field)
        tree = tree_of(cells)
        found = tiling_errors(relative_errors(field, tree, degree), tree, cells)
        wanted = [true_error(x, cells, i, degree) for i, x in enumerate(field.numpy())]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    if len(shape) == 2:
        overlapping = adaptok.create_tokenizer("csm", **make).cells(field)
        with pytest.raises(ValueError, match="no tiling of one frame"):
            tiling_errors(relative_errors(field, tree), tree, overlapping)


def trees(forest: Forest):
    """Every set of splits of which no node is without its parent."""

    def below(node):
        if node[0] == forest.last:
            return [frozenset()]
        children = itertools.product(*(below(child) for child in forest.children(node)))
        return [frozenset()] + [frozenset({node}).union(*parts) for parts in children]

    for parts in itertools.product(*(below(root) for root in forest.roots())):
        yield frozenset().union(*parts)


@settings(max_examples=4, deadline=None)
@given(st.sampled_from([((24,), 8), ((8,), 8), ((4, 4), 4)]), st.integers(0, 1000))
def test_the_optimal_tree_is_the_best_of_all(case, seed):
    shape, coarsest = case
    sizes = tuple((coarsest >> i,) * len(shape) for i in range(3))
    tree, forest = Tree(shape, sizes), Forest(shape, sizes)
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(1, tree.offsets[-1], generator=generator).double()  # not even nested
    best: dict[int, float] = {}
    for split in trees(forest):
        leaves = forest.leaves(split)
        error = math.sqrt(sum(float(errors[0, number(tree, leaf)]) for leaf in leaves))
        best[len(leaves)] = min(error, best.get(len(leaves), math.inf))
    for budget in range(min(best), max(best) + 3):
        wanted = min(error for count, error in best.items() if count <= budget)
        assert float(optimal_errors(errors, tree, budget)) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="below the"):
        optimal_errors(errors, tree, min(best) - 1)
    with pytest.raises(ValueError, match="domain that divides"):
        optimal_errors(errors, Tree((7,) * len(shape), sizes), 10)


def test_the_share_of_the_change_inside_the_chosen_blocks():
    tree = Tree((8, 8), ((2, 2), (1, 1)))
    change = torch.zeros(2, 1, 1, 8, 8)
    change[0, ..., :2, :2] = 2.0  # the first block: 16 of 16
    change[1] = 1.0
    scores = torch.arange(16, 0, -1.0).expand(2, 16)
    assert energy_share(change, scores, tree, 0.25).tolist() == [1.0, 0.25]
    assert energy_share(change, -scores, tree, 0.25).tolist() == [0.0, 0.25]


@pytest.mark.slow
def test_the_benchmark_of_indicators(tmp_path, capsys, drawn):
    """Every method on one small set: nothing beats the optimal tree at equal cells per sample."""
    from adaptok.evaluation.bench import indicators

    small = ["--sets", "gray_scott_reaction_diffusion", "--resolution", "32"]
    small += ["--trajectories", "1", "--photographs", "0"]
    indicators.main([str(tmp_path), *small])
    content = json.loads((tmp_path / "indicators.json").read_text())
    rows = {row["method"]: row for row in content["rows"]}
    names = adaptok.TOKENIZERS.names()
    assert {*names} - {"csm", "composed", "dart", "given"} <= {*rows}
    scores = {*adaptok.INDICATORS.names()} - {"near_best"} | {"near_best 0", "near_best 1"}
    assert {f"{name}, budget" for name in scores} <= {*rows}
    for name in [*(n for n in names if n in ("iap", "near_best", "random")), "oracle"]:
        for column in ("field 0", "field 1", "change 0", "change 1"):
            assert rows[name][column] >= 0.999
    assert rows["oracle"]["change 0"] < 1.1 * rows["near_best"]["change 0"]
    assert rows["oracle"]["25 %"] >= rows["gradient, budget"]["25 %"] > 0.25
    assert len(content["sets"]) == len(content["rows"])
    assert (tmp_path / "indicators.png").read_bytes().startswith(b"\x89PNG")
    assert "oracle" in capsys.readouterr().out
