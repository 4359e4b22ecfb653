"""One ladder of cells at a budget, and what a run says about the tokens it got."""

from __future__ import annotations

import math
import re

import pytest
import small_runs
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptok import at_budget, create_tokenizer
from adaptok.cli import main
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.evaluation.budgets import cells_by_size, reached
from adaptok.evaluation.results import sizes_cell
from adaptok.tasks.surrogate import config_at_budget
from adaptok.tokenizers.ladder import ladder, with_ladder

MADE = {"in_channels": 2, "dim": 24}


@given(
    st.integers(1, 3).flatmap(lambda ndim: st.tuples(*[st.integers(1, 300)] * ndim)),
    st.floats(1, 5000),
)
def test_the_ladder_keeps_its_promise(space, budget):
    sizes = ladder(space, budget)
    assert sizes == [sizes[0] << i for i in range(len(sizes))]
    assert sizes[-1] <= min(space)

    def count(size):
        return math.prod(math.ceil(n / size) for n in space)

    assert count(sizes[0]) >= 4 * budget or sizes[0] == 1
    assert 2 * sizes[0] > min(space) or count(2 * sizes[0]) < 4 * budget
    assert count(sizes[-1]) <= budget / 4 or 2 * sizes[-1] > min(space)
    assert len(sizes) == 1 or sizes[-1] == sizes[0] or count(sizes[-1] // 2) > budget / 4


@pytest.mark.parametrize("shape", [(45, 70), (16, 12, 8)])
def test_sizes_that_would_fit_do(shape):
    """Also for fewer tokens than the ladder reaches: cells may be larger than the domain."""
    field = torch.randn(1, 1, 2, *shape)
    made = create_tokenizer("iap", ndim=len(shape), **MADE, min_size=2, max_size=2)
    for budget in (1, 2, 3, 5, 20):
        with pytest.raises(ValueError, match="would fit") as refused:
            at_budget(made, budget, field)
        ends = {k: int(v) for k, v in re.findall(r"tokenizer\.(m\w+)=(\d+)", str(refused.value))}
        again = create_tokenizer("iap", ndim=len(shape), **MADE, **ends)
        assert at_budget(again, budget, field) == {"budget": budget}


def test_sizes_that_are_typed_win():
    space, budget = (64, 64), 64
    for part in ({"name": "iap", "max_size": 8}, {"name": "matey", "sizes": [2, 8]}, "uniform"):
        assert with_ladder(part, space, budget) == part
    assert with_ladder("iap", space, budget) == {"name": "iap", "min_size": 4, "max_size": 16}
    assert with_ladder("matey", space, 256) == {"name": "matey", "sizes": [2, 4, 8]}
    paper = {"name": "matey", "legacy_positions": True, "sizes": None}
    assert with_ladder(paper, space, 256)["sizes"] == [2, 8]
    one = with_ladder({"name": "apt", "thresholds": [2.0]}, space, 256)
    assert one == {"name": "apt", "thresholds": [2.0], "min_size": 2}
    many = with_ladder({"name": "apt", "thresholds": [5.5, 4.0]}, (200,), 40)["thresholds"]
    assert many[:2] == [5.5, 4.0]
    assert min(many) > 0
    assert len(many) == 5
    assert with_ladder("rlt", (45, 70), 64) == "rlt"  # its size is found: 7, no power of two
    marking = {"name": "threshold", "thresholds": [3.0, 2.0, 1.0]}
    composed = {"name": "composed", "marking": marking}
    assert with_ladder(composed, space, budget) == composed
    ready = create_tokenizer("iap", ndim=2, **MADE)
    assert with_ladder(ready, space, budget) is ready


@pytest.mark.parametrize("name", ["iap", "apt", "matey", "composed"])
@pytest.mark.parametrize(
    ("space", "budget"), [((64, 64), 64), ((64, 64), 256), ((45, 70), 120), ((200,), 40)]
)
def test_every_tokenizer_has_a_choice_at_a_budget(name, space, budget):
    x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in space], indexing="ij")
    bumps = [torch.exp(-30 * sum((a - c) ** 2 for a in x)) for c in (-0.3, 0.2, 0.5, 0.6)]
    field = torch.stack(bumps).unflatten(0, (2, 1, 2))
    tokenizer = create_tokenizer(with_ladder(name, space, budget), ndim=len(space), **MADE)
    cells = tokenizer.cells(field, **at_budget(tokenizer, budget, field))
    assert sum(count > 0 for count in cells_by_size(cells).values()) >= 2
    assert 0.7 * budget <= len(cells) / 2 <= budget  # ties of an entropy split together


def at(*overrides):
    without = [o for o in small_runs.train() if not o.startswith("tokenizer")]
    config = plain(compose("train", [*without, *overrides]))
    data = build_data(config)
    return config_at_budget(config, data), data


def test_a_run_says_what_became_of_its_budget(capsys):
    config, data = at("tokenizer=iap", "budget=16")
    assert (config["tokenizer"]["min_size"], config["tokenizer"]["max_size"]) == (2, 8)
    assert capsys.readouterr().out == ""
    at("tokenizer=iap", "budget=16", "tokenizer.min_size=4", "tokenizer.max_size=8")
    line = "gives cells of one size only: this is uniform 4 (tokenizer=iap)"
    assert capsys.readouterr().out == f"budget=16 {line}\n"
    at("tokenizer=csm", "budget=16")
    assert "budget=16 became 9 tokens per sample (tokenizer=csm)" in capsys.readouterr().out
    assert reached(build_surrogate(config, data.info), data, 17) is not None


def test_a_run_says_which_knobs_its_budget_sets(capsys):
    config, _ = at("tokenizer=iap", "tokenizer.budget=12", "budget=16")
    assert config["tokenizer"]["budget"] == 16
    line = "tokenizer.budget=12 is not read: budget=16 makes it 16\n"
    assert capsys.readouterr().out == line
    at("tokenizer=uniform", "tokenizer.size=2", "budget=16")
    assert "tokenizer.size=2 is not read: budget=16 makes it 4" in capsys.readouterr().out


def test_a_baseline_ignores_a_budget(capsys):
    config, _ = at("model=fno", "budget=16")
    assert config["budget"] is None
    assert capsys.readouterr().out == "model=fno has no tokens: budget=16 is ignored\n"


@pytest.mark.slow
def test_tables_show_the_share_of_each_size(tmp_path, capsys):
    assert sizes_cell({"8": 0.25, "4x2": 0.75}) == "8: 25 %, 4x2: 75 %"
    assert sizes_cell(None) == ""
    where = [f"hydra.run.dir={tmp_path}/run", "test.steps=0"]
    assert main(["train", *small_runs.train(), *where]) == 0
    assert " %" in capsys.readouterr().out
    assert main(["report", str(tmp_path), f"out={tmp_path}/report"]) == 0
    assert "cells" in capsys.readouterr().out
