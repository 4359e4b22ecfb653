"""Which pictures a command leaves behind; how they are drawn is in `adaptok.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from adaptok import create_schedule, plots
from adaptok.cells import Cells
from adaptok.data import FieldInfo, WellData
from adaptok.evaluation.evaluate import inputs_of, rollouts
from adaptok.evaluation.results import FinishedRun, Results, Rollout
from adaptok.models.multiphysics import FieldSystem
from adaptok.models.one_step import OneStepModel
from adaptok.models.surrogate import Surrogate
from adaptok.tokenizers.tree import TreeTokenizer

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
    model: OneStepModel,
    data: WellData,
    results: Results,
    folder: Path,
    *,
    split: str = "test",
    video: str | None = None,
) -> list[Path]:
    """Draws a run: learning curve (if there is one), prediction, cells, rollout.

    Args:
        video: "gif" or "mp4": also a film of the rollout.
    """
    out = folder / "pictures"
    batch = sample_of(data, split, 0)
    settings = {row.label: row.controls for row in results.settings}
    first = next(iter(settings.values()))
    figures = {}
    if (folder / "metrics.csv").exists():
        figures["learning_curve"] = plots.learning_curve_figure(folder)
    truth, prediction = batch["target"][0, 0].numpy(), _predict(model, batch, first)
    figures["prediction"] = plots.prediction_figure(truth, prediction, data.info.fields)
    if isinstance(model, (Surrogate, FieldSystem)):
        tilings = _tilings(model, batch, settings)
        name, values = followed(model, data.info, batch)
        figures["cells"] = plots.cells_figure(values, tilings, title=name)
    if results.persistence.rollout is None:
        return _save(figures, out)
    rolled = {row.label: row.rollout for row in results.settings if row.rollout is not None}
    curves = {**rolled, "persistence": results.persistence.rollout}
    plain = {label: rollout.to_json() for label, rollout in rolled.items()}
    figures |= {
        "rollout": plots.rollout_figure({label: _curve(r) for label, r in curves.items()}),
        "spectral_errors": plots.binned_errors_figure(plain),
        "residual_spectra": plots.residual_spectra_figure(plain, results.patch_size),
    }
    steps = len(results.persistence.rollout.mean)
    return _save(figures, out) + of_rollout(model, data, split, first, steps, out, video)


def _save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    return [plots.save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def of_rollout(
    model: OneStepModel,
    data: WellData,
    split: str,
    setting: Mapping[str, Any],
    steps: int,
    folder: Path,
    video: str | None = None,
) -> list[Path]:
    """Draws error maps and spectra of a split's first trajectory, and a film if `video` is set."""
    config = setting if "name" in setting else {"name": "fixed", "settings": [setting]}
    pairs = rollouts(model, data, split, create_schedule(config), steps, model.mean.device)
    batch, predictions = next(iter(pairs))
    truth, prediction = batch["target"][0].numpy(), predictions[0].numpy()
    if not np.isfinite(prediction).all():
        return []  # the curves say where it diverged
    fields = data.info.fields
    figures = {
        "error_maps": plots.error_maps_figure(truth, prediction, fields),
        "spectra": plots.spectra_figure(truth, prediction, fields),
    }
    files = _save(figures, folder)
    if video is not None:
        files.append(plots.rollout_video(truth, prediction, fields, folder / f"rollout.{video}"))
    return files


def of_data(data: WellData, path: str | Path, *, rows: int = 4) -> Path:
    """Draws the first test trajectory, t from its first frame; equal components are drawn once."""
    dataset: Any = data.rollout_loader("test").dataset
    sample = dataset[0]
    values = torch.cat([sample["input"], sample["target"]])
    chosen = torch.linspace(0, len(values) - 1, min(rows, len(values))).round().long()
    fields: dict[str, np.ndarray] = {}
    for name, field in zip(data.info.fields, values[chosen].unbind(1), strict=True):
        close = 1e-6 * float(abs(field).max())
        if not any(np.allclose(abs(field), abs(other), atol=close) for other in fields.values()):
            fields[name] = field.numpy()
    times = [sample["time_step"].item() * int(frame) for frame in chosen]
    figure = plots.trajectory_figure(fields, times, title=data.info.name)
    return plots.save(figure, path, dpi=90, small=True)


@torch.no_grad()
def of_comparison(runs: Mapping[str, FinishedRun], folder: Path) -> list[Path]:
    """Draws cells, errors, learning curves and rollouts, all runs in each picture."""
    first = next(iter(runs.values()))
    fields = first.data.info.fields
    batch = sample_of(first.data, "test", 0)
    truth = batch["target"][0, 0].numpy()
    tilings, drawn = {}, None
    rows = {name: {"truth": values} for name, values in zip(fields, truth, strict=True)}
    for name, run in runs.items():
        if isinstance(run.model, Surrogate):
            tilings |= _tilings(run.model, batch, {name: {}})
            if isinstance(run.model.tokenizer, TreeTokenizer):
                drawn = followed(run.model, run.data.info, batch)
        errors = np.abs(_predict(run.model, batch, {}) - truth)
        for field, error in zip(fields, errors, strict=True):
            rows[field][f"|error| of {name}"] = error
    names = [f"|error| of {name}" for name in runs]
    curves = {name: _curve(run.results.settings[0].rollout) for name, run in runs.items()}
    curves["persistence"] = _curve(first.results.persistence.rollout)
    title, values = drawn or (fields[0], batch["input"][0, -1, 0].numpy())
    cells = {"cells": plots.cells_figure(values, tilings, title=title)} if tilings else {}
    figures = cells | {
        "errors": plots.panels_figure(rows, positive=names, share="row"),
        "learning_curves": plots.learning_curve_figure({n: r.folder for n, r in runs.items()}),
        "rollouts": plots.rollout_figure(curves),
    }
    return _save(figures, folder)


