"""Evaluation: one-step and rollout errors of a model and of persistence."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.data import FieldInfo, WellData
from adaptok.evaluation.budgets import cells_by_size, inputs_of, resolve_settings
from adaptok.evaluation.cost import Stopwatch, cost_of, environment, parameters_by_stage
from adaptok.evaluation.metrics import binned_spectral_error, sum_error, vrmse
from adaptok.evaluation.predictions import PredictionWriter, folder_name, sources_of
from adaptok.evaluation.results import (
    PLAIN,
    RESERVED,
    Errors,
    Persistence,
    Results,
    Rollout,
    SettingResult,
    Tokens,
)
from adaptok.evaluation.spectra import patch_harmonics, residual_spectrum, resolves
from adaptok.evaluation.tilings import certificate_of, flicker
from adaptok.models.compiling import eager
from adaptok.models.jitter import jitter_at
from adaptok.models.one_step import OneStepModel
from adaptok.models.schedules import Schedule, create_schedule
from adaptok.registry import METRICS
from adaptok.utils.arguments import PerAxis, check_value
from adaptok.utils.auxiliary import collect_auxiliary

# The Well's rollout tables average the error over these steps.
WINDOWS = {"6:12": slice(6, 12), "13:30": slice(13, 30)}
COUNTED = 16  # batches of a split, evenly spread, whose operations and memory are counted


def evaluate(
    model: OneStepModel,
    data: WellData,
    *,
    split: str = "test",
    settings: Sequence[Mapping[str, Any]] = ({},),
    steps: int = 0,
    device: str = "auto",
    predictions: str | Path | None = None,
    patch_size: int | Sequence[int] | None = None,
) -> Results:
    """Tests a model in physical units, with every metric of `adaptok.registry.METRICS`.

    Args:
        model: a surrogate, a system or a baseline.
        data: set up.
        split: "train", "valid" or "test".
        settings: controls, one result each: ``[{"budget": 256}, {"budget": 512}]``. A "budget"
            alone means this many tokens per sample for every tokenizer, see `adaptok.at_budget`,
            and is calibrated on the training split if need be. A setting with a "name" is a
            schedule, ``{"name": "cyclic", "settings": [...]}``, which may change from step to step.
        steps: length of the rollouts, 0 for none.
        device: "auto" (CUDA if there is one, in bf16), "cpu" or "cuda".
        predictions: folder for the rollouts in the Well's format, one data set per setting; None
            keeps none.
        patch_size: period of the patch artifacts that rollouts are searched for, see
            `adaptok.evaluation.spectra.patch_harmonics`; None is the coarsest cell of each
            setting.

    Raises:
        ValueError: no settings, a control that the model does not have or a budget that it cannot
            reach, predictions without steps or of a set that is not in the Well's format, a patch
            size that does not fit the axes, or a metric that breaks its contract.
    """
    if not settings:
        raise ValueError("settings is a list of controls, at least [{}], got an empty one")
    data.check_steps((split,), steps, "steps")
    check_patch_size(patch_size, data.info.ndim)
    if predictions is not None:
        if steps < 1:
            raise ValueError(
                f"predictions are kept of rollouts: steps must be at least 1, got {steps}"
            )
        sources_of(data, split)
    place = device_of(device)
    model = model.to(place).eval()
    controls = check_settings(model, data, settings)
    blank, rows = persistence(data, split, steps), []
    periods: list[list[int] | None] = []
    with eager(model):  # its hooks count tokens, operations and time
        for label, setting, chosen in zip(labels_of(settings), settings, controls, strict=True):
            row = _one_step(model, data, split, setting, chosen, place)
            row = dataclasses.replace(row, label=label)
            period = _period(model, patch_size, row.cell_sizes)
            periods.append(period)
            if steps:
                with watching(model, chosen) as watch:
                    schedule, out = _schedule(model, chosen), None
                    pairs = rollouts(model, data, split, schedule, steps, place, watch.seconds)
                    if predictions is None:
                        rollout = _rollout(pairs, data, period, watch)
                    else:
                        about = {"setting": dict(setting), "history": model.history}
                        out = str(Path(predictions) / folder_name(row.label))
                        with PredictionWriter(out, data, split, steps, about) as writer:
                            rollout = _rollout(writer.passing(pairs), data, period, watch)
                row = dataclasses.replace(row, rollout=rollout, predictions=out)
            rows.append(row)
    return Results(
        environment=environment(place),
        data=data.info.name,
        split=split,
        fields=list(data.info.fields),
        patch_size=periods[0],
        grid=list(data.info.shape),
        boundary=data.info.boundary.tolist(),
        higher_is_better=[name for name in METRICS.names() if _is_higher_better(name)],
        persistence=blank,
        parameters=sum(p.numel() for p in model.parameters()),
        parameters_by_stage=parameters_by_stage(model),
        settings=rows,
    )


def label_of(setting: Mapping[str, Any]) -> str:
    """Caption of a setting: ``budget=256``."""
    if "name" in setting:
        knobs = {k: v for k, v in setting.items() if k not in ("name", "settings")}
        words = [setting["name"], label_of(knobs)] if knobs else [setting["name"]]
        return " ".join([*words, " / ".join(label_of(s) for s in setting.get("settings", ()))])
    return ", ".join(f"{k}={v}" for k, v in setting.items()) or "as built"


def labels_of(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Captions of settings, numbered where they are alike."""
    plain, found = [label_of(setting) for setting in settings], []
    for place, label in enumerate(plain):
        before = plain[:place].count(label)
        found.append(f"{label} ({before + 1})" if before else label)
    return found


