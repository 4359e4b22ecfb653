"""Evaluation: one-step and rollout errors of a surrogate, with persistence beside them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptok.data import WellData
from adaptok.evaluation.budgets import resolve_settings
from adaptok.evaluation.cost import Cost, Stopwatch, cost_of, environment, parameters_by_stage
from adaptok.evaluation.metrics import binned_spectral_error, nrmse, vrmse
from adaptok.evaluation.predictions import PredictionWriter, folder_name
from adaptok.evaluation.spectra import patch_harmonics, residual_spectrum, resolves
from adaptok.models.compiling import eager
from adaptok.models.one_step import OneStepModel
from adaptok.models.schedules import Schedule, create_schedule
from adaptok.models.surrogate import Surrogate

# The Well's rollout tables average the error over these steps.
WINDOWS = {"6:12": slice(6, 12), "13:30": slice(13, 30)}
COUNTED = 16  # batches of a split, evenly spread, whose operations and memory are counted


def evaluate(
    surrogate: OneStepModel,
    data: WellData,
    *,
    split: str = "test",
    settings: Sequence[Mapping[str, Any]] = ({},),
    steps: int = 0,
    device: str = "auto",
    predictions: str | Path | None = None,
    patch_size: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Tests a surrogate, in physical units, with VRMSE as in the Well.

    Args:
        data: set up.
        split: "train", "valid" or "test".
        settings: controls, one row of results each: ``[{"budget": 256}, {"budget": 512}]``. A
            "budget" alone means so many tokens per sample for every tokenizer, see
            `adaptok.at_budget`; what must be calibrated for it is, on the training split. A setting
            with a "name" is a schedule, ``{"name": "cyclic", "settings": [...]}``, which may change
            from step to step.
        steps: length of the rollouts, 0 for none.
        device: "auto" (CUDA where there is one, in bf16), "cpu" or "cuda".
        predictions: folder for the rollouts in the Well's format, one data set per setting; None
            keeps none.
        patch_size: period of the patch artifacts that rollouts are searched for, see
            `adaptok.evaluation.spectra.patch_harmonics`; None is the tokenizer's coarsest cell.

    Returns:
        Plain values that JSON can hold: environment, fields, persistence, weights per stage, and
        per setting the controls that it became, tokens per sample, seconds and FLOPs of a forward
        pass per stage (FLOPs per sample, see `adaptok.evaluation.cost`), bytes of the tensors of a
        batch, errors and rollout: VRMSE, spectral errors, spectrum of the residual (in
        units of each field's std) and patch harmonics of every step. A diverged number is None, and
        so are the harmonics where no axis holds four patches.
    """
    if not settings:
        raise ValueError("settings is a list of controls, at least [{}], got an empty one")
    if predictions is not None and steps < 1:
        raise ValueError(f"predictions are those of rollouts: give steps, not {steps}")
    place = device_of(device)
    surrogate = surrogate.to(place).eval()
    controls = check_settings(surrogate, data, settings)
    fields = list(data.info.fields)
    period = _period(surrogate, patch_size)
    results = {
        "environment": environment(place),
        "data": data.info.name,
        "split": split,
        "fields": fields,
        "patch_size": period,
        "persistence": persistence(data, split, steps),
        "parameters": sum(p.numel() for p in surrogate.parameters()),
        "parameters_by_stage": parameters_by_stage(surrogate),
        "settings": [],
    }
    with eager(surrogate):  # its hooks count tokens, operations and time
        for setting, chosen in zip(settings, controls, strict=True):
            schedule = _schedule(surrogate, chosen)
            row = {"label": label_of(setting), "setting": dict(setting), "controls": chosen}
            row |= _one_step(surrogate, data, split, schedule, fields, place)
            if steps:
                pairs = rollouts(surrogate, data, split, schedule, steps, place)
                if predictions is None:
                    row["rollout"] = _rollout(pairs, data, period)
                else:
                    about = {"setting": dict(setting), "history": surrogate.history}
                    out = Path(predictions) / folder_name(row["label"])
                    with PredictionWriter(out, data, split, steps, about) as writer:
                        row["rollout"] = _rollout(writer.passing(pairs), data, period)
                    row["predictions"] = str(out)
            results["settings"].append(row)
    return results