@torch.no_grad()
def of_tokens(
    model: Surrogate,
    info: FieldInfo,
    batch: Batch,
    settings: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> tuple[list[Path], dict[str, int]]:
    """Draws field, scores and cells of one sample; returns the files and the tokens per setting.

    Args:
        settings: controls by label.
    """
    now = {name: batch["input"][0, -1, i].numpy() for i, name in enumerate(info.fields)}
    if "constants" in batch:
        now |= {n: batch["constants"][0, i].numpy() for i, n in enumerate(info.constants)}
    tilings = _tilings(model, batch, settings)
    figures = {"field": plots.panels_figure({"": now}, share="column")}
    first = followed(model, info, batch)[0]
    for name in dict.fromkeys([first, *info.fields]):  # a static field only if cells follow it
        figures[f"cells_{name}"] = plots.cells_figure(now[name], tilings, title=name)
    if hasattr(model.tokenizer, "score_map"):
        figures["score"] = _scores(model, info, batch)
    return _save(figures, folder), {label: len(cells) for label, cells in tilings.items()}


def followed(
    model: Surrogate | FieldSystem, info: FieldInfo, batch: Batch
) -> tuple[str, np.ndarray]:
    """Finds the field whose score decides most where cells are, as name and newest values.

    Each channel is scored alone, with the others at 0; without an indicator it is the first field.
    """
    values = dict(zip(info.fields, batch["input"][0, -1].numpy(), strict=True))
    if "constants" in batch:
        values |= dict(zip(info.constants, batch["constants"][0].numpy(), strict=True))
    tokenizer = model.core.tokenizer if isinstance(model, FieldSystem) else model.tokenizer
    best = info.fields[0]
    if isinstance(tokenizer, TreeTokenizer):
        known = inputs_of(batch, model.mean.device)
        field = model.scored(batch["input"].to(model.mean.device), known["constants"])
        names = [*info.fields] * ((field.shape[2] - len(info.constants)) // len(info.fields))
        names += info.constants
        totals = dict.fromkeys(names, 0.0)
        for channel in _seen(model, tokenizer, field):
            alone = torch.zeros_like(field)
            alone[:, :, channel] = field[:, :, channel]
            scores, _ = tokenizer.scores(alone, boundary=known["boundary"])
            totals[names[channel]] += float(scores.sum())
        best = max(totals, key=lambda name: totals[name])
    return best, values[best]


def _seen(model: Surrogate | FieldSystem, tokenizer: TreeTokenizer, field: Tensor) -> list[int]:
    """Channels that the indicator sees; those of a system are counted without its constants."""
    if isinstance(model, FieldSystem) and tokenizer.ignore == "constants":
        return list(range(len(model.fields)))
    return tokenizer.seen(field.shape[2])


def _scores(model: Surrogate, info: FieldInfo, batch: Batch) -> Figure:
    """Draws the score, and that of every channel and frame."""
    tokenizer: Any = model.tokenizer
    field = model.scored(batch["input"], batch.get("constants"))
    known = batch["boundary"]
    total = tokenizer.score_map(field, boundary=known)[0].numpy()
    rows: dict[str, dict[str, np.ndarray]] = {"now": {"all": total}}
    maps_of = getattr(getattr(tokenizer, "indicator", None), "channel_maps", None)
    if maps_of is not None:
        maps = maps_of(field, boundary=known)[0].flatten(0, 1).numpy()
        history, fields = batch["input"].shape[1], len(info.fields)
        stride = fields + (len(info.constants) if model.history_mode == "frames" else 0)
        for age in range(history):
            row = rows.setdefault(f"{age} before" if age else "now", {})
            first = (history - 1 - age) * stride
            row |= {name: maps[first + i] for i, name in enumerate(info.fields)}
        if getattr(tokenizer, "constants", ()) == () or tokenizer.ignore != "constants":
            first = len(maps) - len(info.constants)
            rows["now"] |= {name: maps[first + i] for i, name in enumerate(info.constants)}
    return plots.panels_figure(rows, title="score", share="column", positive=[*rows["now"]])


def _predict(model: OneStepModel, batch: Batch, setting: Mapping[str, Any]) -> np.ndarray:
    """The next frame of a single sample, (c, *space)."""
    device = model.mean.device
    field, known = batch["input"].to(device), inputs_of(batch, device)
    return model(field, **known, **_controls(setting)).float().cpu()[0, 0].numpy()


def _tilings(
    model: Surrogate | FieldSystem, batch: Batch, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Cells]:
    device = model.mean.device
    known = inputs_of(batch, device)
    return {
        label: model.cells(batch["input"].to(device), **known, **_controls(setting))
        for label, setting in settings.items()
    }


def _controls(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule is drawn as built; a setting as it is."""
    return {} if "name" in setting else dict(setting)


def _curve(rollout: Rollout | None) -> list[float]:
    return [float("nan") if v is None else v for v in (rollout.mean if rollout else ())]