def check_settings(
    model: OneStepModel, data: WellData, settings: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the controls that settings become for a model, as `evaluate` uses them.

    Raises:
        ValueError: a control that the model does not have, or a budget that it cannot reach.
    """
    controls = resolve_settings(model, data, settings)
    for chosen in controls:
        for one in [*chosen.get("settings", ()), chosen]:
            _schedule(model, one)
    return controls


def check_patch_size(
    patch_size: int | Sequence[int] | None, ndim: int, name: str = "patch_size"
) -> None:
    """Checks the period of the patch artifacts.

    Args:
        name: of the period, for the message.

    Raises:
        ValueError: it is neither None, nor a positive number, nor one per space axis.
    """
    if patch_size is not None:
        check_value(patch_size, PerAxis, name)
    if isinstance(patch_size, Sequence) and len(patch_size) != ndim:
        raise ValueError(
            f"{name} must be one number or {ndim}, one per space axis, got {list(patch_size)}"
        )


def _schedule(model: OneStepModel, setting: Mapping[str, Any]) -> Schedule:
    if "name" in setting:
        return create_schedule(setting)
    known = (*model.controls, *model.over_time)
    unknown = [name for name in setting if name not in known]
    if unknown:
        accepted = ", ".join(known) or "none"
        raise ValueError(
            f"unknown control {unknown[0]!r} in settings; this model's controls: {accepted}"
        )
    return lambda step: dict(setting)


@torch.no_grad()
def _one_step(
    model: OneStepModel,
    data: WellData,
    split: str,
    setting: Mapping[str, Any],
    controls: Mapping[str, Any],
    device: torch.device,
) -> SettingResult:
    schedule = _schedule(model, controls)
    errors, spectral, costs, held = [], [], [], []
    figures: dict[str, Tensor] = {}  # sum over samples, number of samples
    ndim, loader = data.info.ndim, data.loader(split, 1)
    counted = {i * len(loader) // COUNTED for i in range(COUNTED)}
    watch = Stopwatch(model, device)
    with count_tokens(model) as counts, precision(device):
        for number, batch in enumerate(loader):
            field, target = batch["input"].to(device), batch["target"][:, :1]
            given = {**inputs_of(batch, device), **schedule(number)}
            if given.get("jitter") is not None:
                place = (ndim, torch.device(device))
                given["jitter"] = jitter_at(
                    given["jitter"], (number,), *place, boundary=batch["boundary"]
                )
            call = functools.partial(model, field, **given)
            with collect_auxiliary() as reported:
                prediction = watch(call).float().cpu()
            for name, value in reported.figures.items():
                sums = figures.setdefault(name, torch.zeros(2))
                sums += len(field) * torch.stack([value.float().cpu(), torch.ones(())])
            if number in counted and (error := certificate_of(model, field, **given)) is not None:
                held.append(error.float().cpu())
            if number in counted and (cost := cost_of(model, call, [field, given])) is not None:
                costs.append((cost, len(field)))
                if counts:
                    counts.pop()  # seen twice
            errors.append(_metrics(prediction, target, ndim))
            spectral.append(binned_spectral_error(prediction, target, ndim).nmse)
    flops = memory = None
    if costs:
        samples = sum(size for _, size in costs)
        stages = costs[0][0].flops
        flops = {k: sum(cost.flops[k] for cost, _ in costs) / samples for k in stages}
        memory = {k: max(cost.memory[k] for cost, _ in costs) for k in stages}
    return SettingResult(
        label=label_of(setting),
        setting=dict(setting),
        controls=controls,
        tokens=Tokens.of(torch.cat([one.tokens for one in counts])) if counts else None,
        cell_sizes=shares([one.sizes for one in counts]) if counts else None,
        seconds=watch.seconds(),
        flops=flops,
        memory=memory,
        metrics=_summaries(errors, data.info.fields),
        spectral_nmse=plain(torch.cat(spectral).mean((0, 1, 2))),
        certificate=plain(torch.cat(held).mean()) if held else None,
        auxiliary={k: plain(sums[0] / sums[1]) for k, sums in figures.items()} or None,
    )


def _metrics(
    prediction: Tensor, target: Tensor, ndim: int, leave_out: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Every registered metric, (b, t, c) each; VRMSE first.

    Raises:
        ValueError: a metric with the name of another result, or with values of another shape.
    """
    values = {"vrmse": vrmse(prediction, target, ndim)}
    for name in METRICS.names():
        if name in values or name in leave_out:
            continue
        if name in RESERVED:
            raise ValueError(f"metric {name!r} has the name of another result: rename it")
        values[name] = METRICS.get(name)(prediction, target, ndim)
        if values[name].shape != values["vrmse"].shape:
            raise ValueError(
                f"metric {name!r} must return a value per sample, frame and field, "
                f"{tuple(values['vrmse'].shape)}, got {tuple(values[name].shape)}"
            )
    return values


def check_metrics(info: FieldInfo) -> None:
    """Tries every registered metric on a frame of noise, before slow work that ends with them.

    Raises:
        ValueError: a metric that breaks its contract.
    """
    own = torch.Generator().manual_seed(0)  # the training's numbers are not to depend on this
    prediction, target = torch.rand(2, 1, 1, len(info.fields), *info.shape, generator=own)
    _metrics(prediction, target, info.ndim)


def device_of(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA if there is one.

    Raises:
        ValueError: CUDA where there is none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}, but torch finds no CUDA device here")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if name == "auto" else name)


def rollouts(
    model: OneStepModel,
    data: WellData,
    split: str,
    settings: Schedule,
    steps: int,
    device: torch.device | str = "cpu",
    seconds: list[float] | None = None,
) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
    """Rolls out every trajectory of a split from its first frames, batch by batch.

    Args:
        settings: controls of each step, as `adaptok.create_schedule` makes them.
        seconds: gets those that a step of each batch took.

    Yields:
        The batch, with "target" (b, steps, c, *space), and the prediction of that shape on the CPU.
    """
    place = torch.device(device)
    for batch in data.rollout_loader(split, steps):
        given, start = (batch["input"].to(place), inputs_of(batch, place)), time.perf_counter()
        with precision(place):
            prediction = model.rollout(given[0], steps, **given[1], settings=settings)
        prediction = prediction.float().cpu()  # which waits for the device
        if seconds is not None:
            seconds.append((time.perf_counter() - start) / steps)
        yield batch, prediction


def _is_higher_better(name: str) -> bool:
    return bool(getattr(METRICS.get(name), "higher_is_better", False))


def _period(
    model: OneStepModel,
    patch_size: int | Sequence[int] | None,
    cells: Mapping[str, float] | None,
) -> list[int] | None:
    """Patch size per space axis: as given, or the coarsest cell in use; None for a baseline.

    Args:
        cells: shares of the sizes, as in `SettingResult.cell_sizes`.
    """
    if isinstance(patch_size, int):
        return [patch_size] * model.ndim
    if patch_size is not None:
        return list(patch_size)
    sizes = [[int(n) for n in name.split("x")] for name in cells or ()]
    per_axis = [size * (model.ndim if len(size) == 1 else 1) for size in sizes]
    return max(per_axis, default=None)


def _rollout(
    pairs: Iterable[tuple[Mapping[str, Tensor], Tensor]],
    data: WellData,
    patch_size: Sequence[int] | None,
    watch: Watch,
) -> Rollout:
    ndim = data.info.ndim
    unit = data.info.unit.view(-1, *(1,) * ndim)
    errors, binned, spectra, peaks, changed, counts, reused = [], [], [], [], [], [], []
    off = []
    for batch, prediction in pairs:
        target = batch["target"]
        if len(watch.cells) > 1 and watch.steady:
            steps = itertools.pairwise(watch.cells)
            changed.append(torch.stack([flicker(now, then).cpu() for then, now in steps], 1))
        if watch.cells:
            steps = [cells.cu_seqlens.diff().double().cpu() for cells in watch.cells]
            counts.append(torch.stack(steps, 1))
        reused.append(torch.tensor(watch.reused)[None].expand(len(target), -1))
        watch.cells.clear()
        watch.reused.clear()
        errors.append(vrmse(prediction, target, ndim))
        off.append(sum_error(prediction, target, ndim))
        binned.append(binned_spectral_error(prediction, target, ndim).nmse)
        spectra.append(residual_spectrum(prediction / unit, target / unit, ndim))
        if patch_size is not None and resolves(target.shape[-ndim:], patch_size):
            peaks.append(patch_harmonics(prediction, target, ndim, patch_size).log())
    power = torch.cat([spectrum.power for spectrum in spectra]).mean((0, 2))
    return dataclasses.replace(
        _curves(torch.cat(errors)),
        spectral_nmse=plain(torch.cat(binned).mean((0, 2))),
        residual_spectrum={"wavenumber": plain(spectra[0].wavenumber), "power": plain(power)},
        # geometric means
        patch_harmonics=plain(torch.cat(peaks).mean((0, 2)).exp()) if peaks else None,
        patch_size=patch_size,
        flicker=[None, *plain(torch.cat(changed).mean(0))] if changed else None,
        tokens=plain(torch.cat(counts).mean(0)) if counts else None,
        reused=plain(torch.cat(reused).mean(0)) or None,
        sums=dict(zip(data.info.fields, plain(torch.cat(off).mean(0).T), strict=True)),
        seconds=statistics.mean(watch.seconds[1:] or watch.seconds),
    )


def persistence(data: WellData, split: str = "test", steps: int = 0) -> Persistence:
    """Errors of predicting no change: one step, and `steps` steps."""
    ndim = data.info.ndim
    errors = [
        _metrics(batch["input"][:, -1:], batch["target"][:, :1], ndim, PLAIN)
        for batch in data.loader(split, 1)
    ]
    rollout = None
    if steps:
        rolled = [
            vrmse(batch["input"][:, -1:].expand_as(batch["target"]), batch["target"], ndim)
            for batch in data.rollout_loader(split, steps)
        ]
        rollout = _curves(torch.cat(rolled))
    return Persistence(_summaries(errors, data.info.fields), rollout)


def _summaries(batches: Sequence[Mapping[str, Tensor]], fields: Sequence[str]) -> dict[str, Errors]:
    """Mean and median over samples of (b, 1, c) each, for each field and for their mean."""
    summaries = {}
    for name in batches[0]:
        errors = torch.cat([batch[name] for batch in batches])
        columns = zip(fields, errors.flatten(0, 1).unbind(1), strict=True)
        per_field = {f: Errors(plain(e.mean()), plain(median(e))) for f, e in columns}
        overall = errors.mean(-1).flatten()
        summaries[name] = Errors(plain(overall.mean()), plain(median(overall)), per_field)
        if name in PLAIN:
            summaries[name] = Errors(plain(errors.mean()))
    return summaries


def _curves(errors: Tensor) -> Rollout:
    """Error per rollout step (n, steps, c): mean and median over trajectories, mean over fields."""
    per_step = errors.mean(-1)
    windows = {k: w for k, w in WINDOWS.items() if per_step.shape[1] >= w.stop}
    return Rollout(
        mean=plain(per_step.mean(0)),
        median=plain(median(per_step)),
        windows={k: plain(per_step[:, w].mean()) for k, w in windows.items()},
    )


def median(values: Tensor) -> Tensor:
    """Median over the first axis; of an even number the mean of the middle two, unlike torch's."""
    return values.quantile(0.5, 0)


def plain(values: Tensor) -> Any:
    """A number, or nested lists of numbers; None for those that are not finite."""
    if values.ndim:
        return [plain(value) for value in values]
    return float(values) if values.isfinite() else None


def precision(device: torch.device) -> torch.autocast:
    """Runs a model as evaluations do: in bf16 on CUDA."""
    return torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")


class Counts(NamedTuple):
    """Cells of a call: per sample (b,), and by size."""

    tokens: Tensor
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, cells: Cells) -> Counts:
        """Counts cells."""
        return cls(cells.cu_seqlens.diff().cpu(), cells_by_size(cells))


