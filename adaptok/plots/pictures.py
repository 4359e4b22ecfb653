"""Which pictures a command leaves behind; how they are drawn is in `adaptok.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adaptok import create_schedule, plots
from adaptok.cells import Cells
from adaptok.data import FieldInfo, WellData
from adaptok.evaluation.evaluate import inputs_of, rollouts
from adaptok.models.multiphysics import FieldSystem
from adaptok.models.one_step import OneStepModel
from adaptok.models.surrogate import Surrogate
from adaptok.plots.residuals import binned_errors_figure, residual_spectra_figure
from adaptok.plots.rollouts import error_maps_figure, rollout_video, spectra_figure

Batch = dict[str, Tensor]


def sample_of(data: WellData, split: str, number: int) -> Batch:
    """One sample as a batch of one.

    Raises:
        ValueError: the split has fewer samples.
    """
    dataset: Any = data.loader(split).dataset
    if not 0 <= number < len(dataset):
        raise ValueError(
            f"the {split} split has samples 0 to {len(dataset) - 1}, there is no number {number}"
        )
    return {k: v.unsqueeze(0) for k, v in dataset[number].items()}


@torch.no_grad()
def of_run(
    surrogate: OneStepModel,
    data: WellData,
    results: Mapping[str, Any],
    folder: Path,
    *,
    split: str = "test",
    video: str | None = None,
) -> list[Path]:
    """Learning curve (where there is one), prediction, cells and rollout of a run.

    Args:
        video: "gif" or "mp4": also a film of the rollout.
    """
    out = folder / "pictures"
    batch = sample_of(data, split, 0)
    settings = {row["label"]: row["controls"] for row in results["settings"]}
    first = next(iter(settings.values()))
    prediction = _predict(surrogate, batch, first)
    files = []
    if (folder / "metrics.csv").exists():
        figure = plots.learning_curve_figure(folder)
        files.append(plots.save(figure, out / "learning_curve.png"))
    truth = batch["target"][0, 0].numpy()
    figure = plots.prediction_figure(truth, prediction, data.info.fields)
    files.append(plots.save(figure, out / "prediction.png"))
    if isinstance(surrogate, (Surrogate, FieldSystem)):
        tilings = _tilings(surrogate, batch, settings)
        values = batch["input"][0, -1, 0].numpy()
        figure = plots.cells_figure(values, tilings, title=data.info.fields[0])
        files.append(plots.save(figure, out / "cells.png"))
    if "rollout" in results["persistence"]:
        curves = {row["label"]: _curve(row) for row in results["settings"]}
        curves["persistence"] = _curve(results["persistence"])
        files.append(plots.save(plots.rollout_figure(curves), out / "rollout.png"))
        rolled = {row["label"]: row["rollout"] for row in results["settings"]}
        figure = binned_errors_figure(rolled)
        files.append(plots.save(figure, out / "spectral_errors.png"))
        figure = residual_spectra_figure(rolled, results["patch_size"])
        files.append(plots.save(figure, out / "residual_spectra.png"))
        steps = len(results["persistence"]["rollout"]["mean"])
        files += of_rollout(surrogate, data, split, first, steps, out, video)
    return files


def of_rollout(
    surrogate: OneStepModel,
    data: WellData,
    split: str,
    setting: Mapping[str, Any],
    steps: int,
    folder: Path,
    video: str | None = None,
) -> list[Path]:
    """Error maps and spectra of the first trajectory of a split, and a film where one is wanted."""
    schedule = create_schedule(
        setting if "name" in setting else {"name": "fixed", "settings": [setting]}
    )
    pairs = rollouts(surrogate, data, split, schedule, steps, surrogate.mean.device)
    batch, predictions = next(iter(pairs))
    truth, prediction = batch["target"][0].numpy(), predictions[0].numpy()
    if not np.isfinite(prediction).all():
        return []  # the curves say where it diverged
    fields = data.info.fields
    files = [
        plots.save(error_maps_figure(truth, prediction, fields), folder / "error_maps.png"),
        plots.save(spectra_figure(truth, prediction, fields), folder / "spectra.png"),
    ]
    if video is not None:
        files.append(rollout_video(truth, prediction, fields, folder / f"rollout.{video}"))
    return files


def of_data(data: WellData, path: str | Path, *, rows: int = 4) -> Path:
    """The first test trajectory, t from its first frame; equal components are drawn once."""
    dataset: Any = data.rollout_loader("test").dataset
    sample = dataset[0]
    values = torch.cat([sample["input"], sample["target"]])
    chosen = torch.linspace(0, len(values) - 1, min(rows, len(values))).round().long()
    fields: dict[str, np.ndarray] = {}
    for name, field in zip(data.info.fields, values[chosen].unbind(1), strict=True):
        if not any(np.allclose(abs(field), abs(other), atol=1e-6) for other in fields.values()):
            fields[name] = field.numpy()
    times = [sample["time_step"].item() * int(frame) for frame in chosen]
    figure = plots.trajectory_figure(fields, times, title=data.info.name)
    return plots.save(figure, path, dpi=90, small=True)


class HasRun(Protocol):
    """What `of_comparison` needs of a finished run."""

    @property
    def results(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def surrogate(self) -> OneStepModel: ...  # noqa: D102
    @property
    def data(self) -> WellData: ...  # noqa: D102
    @property
    def folder(self) -> Path: ...  # noqa: D102


@torch.no_grad()
def of_comparison(runs: Mapping[str, HasRun], folder: Path) -> list[Path]:
    """Several runs in one picture each: cells, errors, learning curves, rollouts."""
    first = next(iter(runs.values()))
    fields = first.data.info.fields
    batch = sample_of(first.data, "test", 0)
    truth = batch["target"][0, 0].numpy()
    tilings = {}
    rows = {name: {"truth": values} for name, values in zip(fields, truth, strict=True)}
    for name, run in runs.items():
        if isinstance(run.surrogate, Surrogate):
            tilings |= _tilings(run.surrogate, batch, {name: {}})
        errors = np.abs(_predict(run.surrogate, batch, {}) - truth)
        for field, error in zip(fields, errors, strict=True):
            rows[field][f"|error| of {name}"] = error
    names = [f"|error| of {name}" for name in runs]
    curves = {name: _curve(run.results["settings"][0]) for name, run in runs.items()}
    curves["persistence"] = _curve(first.results["persistence"])
    values = batch["input"][0, -1, 0].numpy()
    cells = {"cells": plots.cells_figure(values, tilings, title=fields[0])} if tilings else {}
    figures = cells | {
        "errors": plots.panels_figure(rows, positive=names, share="row"),
        "learning_curves": plots.learning_curve_figure({n: r.folder for n, r in runs.items()}),
        "rollouts": plots.rollout_figure(curves),
    }
    return [plots.save(figure, folder / f"{name}.png") for name, figure in figures.items()]


@torch.no_grad()
def of_tokens(
    surrogate: Surrogate,
    info: FieldInfo,
    batch: Batch,
    settings: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> tuple[list[Path], dict[str, int]]:
    """Field, scores and cells of one sample; returns the files and the tokens per setting.

    Args:
        settings: controls by label.
    """
    now = {name: batch["input"][0, -1, i].numpy() for i, name in enumerate(info.fields)}
    if "constants" in batch:
        now |= {n: batch["constants"][0, i].numpy() for i, n in enumerate(info.constants)}
    files = [plots.save(plots.panels_figure({"": now}, share="column"), folder / "field.png")]
    tilings = _tilings(surrogate, batch, settings)
    for name in info.fields:
        figure = plots.cells_figure(now[name], tilings, title=name)
        files.append(plots.save(figure, folder / f"cells_{name}.png"))
    files += _scores(surrogate, info, batch, folder)
    return files, {label: len(cells) for label, cells in tilings.items()}


def _scores(surrogate: Surrogate, info: FieldInfo, batch: Batch, folder: Path) -> list[Path]:
    """The aggregate score and that of every channel and frame, where the tokenizer scores."""
    tokenizer: Any = surrogate.tokenizer
    if not hasattr(tokenizer, "score_map"):
        return []
    field = surrogate.scored(batch["input"], batch.get("constants"))
    known = batch["boundary"]
    total = tokenizer.score_map(field, boundary=known)[0].numpy()
    rows: dict[str, dict[str, np.ndarray]] = {"now": {"all": total}}
    maps_of = getattr(getattr(tokenizer, "indicator", None), "channel_maps", None)
    if maps_of is not None:
        maps = maps_of(field, boundary=known)[0].flatten(0, 1).numpy()
        history, fields = batch["input"].shape[1], len(info.fields)
        stride = fields + (len(info.constants) if surrogate.history_mode == "frames" else 0)
        for age in range(history):
            row = rows.setdefault(f"{age} before" if age else "now", {})
            first = (history - 1 - age) * stride
            row |= {name: maps[first + i] for i, name in enumerate(info.fields)}
        first = len(maps) - len(info.constants)
        rows["now"] |= {name: maps[first + i] for i, name in enumerate(info.constants)}
    figure = plots.panels_figure(rows, title="score", share="column", positive=[*rows["now"]])
    return [plots.save(figure, folder / "score.png")]


def _predict(surrogate: OneStepModel, batch: Batch, setting: Mapping[str, Any]) -> np.ndarray:
    """The next frame of a single sample, (c, *space)."""
    device = surrogate.mean.device
    field, known = batch["input"].to(device), inputs_of(batch, device)
    return surrogate(field, **known, **_controls(setting)).float().cpu()[0, 0].numpy()


def _tilings(
    surrogate: Surrogate | FieldSystem, batch: Batch, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Cells]:
    device = surrogate.mean.device
    known = inputs_of(batch, device)
    return {
        label: surrogate.cells(batch["input"].to(device), **known, **_controls(setting))
        for label, setting in settings.items()
    }


def _controls(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule is drawn as built; a setting as it is."""
    return {} if "name" in setting else dict(setting)


def _curve(row: Mapping[str, Any]) -> list[float]:
    return [float("nan") if v is None else v for v in row["rollout"]["mean"]]
