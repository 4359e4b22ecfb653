"""Pictures: what is drawn is where the cells are; every kind of figure can be written."""

from __future__ import annotations

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from adaptok import plots
from adaptok.tokenizers.tree import cells_from_score


def tiling(*space, budget=40, batch=2):
    score = torch.rand(batch, *space)
    return cells_from_score(score, min_size=2, max_size=8, budget=budget)


def outlines(ax):
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    return np.stack(lines.get_segments())  # (n, 5, 2), x to the right and y down


def test_outlines_are_the_cells_of_the_sample():
    cells = tiling(16, 32)
    _, ax = plt.subplots()
    count = plots.draw_cells(ax, cells, sample=1)
    start, end = cells.cu_seqlens[1:].tolist()
    assert count == end - start
    low = outlines(ax).min(1)[:, ::-1]  # first space axis down
    extent = np.ptp(outlines(ax), axis=1)[:, ::-1]
    assert (low == cells.origin[start:end, 1:].numpy()).all()
    assert (extent == cells.size[start:end, 1:].numpy()).all()
    plt.close("all")


def test_a_cut_through_3d_shows_the_cells_it_meets():
    cells = tiling(8, 8, 16, budget=60, batch=1)
    _, ax = plt.subplots()
    plots.draw_cells(ax, cells, cut=(2, 5))
    areas = np.ptp(outlines(ax), axis=1).prod(1)
    assert areas.sum() == 8 * 8  # the cut of a tiling is a tiling of the plane
    plt.close("all")


def test_four_thousand_cells_are_one_collection():
    cells = tiling(256, 256, budget=4096, batch=1)
    _, ax = plt.subplots()
    assert plots.draw_cells(ax, cells) == len(cells) >= 4093
    assert len(ax.collections) == 1
    plt.close("all")


def test_colours_say_whether_a_field_has_a_sign():
    (low, high), cmap = plots.color_scale(np.array([-1.0, 2.0]))
    assert (cmap, -low) == ("RdBu_r", high)
    assert high == pytest.approx(2, rel=0.01)
    assert plots.color_scale(np.array([1.0, 2.0])) == ((1.0, 2.0), "viridis")
    assert plots.color_scale(np.zeros(3)) == ((0.0, 1.0), "viridis")


@pytest.mark.parametrize("space", [(32,), (16, 32), (8, 8, 16)])
def test_every_figure_in_every_dimension(space, tmp_path, drawn):
    field = np.random.default_rng(0).normal(size=(2, *space))
    cells = tiling(*space, budget=40, batch=1)
    figures = {
        "cells": plots.cells_figure(field[0], {"a": cells, "b": cells}, title="t"),
        "prediction": plots.prediction_figure(field, field + 0.1, ["p", "q"]),
        "holes": plots.panels_figure(
            {"now": {"a": field[0], "b": field[1]}, "then": {"b": field[0]}}
        ),
    }
    for name, figure in figures.items():
        path = plots.save(figure, tmp_path / "new" / f"{name}.png")
        assert path.stat().st_size > 5000
    assert not plt.get_fignums()


def test_panels_of_a_row_share_colours_but_errors_do_not():
    values = {"truth": np.eye(4), "prediction": 3 * np.eye(4), "|error|": 2 * np.eye(4)}
    figure = plots.panels_figure({"p": values}, positive=["|error|"])
    limits = {ax.get_title(): ax.images[0].get_clim() for ax in figure.axes if ax.images}
    assert limits == {"truth": (0, 3), "prediction": (0, 3), "|error|": (0, 2)}
    plt.close("all")


def test_learning_curves_of_resumed_and_several_runs(tmp_path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.csv").write_text("step,train/loss,val/vrmse\n2,0.5,\n3,,0.7\n")
    (tmp_path / "a" / "metrics_before_1.csv").write_text("step,train/loss\n0,4.0\n")
    figure = plots.learning_curve_figure({run: tmp_path / run for run in ("a", "b")})
    left, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[0, 4.0], [2, 0.5]]
    assert right.lines[1].get_xydata().tolist() == [[3, 0.7]]
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["a", "b"]
    figure = plots.learning_curve_figure(
        {"both": [tmp_path / "a", tmp_path / "b"], "c": tmp_path / "a"}
    )
    first, second, other = figure.axes[1].lines
    assert first.get_color() == second.get_color() != other.get_color()
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["both", "c"]
    many = {str(i): tmp_path / "a" for i in range(9)}
    assert plots.learning_curve_figure(many).legends  # outside
    plt.close("all")


def test_rollout_curves_survive_divergence():
    figure = plots.rollout_figure(
        {"iap": [0.1, 50.0, float("nan")], "persistence": [0.3, 0.4, 0.5]}
    )
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"
    assert ax.lines[1].get_linestyle() == "--"
    plt.close("all")


def test_a_trajectory_is_drawn_upright_with_one_range_per_field(tmp_path, drawn):
    values = np.arange(2 * 8 * 4, dtype=float).reshape(2, 8, 4)
    figure = plots.trajectory_figure({"a": values, "b": -values}, [0.0, 0.5], title="set")
    axes = np.array(figure.axes).reshape(2, 2)  # rows: times
    image = axes[1, 0].images[0]
    assert (image.get_array() == values[1].T[::-1]).all()  # x to the right, y up
    assert image.get_clim() == (0, values.max())
    assert axes[1, 0].get_ylabel() == "t = 0.5"
    assert axes[0, 1].get_title().startswith("b\n-63 to")
    sizes = {}
    for small in (False, True):
        figure = plots.trajectory_figure({"a": np.random.rand(2, 16, 16, 16)}, [0.0, 1.0])
        sizes[small] = plots.save(figure, tmp_path / "3d.png", small=small).stat().st_size
    assert sizes[True] < sizes[False]
    plots.save(
        plots.trajectory_figure({"a": np.random.rand(2, 16)}, [0.0, 1.0]), tmp_path / "1d.png"
    )
    plt.close("all")


@pytest.mark.slow
def test_the_backend_stays_the_users():
    """A library chooses neither the backend nor logging levels, and needs no pyplot."""
    code = (
        "import logging, sys, matplotlib; matplotlib.use('svg'); from adaptok import plots; "
        "import adaptok.plots.rollouts; level = logging.getLogger('matplotlib.animation').level; "
        "sys.exit(matplotlib.get_backend() != 'svg' or level != logging.NOTSET)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