def label_of(setting: Mapping[str, Any]) -> str:
    """Caption of a setting: ``budget=256``."""
    if "name" in setting:
        return f"{setting['name']} " + " / ".join(label_of(s) for s in setting.get("settings", ()))
    return ", ".join(f"{k}={v}" for k, v in setting.items()) or "as built"


def check_settings(
    surrogate: OneStepModel, data: WellData, settings: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The controls that settings become for a model, as `evaluate` uses them.

    Raises:
        ValueError: a control that the model does not have, or a budget that it cannot reach.
    """
    controls = resolve_settings(surrogate, data, settings)
    for chosen in controls:
        for one in [*chosen.get("settings", ()), chosen]:
            _schedule(surrogate, one)
    return controls


def _schedule(surrogate: OneStepModel, setting: Mapping[str, Any]) -> Schedule:
    if "name" in setting:
        return create_schedule(setting)
    unknown = [name for name in setting if name not in surrogate.controls]
    if unknown:
        accepted = ", ".join(surrogate.controls) or "none"
        raise ValueError(
            f"unknown control {unknown[0]!r} in settings; this model's controls: {accepted}"
        )
    return lambda step: dict(setting)


def inputs_of(batch: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Any]:
    """What a surrogate takes of a batch, beside the field."""
    constants = batch.get("constants")
    return {
        "constants": None if constants is None else constants.to(device),
        "boundary": batch["boundary"].to(device),
    }


@torch.no_grad()
def _one_step(
    surrogate: OneStepModel,
    data: WellData,
    split: str,
    schedule: Schedule,
    fields: list[str],
    device: torch.device,
) -> dict[str, Any]:
    errors, relative, spectral, costs = [], [], [], []
    ndim, loader = data.info.ndim, data.loader(split, 1)
    counted = {i * len(loader) // COUNTED for i in range(COUNTED)}
    watch = Stopwatch(surrogate, device)
    with count_tokens(surrogate) as counts, _precision(device):
        for number, batch in enumerate(loader):
            field, target = batch["input"].to(device), batch["target"][:, :1]
            given = {**inputs_of(batch, device), **schedule(number)}
            call = functools.partial(surrogate, field, **given)
            prediction = watch(call).float().cpu()
            if number in counted and (cost := cost_of(surrogate, call, [field, given])) is not None:
                costs.append((cost, len(field)))
                if counts:
                    counts.pop()  # seen twice
            errors.append(vrmse(prediction, target, ndim))
            relative.append(nrmse(prediction, target, ndim))
            spectral.append(binned_spectral_error(prediction, target, ndim).nmse)
    tokens = torch.cat(counts).double() if counts else None
    seconds = watch.seconds()
    return {
        "tokens": None
        if tokens is None
        else {k: getattr(tokens, k)().item() for k in ("mean", "min", "max")},
        "seconds_per_step": seconds["total"],
        "seconds": seconds,
        "flops": _flops(costs),
        "memory": _memory(costs),
        "peak_memory": max((cost.memory["total"] for cost, _ in costs), default=None),
        "vrmse": _summary(torch.cat(errors), fields),
        "nrmse": _number(torch.cat(relative).mean()),
        "spectral_nmse": [_number(v) for v in torch.cat(spectral).mean((0, 1, 2))],
    }


def _flops(costs: list[tuple[Cost, int]]) -> dict[str, float] | None:
    """Per sample and stage, the mean over the batches."""
    if not costs:
        return None
    samples = sum(size for _, size in costs)
    return {k: sum(cost.flops[k] for cost, _ in costs) / samples for k in costs[0][0].flops}


def _memory(costs: list[tuple[Cost, int]]) -> dict[str, int] | None:
    """Per stage, the most of the batches."""
    if not costs:
        return None
    return {k: max(cost.memory[k] for cost, _ in costs) for k in costs[0][0].memory}


def device_of(name: str) -> torch.device:
    """ "auto" is CUDA where there is one."""
    return torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    )


def rollouts(
    surrogate: OneStepModel,
    data: WellData,
    split: str,
    settings: Schedule,
    steps: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
    """Every trajectory of a split from its first frames on, batch by batch.

    Args:
        settings: controls of each step, as `adaptok.create_schedule` makes them.

    Yields:
        The batch, with "target" (b, steps, c, *space), and the prediction of that shape on the CPU.
    """
    place = torch.device(device)
    for batch in data.rollout_loader(split, steps):
        with _precision(place):
            prediction = surrogate.rollout(
                batch["input"].to(place), steps, **inputs_of(batch, place), settings=settings
            )
        yield batch, prediction.float().cpu()


def _period(surrogate: OneStepModel, patch_size: int | Sequence[int] | None) -> list[int] | None:
    """Patch size per space axis, as given or the coarsest cell; None of a baseline."""
    if isinstance(patch_size, int):
        return [patch_size] * surrogate.ndim
    if patch_size is not None:
        return list(patch_size)
    return list(surrogate.tokenizer.spec.sizes[0][1:]) if isinstance(surrogate, Surrogate) else None


def _rollout(
    pairs: Iterable[tuple[Mapping[str, Tensor], Tensor]],
    data: WellData,
    patch_size: Sequence[int] | None,
) -> dict[str, Any]:
    ndim = data.info.ndim
    std = data.info.std.view(-1, *(1,) * ndim)
    errors, binned, spectra, peaks = [], [], [], []
    for batch, prediction in pairs:
        target = batch["target"]
        errors.append(vrmse(prediction, target, ndim))
        binned.append(binned_spectral_error(prediction, target, ndim).nmse)
        spectra.append(residual_spectrum(prediction / std, target / std, ndim))
        if patch_size is not None and resolves(target.shape[-ndim:], patch_size):
            peaks.append(patch_harmonics(prediction, target, ndim, patch_size).log())
    power = torch.cat([spectrum.power for spectrum in spectra])
    rising = torch.cat(peaks).mean((0, 2)).exp() if peaks else None  # geometric means
    return _curves(torch.cat(errors)) | {
        "spectral_nmse": _rows(torch.cat(binned)),
        "residual_spectrum": {
            "wavenumber": spectra[0].wavenumber.tolist(),
            "power": _rows(power),
        },
        "patch_harmonics": None if rising is None else [_number(v) for v in rising],
    }


def _rows(values: Tensor) -> list[list[float | None]]:
    """Means over trajectories and fields of (n, steps, c, m), one row per step."""
    return [[_number(v) for v in step] for step in values.mean((0, 2))]


def persistence(data: WellData, split: str = "test", steps: int = 0) -> dict[str, Any]:
    """Errors of predicting no change: one step, and `steps` steps."""
    fields, ndim = list(data.info.fields), data.info.ndim
    errors = [
        vrmse(batch["input"][:, -1:], batch["target"][:, :1], ndim)
        for batch in data.loader(split, 1)
    ]
    result: dict[str, Any] = {"vrmse": _summary(torch.cat(errors), fields)}
    if steps:
        rollouts = [
            vrmse(batch["input"][:, -1:].expand_as(batch["target"]), batch["target"], ndim)
            for batch in data.rollout_loader(split, steps)
        ]
        result["rollout"] = _curves(torch.cat(rollouts))
    return result


def _summary(errors: Tensor, fields: list[str]) -> dict[str, Any]:
    """Mean and median over samples (n, 1, c), for each field and for their mean."""
    per_field = {
        name: {"mean": _number(e.mean()), "median": _number(e.median())}
        for name, e in zip(fields, errors.flatten(0, 1).unbind(1), strict=True)
    }
    overall = errors.mean(-1)
    return {
        "mean": _number(overall.mean()),
        "median": _number(overall.median()),
        "fields": per_field,
    }


def _curves(errors: Tensor) -> dict[str, Any]:
    """Error per rollout step (n, steps, c): mean and median over trajectories, mean over fields."""
    per_step = errors.mean(-1)
    curves: dict[str, Any] = {
        "mean": [_number(v) for v in per_step.mean(0)],
        "median": [_number(v) for v in per_step.median(0).values],
    }
    windows = {k: w for k, w in WINDOWS.items() if per_step.shape[1] >= w.stop}
    curves["windows"] = {k: _number(per_step[:, w].mean()) for k, w in windows.items()}
    return curves


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _precision(device: torch.device) -> Any:
    return torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def count_tokens(surrogate: OneStepModel) -> Iterator[list[Tensor]]:
    """Collects the tokens per sample of every call, each (b,); nothing of a baseline."""
    counts: list[Tensor] = []
    processor: Any = getattr(surrogate, "processor", None)
    if processor is None:
        yield counts
        return
    handle = processor.register_forward_pre_hook(
        lambda _, args: counts.append(args[0].cells.cu_seqlens.diff().cpu())
    )
    try:
        yield counts
    finally:
        handle.remove()
