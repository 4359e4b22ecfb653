"""Pictures: what is drawn is where the cells are; every kind of figure can be written."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from PIL import Image
from sampled import sampled

from adaptok import plots
from adaptok.tokenizers.tree import cells_from_score


def tiling(*space, budget=40, batch=2):
    score = torch.rand(batch, *space)
    return cells_from_score(score, min_size=2, max_size=8, budget=budget)


def outlines(ax):
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    return np.stack(lines.get_segments())  # (n, 5, 2), x to the right and y up


def test_outlines_are_the_cells_of_the_sample():
    cells = tiling(16, 32)
    _, ax = plt.subplots()
    count = plots.draw_cells(ax, cells, sample=1)
    start, end = cells.cu_seqlens[1:].tolist()
    assert count == end - start
    low, extent = outlines(ax).min(1), np.ptp(outlines(ax), axis=1)
    assert (low == cells.origin[start:end, 1:].numpy()).all()
    assert (extent == cells.size[start:end, 1:].numpy()).all()
    plt.close("all")


def shown_at(ax, x, y):
    """The value that a picture shows at a place, by its pixels and extent."""
    image = ax.images[0]
    left, right, low, high = image.get_extent()
    pixels = image.get_array() if image.origin == "lower" else image.get_array()[::-1]
    row, column = (y - low) / (high - low), (x - left) / (right - left)
    return pixels[int(row * len(pixels)), int(column * pixels.shape[1])]


def test_every_picture_has_x_to_the_right_and_y_up():
    field, cells = np.arange(8.0 * 4).reshape(8, 4), tiling(8, 4, budget=4, batch=1)
    space = np.stack([field, field - 99], -1)
    figures = [
        plots.cells_figure(field, {"a": cells}, title="t"),
        plots.panels_figure({"row": {"column": field}}),
        plots.prediction_figure(field[None], field[None], ["p"]),
        plots.trajectory_figure({"p": field[None]}, [0.0]),
        plots.methods_figure(field, {"a": cells}),
        plots.rollout_fields_figure(field[None, None], 0 * field[None, None], ["p"]),
        plots.error_maps_figure(field[None, None], 2 * field[None, None], ["p"]),
        plots.panels_figure({"row": {"column": space}}, cut=plots.Cut(2, 0)),
    ]
    for figure in figures:
        ax = next(ax for ax in figure.axes if ax.images and ax.get_xlabel())
        assert (ax.get_xlabel(), ax.get_ylabel().split("\n")[-1]) == ("x", "y")
        assert (ax.get_xlim(), ax.get_ylim()) == ((0, 8), (0, 4))
        assert list(ax.get_xticks()) == [0, 4, 8]
        for x, y in ((0, 0), (7, 0), (0, 3), (5, 2)):
            assert shown_at(ax, x + 0.5, y + 0.5) == field[x, y]
    plt.close("all")


def test_an_image_has_its_first_row_on_top():
    image = np.arange(4.0 * 8).reshape(4, 8)
    cells = tiling(4, 8, budget=4, batch=1)
    ax = plots.cells_figure(image, {"": cells}, image=True).axes[0]
    assert ax.get_ylim() == (4, 0)
    assert shown_at(ax, 6.5, 1.5) == image[1, 6]
    assert (outlines(ax).min(1)[:, ::-1] == cells.origin[:, 1:].numpy()).all()
    plt.close("all")


def test_cells_beyond_the_border_do_not_shrink_the_picture():
    cells = tiling(16, 16, batch=1)
    moved = cells.origin - torch.tensor([0, 4, 4]).int()
    shifted = dataclasses.replace(cells, origin=moved)
    ax = plots.cells_figure(np.eye(16), {"": shifted}).axes[0]
    ax.figure.canvas.draw()
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 16), (0, 16))
    plt.close("all")


@pytest.mark.parametrize("place", [(1, 5, 2), (6, 0, 9)])
def test_the_plane_of_the_largest_score_is_shown_and_named(place):
    score = np.zeros((8, 6, 10))
    score[place] = 1
    cuts = plots.cuts_of(score)
    assert {cut.axis: cut.index for cut in cuts} == dict(enumerate(place))
    figure = plots.panels_figure({"": {"p": score, "q": score}}, cut=cuts[0])
    assert str(cuts[0]) in figure.get_suptitle()
    assert figure.axes[0].images[0].get_array().max() == 1
    figure = plots.cells_figure(score, {"": tiling(8, 6, 10, batch=1)})  # by itself
    names = {ax.get_ylabel().split("\n")[0] for ax in figure.axes if ax.images}
    assert names == {f"plane {cut}" for cut in cuts}
    plt.close("all")


def test_frames_whose_cells_differ_are_all_drawn():
    score = torch.rand(3, 16, 16)
    frames = [cells_from_score(s[None], min_size=2, max_size=8, budget=40) for s in score]
    number = [len(cells) for cells in frames]
    origin = [c.origin + torch.tensor([i, 0, 0]) for i, c in enumerate(frames)]
    moving = dataclasses.replace(
        frames[0],
        origin=torch.cat(origin).int(),
        size=torch.cat([c.size for c in frames]),
        level=torch.cat([c.level for c in frames]),
        cu_seqlens=torch.tensor([0, sum(number)]).int(),
        max_seqlen=sum(number),
        lengths=None,
        shape=(3, 16, 16),
    )
    figure = plots.cells_figure(score[2].numpy(), {"": moving}, earlier=score[:2].numpy())
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_ylabel().split("\n")[0] for ax in panels] == ["2 before", "1 before", "now"]
    assert [len(outlines(ax)) for ax in panels] == number
    assert panels[0].get_title() == f"{sum(number)} tokens in 3 frames"
    for ax, cells, field in zip(panels, frames, score, strict=True):
        assert (outlines(ax).min(1) == cells.origin[:, 1:].numpy()).all()
        assert shown_at(ax, 3.5, 9.5) == pytest.approx(float(field[3, 9]))
    plt.close("all")


def test_methods_stand_side_by_side_with_their_sizes():
    few, many = tiling(16, 16, budget=10, batch=1), tiling(16, 16, budget=40, batch=1)
    figure = plots.methods_figure(np.eye(16), {"few": few, "many": many}, title="t")
    panels = [ax for ax in figure.axes if ax.images and ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["few\n10 tokens", "many\n40 tokens"]
    bars = [ax for ax in figure.axes if ax.patches and ax.get_xlabel() == "size of cells"]
    for ax, cells in zip(bars, (few, many), strict=True):
        sizes = [int(label.get_text()) for label in ax.get_xticklabels()]
        counts = [int((cells.size[:, 1] == size).sum()) for size in sizes]
        assert [bar.get_height() for bar in ax.patches] == counts
    plt.close("all")


def test_many_fields_continue_at_the_right():
    fields = np.random.rand(5, 4, 4)
    figure = plots.prediction_figure(fields, fields, [f"f{i}" for i in range(5)])
    width, height = figure.get_size_inches()
    assert width > height
    drawn = [ax.get_ylabel().split("\n")[0] for ax in figure.axes if ax.get_ylabel()]
    assert {f"f{i}" for i in range(5)} <= {*drawn}
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


@pytest.mark.parametrize("space", sampled([(16, 32), (32,), (8, 8, 16)], 3))
def test_every_figure_in_every_dimension(space, tmp_path, drawn):
    field = np.random.default_rng(0).normal(size=(2, *space))
    cells = tiling(*space, budget=40, batch=1)
    figures = {
        "cells": plots.cells_figure(field[0], {"a": cells, "b": cells}, title="t"),
        "methods": plots.methods_figure(field[0], {"a": cells, "b": cells}),
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
    assert left.lines[0].get_xydata().tolist() == [[1, 4.0], [3, 0.5]]  # steps made
    assert right.lines[1].get_xydata().tolist() == [[4, 0.7]]
    (legend,) = figure.legends  # beside the curves
    assert [t.get_text() for t in legend.get_texts()] == ["a", "b"]
    figure = plots.learning_curve_figure(
        {"both": [tmp_path / "a", tmp_path / "b"], "c": tmp_path / "a"}
    )
    first, second, other = figure.axes[1].lines
    assert first.get_color() == second.get_color() != other.get_color()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["both", "c"]
    plt.close("all")


def test_a_learning_curve_shows_persistence_of_its_split_and_no_empty_panel(tmp_path):
    text = "step,steps_made,val/persistence,val/vrmse\n2,3,0.3,0.7\n5,6,0.3,0.6\n"
    (tmp_path / "metrics.csv").write_text(text)
    (ax,) = plots.learning_curve_figure(tmp_path).axes
    curve, persistence = ax.lines
    assert curve.get_xydata().tolist() == [[3, 0.7], [6, 0.6]]
    assert set(persistence.get_ydata()) == {0.3}
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
    assert (image.get_array() == values[1].T).all()
    assert image.get_clim() == (0, values.max())
    assert axes[1, 0].get_ylabel() == "t = 0.5\ny"
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
def test_tests_that_do_not_ask_for_pictures_get_one_dot(tmp_path):
    """Rendering them takes longer than the runs that leave them."""
    path = plots.save(plt.figure(), tmp_path / "picture.png")
    with Image.open(path) as image:
        assert image.size == (1, 1)


@pytest.mark.slow
def test_the_backend_stays_the_users():
    """A library chooses neither the backend nor logging levels, and needs no pyplot."""
    code = (
        "import logging, sys, matplotlib; matplotlib.use('svg'); from adaptok import plots; "
        "import adaptok.plots.rollouts; level = logging.getLogger('matplotlib.animation').level; "
        "sys.exit(matplotlib.get_backend() != 'svg' or level != logging.NOTSET)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
