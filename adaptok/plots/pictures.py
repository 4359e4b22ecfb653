"""Which pictures a command leaves behind; how they are drawn is in `adaptok.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from adaptok import create_schedule, plots
from adaptok.cells import Cells
from adaptok.data import FieldInfo, WellData
from adaptok.evaluation.evaluate import inputs_of, rollouts
from adaptok.evaluation.results import FinishedRun, Results, Rollout
from adaptok.models.multiphysics import FieldSystem
from adaptok.models.one_step import OneStepModel
from adaptok.models.surrogate import Surrogate
from adaptok.plots.samples import (
    Batch,
    Sample,
    cells_of_rollout,
    controls_of,
    earlier,
    followed,
    middle_of,
    planes_of,
    sample_of,
    tilings_of,
)
from adaptok.tokenizers.tree import TreeTokenizer

STILL = 3  # fields in the still picture of a rollout


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
    sample = sample_of(data, split, middle_of(data, split))
    batch, cuts = sample.batch, planes_of(model, sample.batch)
    settings = {row.label: row.controls for row in results.settings}
    label, first = next(iter(settings.items()))
    named = f"{label}\n" if len(settings) > 1 else ""  # pictures of one setting say which
    figures = {}
    if (folder / "metrics.csv").exists():
        figures["learning_curve"] = plots.learning_curve_figure(folder)
    truth, prediction = batch["target"][0, 0].numpy(), _predict(model, batch, first)
    look: dict[str, Any] = {"cut": cuts[0] if cuts else None}
    if isinstance(model, (Surrogate, FieldSystem)):
        tilings = tilings_of(model, batch, settings)
        look["cells"] = next(iter(tilings.values()))
        name, values = followed(model, data.info, batch)
        figures["cells"] = plots.cells_figure(
            values,
            tilings,
            title=f"{name}\n{sample.caption}",
            earlier=earlier(data.info, batch, name),
            cuts=cuts,
        )
    title = f"{named}one step to t = {sample.next:.4g}, from\n{sample.caption}"
    fields = data.info.fields
    figures["prediction"] = plots.prediction_figure(truth, prediction, fields, title=title, **look)
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
    files = of_rollout(model, data, split, first, steps, out, video, named)
    if not files:
        film = " and no film" if video is not None else ""
        print(f"no pictures{film} of the rollout: it diverged ({label})")
    return _save(figures, out) + files


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
    named: str = "",
) -> list[Path]:
    """Draws error maps and spectra of a split's first trajectory, and a film if `video` is set;
    nothing if it diverges.

    Args:
        named: line of the titles that says which setting this is.
    """
    config = setting if "name" in setting else {"name": "fixed", "settings": [setting]}
    schedule = create_schedule(config)
    pairs = rollouts(model, data, split, schedule, steps, model.mean.device)
    loaded, predictions = next(iter(pairs))
    batch = {key: value[:1] for key, value in loaded.items()}
    truth, prediction = batch["target"][0].numpy(), predictions[0].numpy()
    if not np.isfinite(prediction).all():
        return []  # the curves say where it diverged
    fields = data.info.fields
    history, half = batch["input"].shape[1], steps // 2
    window = torch.cat([batch["input"], batch["target"]], 1)[:, half : half + history]
    cuts = planes_of(model, {**batch, "input": window})
    look: dict[str, Any] = {
        "cells": cells_of_rollout(model, batch, predictions[:1], schedule),
        "cut": cuts[0] if cuts else None,
    }
    about = f"{data.info.name}, {split} trajectory 0, {_times(data, split, steps)}"
    title = f"{named}{about}"
    shown = _shown(model, data.info, batch)
    figures = {
        "rollout_fields": plots.rollout_fields_figure(
            truth[:, shown], prediction[:, shown], [fields[i] for i in shown], title=title, **look
        ),
        "error_maps": plots.error_maps_figure(
            truth, prediction, fields, title=f"{named}absolute error, {about}", **look
        ),
        "spectra": plots.spectra_figure(truth, prediction, fields, title=named.strip()),
    }
    files = _save(figures, folder)
    if video is not None:
        film = folder / f"rollout.{video}"
        files.append(plots.rollout_video(truth, prediction, fields, film, title=title, **look))
    return files


def _times(data: WellData, split: str, steps: int) -> str:
    """Says when the first rollout of a split starts, and how far a step goes."""
    subset: Any = data.rollout_loader(split, steps).dataset
    windows, sample = subset.dataset, subset[0]
    last = windows.stride * (windows.history - 1)
    return f"from t = {windows.time(0, last):.4g} in steps of {float(sample['time_step']):.3g}"


def _shown(model: OneStepModel, info: FieldInfo, batch: Batch) -> list[int]:
    """Numbers of the fields in the still picture of a rollout: first the one that cells follow."""
    order = list(range(len(info.fields)))
    if isinstance(model, (Surrogate, FieldSystem)):
        name = followed(model, info, batch)[0]
        order.sort(key=lambda i: info.fields[i] != name)
    return order[:STILL]


def of_data(data: WellData, path: str | Path, *, rows: int = 4) -> tuple[Path, str]:
    """Draws the first test trajectory, t from its first frame; returns the file, and which fields
    are not drawn because they equal others up to the sign, "" if all are.
    """
    dataset: Any = data.rollout_loader("test").dataset
    sample = dataset[0]
    values = torch.cat([sample["input"], sample["target"]])
    chosen = torch.linspace(0, len(values) - 1, min(rows, len(values))).round().long()
    fields: dict[str, np.ndarray] = {}
    equal: list[str] = []
    for name, field in zip(data.info.fields, values[chosen].unbind(1), strict=True):
        close = 1e-6 * float(abs(field).max())
        same = [k for k, v in fields.items() if np.allclose(abs(field), abs(v), atol=close)]
        if same:
            equal.append(f"{name} (as {same[0]})")
        else:
            fields[name] = field.numpy()
    note = f"not drawn, equal up to the sign: {', '.join(equal)}" if equal else ""
    times = [sample["time_step"].item() * int(frame) for frame in chosen]
    figure = plots.trajectory_figure(fields, times, title=data.info.name, note=note)
    return plots.save(figure, path, dpi=90, small=True), note


@torch.no_grad()
def of_comparison(runs: Mapping[str, FinishedRun], folder: Path) -> list[Path]:
    """Draws cells, errors, learning curves and rollouts, all runs in each picture."""
    first = next(iter(runs.values()))
    fields = first.data.info.fields
    sample = sample_of(first.data, "test", middle_of(first.data, "test"))
    batch = sample.batch
    truth = batch["target"][0, 0].numpy()
    tilings, drawn = {}, None
    rows = {name: {"truth": values} for name, values in zip(fields, truth, strict=True)}
    for name, run in runs.items():
        if isinstance(run.model, Surrogate):
            tilings |= tilings_of(run.model, batch, {name: {}})
            if isinstance(run.model.tokenizer, TreeTokenizer):
                drawn = followed(run.model, run.data.info, batch)
        errors = np.abs(_predict(run.model, batch, {}) - truth)
        for field, error in zip(fields, errors, strict=True):
            rows[field][f"|error| of {name}"] = error
    names = [f"|error| of {name}" for name in runs]
    curves = {name: _curve(run.results.settings[0].rollout) for name, run in runs.items()}
    curves["persistence"] = _curve(first.results.persistence.rollout)
    title, values = drawn or (fields[0], batch["input"][0, -1, 0].numpy())
    title = f"{title}\n{sample.caption}"
    cells = {"cells": plots.methods_figure(values, tilings, title=title)} if tilings else {}
    step = f"one step to t = {sample.next:.4g}, from\n{sample.caption}"
    figures = cells | {
        "errors": plots.panels_figure(rows, positive=names, title=step),
        "learning_curves": plots.learning_curve_figure({n: r.folder for n, r in runs.items()}),
        "rollouts": plots.rollout_figure(curves),
    }
    return _save(figures, folder)


@torch.no_grad()
def of_tokens(
    model: Surrogate,
    info: FieldInfo,
    sample: Sample,
    settings: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> tuple[list[Path], dict[str, int]]:
    """Draws field, scores and cells of one sample; returns the files and the tokens per setting.

    Args:
        settings: controls by label.
    """
    batch, cuts = sample.batch, planes_of(model, sample.batch)
    cut = cuts[0] if cuts else None
    now = {name: batch["input"][0, -1, i].numpy() for i, name in enumerate(info.fields)}
    if "constants" in batch:
        now |= {n: batch["constants"][0, i].numpy() for i, n in enumerate(info.constants)}
    tilings = tilings_of(model, batch, settings)
    figures = {
        "field": plots.panels_figure({"": now}, share="column", title=sample.caption, cut=cut)
    }
    first = followed(model, info, batch)[0]
    for name in dict.fromkeys([first, *info.fields]):  # a static field only if cells follow it
        figures[f"cells_{name}"] = plots.cells_figure(
            now[name],
            tilings,
            title=f"{name}\n{sample.caption}",
            earlier=earlier(info, batch, name),
            cuts=cuts,
        )
    if hasattr(model.tokenizer, "score_map"):
        figures["score"] = _scores(model, info, sample, cut)
    return _save(figures, folder), {label: len(cells) for label, cells in tilings.items()}


@torch.no_grad()
def of_methods(
    models: Mapping[str, Surrogate], info: FieldInfo, sample: Sample, folder: Path
) -> tuple[list[Path], dict[str, int]]:
    """Draws the cells of several tokenizers on one sample, and their sizes; returns the file and
    the tokens per tokenizer.

    Cells lie over the field that the first tokenizer with an indicator follows.
    """
    tilings: dict[str, Cells] = {}
    for name, model in models.items():
        tilings |= tilings_of(model, sample.batch, {name: {}})
    trees = [m for m in models.values() if hasattr(m.tokenizer, "score_map")]
    chosen = [*trees, *models.values()][0]
    name, values = followed(chosen, info, sample.batch)
    cuts = planes_of(chosen, sample.batch)
    title, cut = f"{name}\n{sample.caption}", cuts[0] if cuts else None
    figure = plots.methods_figure(values, tilings, title=title, cut=cut)
    return _save({"methods": figure}, folder), {k: len(cells) for k, cells in tilings.items()}


def _scores(model: Surrogate, info: FieldInfo, sample: Sample, cut: plots.Cut | None) -> Figure:
    """Draws the score, and that of every channel and frame."""
    tokenizer: Any = model.tokenizer
    batch = sample.batch
    field = model.scored(batch["input"], batch.get("constants"))
    known = batch["boundary"]
    total = tokenizer.score_map(field, boundary=known)[0].numpy()
    rows: dict[str, dict[str, np.ndarray]] = {"newest": {"all channels": total}}
    maps_of = getattr(getattr(tokenizer, "indicator", None), "channel_maps", None)
    if maps_of is not None:
        maps = maps_of(field, boundary=known)[0].flatten(0, 1).numpy()
        history, fields = batch["input"].shape[1], len(info.fields)
        stride = fields + (len(info.constants) if model.history_mode == "frames" else 0)
        for age in range(history):
            row = rows.setdefault(f"{age} before" if age else "newest", {})
            first = (history - 1 - age) * stride
            row |= {name: maps[first + i] for i, name in enumerate(info.fields)}
        if getattr(tokenizer, "constants", ()) == () or tokenizer.ignore != "constants":
            first = len(maps) - len(info.constants)
            rows["newest"] |= {name: maps[first + i] for i, name in enumerate(info.constants)}
    title, columns = f"score\n{sample.caption}", [*rows["newest"]]
    return plots.panels_figure(rows, title=title, share="column", positive=columns, cut=cut)


def _predict(model: OneStepModel, batch: Batch, setting: Mapping[str, Any]) -> np.ndarray:
    """The next frame of a single sample, (c, *space)."""
    device = model.mean.device
    field, known = batch["input"].to(device), inputs_of(batch, device)
    return model(field, **known, **controls_of(setting)).float().cpu()[0, 0].numpy()


def _curve(rollout: Rollout | None) -> list[float]:
    return [float("nan") if v is None else v for v in (rollout.mean if rollout else ())]
