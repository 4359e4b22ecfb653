"""Films, error maps and spectra of rollouts."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib import animation
from PIL import Image

from adaptok.plots.fields import prediction_figure
from adaptok.plots.rollouts import (
    error_maps_figure,
    isotropic_spectrum,
    rollout_fields_figure,
    rollout_video,
    spectra_figure,
)
from adaptok.tokenizers.tree import cells_from_score

SPACES = [(32,), (16, 12), (8, 10, 6)]


def rollout(space, steps=3):
    truth = np.random.default_rng(0).standard_normal((steps, 2, *space))
    return truth, truth + np.linspace(0, 1, steps).reshape(-1, *[1] * (len(space) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_a_film_has_a_picture_per_step(space, tmp_path, drawn):
    path = rollout_video(*rollout(space), ["p", "u"], tmp_path / "films" / "a.gif", fps=2)
    with Image.open(path) as film:
        assert film.n_frames == 3
        assert film.info["duration"] == 500
    assert [p.name for p in path.parent.iterdir()] == ["a.gif"]
    assert not plt.get_fignums()


def test_films_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"a .gif or an .mp4, got a.avi"):
        rollout_video(*rollout((8, 8)), ["p", "u"], tmp_path / "a.avi")
    monkeypatch.setattr(animation.FFMpegWriter, "isAvailable", classmethod(lambda cls: False))
    with pytest.raises(ValueError, match="needs ffmpeg"):
        rollout_video(*rollout((8, 8)), ["p", "u"], tmp_path / "a.mp4")


@pytest.mark.skipif(not animation.FFMpegWriter.isAvailable(), reason="no ffmpeg")
def test_mp4(tmp_path):
    path = rollout_video(*rollout((16, 16)), ["p", "u"], tmp_path / "a.mp4")
    assert path.stat().st_size > 1000


def tiling(budget):
    return cells_from_score(torch.rand(1, 16, 12), min_size=2, max_size=4, budget=budget)


def test_a_still_shows_truth_prediction_and_error_over_time():
    truth, prediction = rollout((16, 12), steps=9)
    cells = [tiling(15 + 3 * i) for i in range(9)]
    figure = rollout_fields_figure(truth, prediction, ["p", "u"], columns=3, cells=cells)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in panels[:3]] == ["step 1", "step 5", "step 9"]
    error = np.abs(prediction - truth)
    kinds, steps = (truth, prediction, error), (0, 4, 8)
    expected = [kind[step, i] for i in range(2) for kind in kinds for step in steps]
    for ax, values in zip(panels, expected, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), values.T)
    assert {ax.images[0].get_clim() for ax in panels[:6]} == {panels[0].images[0].get_clim()}
    assert panels[6].images[0].get_clim() == (0, 1)  # step 1 has no error
    assert panels[7].images[0].get_clim()[1] == pytest.approx(error[4, 0].max())
    assert not panels[1].collections
    for row in (1, 2):
        for ax, step in zip(panels[3 * row :], (0, 4, 8), strict=False):
            assert len(ax.collections[0].get_segments()) == len(cells[step])
    plt.close(figure)


def test_error_maps_show_the_error_at_the_named_steps():
    truth, prediction = rollout((16, 12), steps=9)
    figure = error_maps_figure(truth, prediction, ["p", "u"], columns=3)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in panels[:3]] == ["step 1", "step 5", "step 9"]
    shown = panels[4].images[0].get_array()
    np.testing.assert_allclose(shown, np.abs(prediction - truth)[4, 1].T)
    tops = [ax.images[0].get_clim()[1] for ax in panels]
    assert tops[1] < tops[2]  # a scale of their own: errors grow
    plt.close(figure)


@pytest.mark.parametrize("space", SPACES)
def test_the_spectrum_sums_to_the_mean_square(space):
    values = np.random.default_rng(0).standard_normal((2, *space))
    axes = tuple(range(1, values.ndim))
    np.testing.assert_allclose(isotropic_spectrum(values).sum(1), (values**2).mean(axes))


def test_one_wave_is_in_one_shell():
    x = np.arange(32) / 32
    values = np.cos(2 * np.pi * (3 * x[:, None] + 4 * x))[None]
    spectrum = isotropic_spectrum(values)[0]
    assert spectrum[5] == pytest.approx(0.5)  # 3² + 4² = 5²
    assert spectrum.sum() == pytest.approx(0.5)


@pytest.mark.parametrize("space", SPACES)
def test_spectra_have_a_line_for_truth_and_one_for_prediction(space):
    figure = spectra_figure(*rollout(space), ["p", "u"])
    assert [len(ax.lines) for ax in figure.axes] == [4, 4]
    first = figure.axes[0].lines
    np.testing.assert_allclose(first[0].get_ydata(), first[1].get_ydata())  # no error at step 1
    plt.close(figure)


def test_spectra_end_where_round_off_begins():
    smooth = np.sin(2 * np.pi * np.arange(64) / 64)[None, None].repeat(2, 0)
    figure = spectra_figure(smooth, smooth, ["u"], title="budget=16")
    (ax,) = figure.axes
    assert 1e-15 < ax.get_ylim()[0] < 1e-14 < ax.get_ylim()[1]
    assert figure.get_suptitle() == "budget=16"
    rough, other = rollout((32,))
    (ax, _) = spectra_figure(rough, other, ["p", "u"]).axes
    assert ax.get_ylim()[0] > 1e-6


def test_the_truth_stands_behind_a_predicted_line():
    truth, prediction = rollout((32,))
    for figure in (
        rollout_fields_figure(truth, prediction, ["p", "u"]),
        prediction_figure(truth[1], prediction[1], ["p", "u"]),
    ):
        drawn = [line.get_ydata() for ax in figure.axes for line in ax.lines]
        for field in (0, 1):
            assert sum(np.array_equal(y, truth[1, field]) for y in drawn) == 2
