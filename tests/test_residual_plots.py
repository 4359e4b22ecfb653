"""Spectra of residuals as evaluation reports them, and their pictures."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import small_runs
import torch

from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.evaluation.evaluate import evaluate
from adaptok.evaluation.results import markdown
from adaptok.evaluation.spectra import patch_harmonics, residual_spectrum
from adaptok.plots import pictures
from adaptok.plots.residuals import binned_errors_figure, residual_spectra_figure

SETTINGS = [{"patch_size": 4}, {"name": "cyclic", "settings": [{"patch_size": p} for p in (1, 4)]}]


@pytest.fixture(scope="module")
def parts():
    csm = ["tokenizer=csm", "tokenizer.patch_sizes=[1,4]", "decoder=modulated", "history=2"]
    config = plain(compose("train", [*small_runs.data(), *small_runs.SIZE, *csm]))
    data = build_data(config)
    torch.manual_seed(0)
    return build_surrogate(config, data.info), data


@pytest.fixture(scope="module")
def results(parts):
    return evaluate(*parts, settings=SETTINGS, steps=3, device="cpu")


def test_spectra_of_rollouts_by_hand(parts, results):
    surrogate, data = parts
    batch = next(iter(data.rollout_loader("test", 3)))
    known = {"constants": batch["constants"], "boundary": batch["boundary"]}
    out = surrogate.rollout(batch["input"], 3, patch_size=4, **known)
    std = data.info.std.view(-1, 1, 1)
    spectrum = residual_spectrum(out / std, batch["target"] / std, 2)
    ours = results.settings[0].rollout
    waves, power = ours.residual_spectrum.values()
    assert waves == pytest.approx(spectrum.wavenumber.tolist())
    np.testing.assert_allclose(power, spectrum.power.mean((0, 2)), rtol=1e-4, atol=1e-9)
    rises = patch_harmonics(out, batch["target"], 2, 4)
    assert ours.patch_harmonics == pytest.approx(rises.log().mean((0, 2)).exp().tolist(), 1e-3)
    assert results.patch_size == [4, 4]


def test_another_period_and_periods_that_do_not_fit(parts):
    given = evaluate(*parts, settings=SETTINGS[:1], steps=1, device="cpu", patch_size=2)
    row = given.settings[0].rollout
    assert given.patch_size == [2, 2]
    assert len(row.patch_harmonics) == 1
    wide = evaluate(*parts, settings=SETTINGS[:1], steps=1, device="cpu", patch_size=8)
    assert wide.settings[0].rollout.patch_harmonics is None  # two patches per axis
    assert "harmonics" not in markdown(wide)
    fine = evaluate(*parts, settings=[{"patch_size": 1}], steps=1, device="cpu")
    assert fine.settings[0].rollout.patch_size == [1, 1]  # of the cells in use, not the coarsest
    assert fine.settings[0].rollout.patch_harmonics is None


def test_tables_have_the_bands_and_the_harmonics(results):
    text = markdown(results)
    assert "| low | middle |" in " ".join(text.split())
    assert "| 4 x 4 |" in " ".join(text.split())
    for row in results.settings:
        assert f"{row.rollout.patch_harmonics[-1]:.4f}" in text
        assert f"{row.spectral_nmse[2]:.4f}" in text
    json.dumps(results.to_json(), allow_nan=False)


def test_the_figure_of_binned_errors_shows_every_band_and_setting(results):
    rolled = {row.label: row.rollout.to_json() for row in results.settings}
    figure = binned_errors_figure(rolled)
    assert [ax.get_title().split()[0] for ax in figure.axes] == ["low", "middle", "high"]
    for band, ax in enumerate(figure.axes):
        for line, rollout in zip(ax.lines, rolled.values(), strict=True):
            shown = [step[band] for step in rollout["spectral_nmse"]]
            np.testing.assert_allclose(line.get_ydata(), shown)
    plt.close(figure)


def test_the_figure_of_residuals_shows_steps_harmonics_and_the_peak(results):
    rolled = {row.label: row.rollout.to_json() for row in results.settings}
    figure = residual_spectra_figure(rolled, [4, 4], lines=2)
    for ax, rollout in zip(figure.axes, rolled.values(), strict=True):
        first, last, *marks = ax.lines
        waves, power = rollout["residual_spectrum"].values()
        np.testing.assert_allclose(first.get_xdata(), [w for w in waves if 0 < w <= 0.5])
        np.testing.assert_allclose(last.get_ydata(), power[-1][1 : 1 + len(last.get_xdata())])
        assert [line.get_xdata()[0] for line in marks] == [0.25, 0.5]
        assert f"{rollout['patch_harmonics'][-1]:.2f}" in ax.get_title()
    plt.close(figure)


def test_many_settings_take_several_rows(results):
    rollout = results.settings[0].rollout.to_json()
    figure = residual_spectra_figure({str(i): rollout for i in range(6)}, [4, 4])
    assert len(figure.axes) == 6
    assert len({round(ax.get_position().y0, 2) for ax in figure.axes}) == 2
    plt.close(figure)


def test_diverged_steps_and_missing_harmonics_can_be_drawn(results):
    rollout = dict(results.settings[0].rollout.to_json())
    rollout["spectral_nmse"] = [*rollout["spectral_nmse"][:2], [None] * 3]
    spectrum = rollout["residual_spectrum"]
    bands = [None] * len(spectrum["wavenumber"])
    rollout["residual_spectrum"] = {**spectrum, "power": [*spectrum["power"][:2], bands]}
    for peaks in (None, [1.0, 2.0, None]):
        rollout["patch_harmonics"] = peaks
        for figure in (
            binned_errors_figure({"a": rollout}),
            residual_spectra_figure({"a": rollout}),
        ):
            figure.canvas.draw()
            plt.close(figure)


@pytest.mark.slow
def test_evaluation_leaves_both_pictures(parts, results, tmp_path):
    files = pictures.of_run(*parts, results, tmp_path)
    assert {"spectral_errors.png", "residual_spectra.png"} <= {file.name for file in files}