@contextmanager
def count_tokens(model: OneStepModel) -> Iterator[list[Counts]]:
    """Collects the counts of every call; nothing for a baseline."""
    counts: list[Counts] = []
    processor: Any = getattr(model, "processor", nn.Identity())  # which a baseline never calls
    with processor.register_forward_pre_hook(
        lambda _, args: counts.append(Counts.of(args[0].cells))
    ):
        yield counts


class Watch(NamedTuple):
    """What is seen of rollouts.

    Attributes:
        cells: of every call of the batch at hand; none of a baseline.
        reused: share of each call in which blocks keep what they computed.
        seconds: of a step, per batch.
        steady: whether the domain stays where it is under the cells, which jitter moves.
    """

    cells: list[Cells]
    reused: list[float]
    seconds: list[float]
    steady: bool


@contextmanager
def watching(model: OneStepModel, setting: Mapping[str, Any]) -> Iterator[Watch]:
    """Watches the rollouts of a model with a setting."""
    moved = any("jitter" in one for one in (setting, *setting.get("settings", ())))
    watch = Watch([], [], [], not moved)
    processor: Any = getattr(model, "processor", nn.Identity())

    def see(_: nn.Module, given: tuple[Any, ...], __: Any) -> None:
        watch.cells.append(given[0].cells)
        watch.reused.extend(reuse.share for reuse in given[1:])

    with processor.register_forward_hook(see):
        yield watch


def shares(counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Share of all cells that have each size; sizes without cells are left out."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return {size: count / total.total() for size, count in total.items() if count}
