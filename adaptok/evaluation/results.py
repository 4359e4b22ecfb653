"""What an evaluation found: as types, as metrics.json and as tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from adaptok.utils.atomic import replacing
from adaptok.utils.tables import table

if TYPE_CHECKING:
    from adaptok.data import WellData
    from adaptok.models.one_step import OneStepModel

Number = float | None  # None is a diverged one, which JSON cannot hold
CLEARLY = 1.1  # times the tokens of one step: where those of a rollout are worth a word
PLAIN = ("nrmse",)  # metrics that metrics.json holds as one number, and that no table shows


@dataclasses.dataclass(frozen=True)
class Errors:
    """Statistics of a metric over samples.

    Attributes:
        mean: of all fields, or of one.
        median: likewise.
        fields: the same for each field; empty for one field.
    """

    mean: Number
    median: Number = None
    fields: Mapping[str, Errors] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        fields = {name: errors.to_json() for name, errors in self.fields.items()}
        return {"mean": self.mean, "median": self.median} | ({"fields": fields} if fields else {})

    @classmethod
    def from_json(cls, values: Any) -> Errors:
        """Reads `to_json`, or a mean alone."""
        if not isinstance(values, Mapping):
            return cls(values)
        fields = {name: cls.from_json(errors) for name, errors in values.get("fields", {}).items()}
        return cls(values["mean"], values.get("median"), fields)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """VRMSE per step, means over fields and trajectories; more for a model than for persistence.

    Attributes:
        mean: per step.
        median: per step.
        windows: means over the steps of the Well's tables, "6:12" and "13:30".
        spectral_nmse: per step, in three bands of wavenumbers, low to high.
        residual_spectrum: "wavenumber", in cycles per grid point, and "power", per step and
            wavenumber, in units of each field's variance.
        patch_harmonics: per step; None if no axis holds four patches.
        patch_size: their period per space axis, that of the cells of this setting.
        flicker: per step, the share of cells that are new in this step (None in the
            first one), mean over trajectories; None without cells, or with jitter.
        tokens: per step, mean over trajectories; None without cells.
        reused: per step, the share of what blocks put out that they kept from the steps before;
            None without `reuse`.
        sums: per field and step, how far the sum over space is off, relative to the sum of the
            target's absolute values (`adaptok.evaluation.metrics.sum_error`).
        seconds: of a step of a batch, all that a rollout does, mean over all but the first one.
    """

    mean: Sequence[Number]
    median: Sequence[Number]
    windows: Mapping[str, Number]
    spectral_nmse: Sequence[Sequence[Number]] | None = None
    residual_spectrum: Mapping[str, Any] | None = None
    patch_harmonics: Sequence[Number] | None = None
    patch_size: Sequence[int] | None = None
    flicker: Sequence[Number] | None = None
    tokens: Sequence[float] | None = None
    reused: Sequence[float] | None = None
    sums: Mapping[str, Sequence[Number]] | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        curves = 3 if self.spectral_nmse is None else None
        return dict(list(vars(self).items())[:curves])


@dataclasses.dataclass(frozen=True)
class Persistence:
    """Errors of predicting no change."""

    metrics: Mapping[str, Errors]
    rollout: Rollout | None = None

    @property
    def vrmse(self) -> Errors:
        """The metric of the Well."""
        return self.metrics["vrmse"]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rollout = {} if self.rollout is None else {"rollout": self.rollout.to_json()}
        return _metrics_to_json(self.metrics) | rollout

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Persistence:
        """Reads `to_json`."""
        rollout = values.get("rollout")
        return cls(_metrics_from_json(values), rollout and Rollout(**rollout))


class Tokens(NamedTuple):
    """Tokens per sample."""

    mean: float
    min: float
    max: float

    @classmethod
    def of(cls, counts: Tensor) -> Tokens:
        """Summarises the counts of some samples, (n,)."""
        counts = counts.double()
        return cls(counts.mean().item(), counts.min().item(), counts.max().item())


@dataclasses.dataclass(frozen=True)
class SettingResult:
    """A test of a model with one setting.

    Attributes:
        label: caption.
        metrics: one-step errors by registered name (`adaptok.registry.METRICS`).
        seconds: of a forward pass of a batch, by stage and in "total".
        setting: as given.
        controls: what the setting became for the model.
        tokens: None for a baseline.
        cell_sizes: share of the cells per size in space, coarse to fine, as "8" or "8x4"; None for
            a baseline.
        flops: per sample, by stage and in "total"; None for a compiled model.
        memory: bytes of the tensors of a batch, by stage and in "total"; None likewise.
        spectral_nmse: in three bands of wavenumbers, low to high.
        rollout: if the test had one.
        predictions: folder of the rollouts, if they were kept.
        certificate: mean error of what the cells hold (`TreeTokenizer.certificate`), over some
            batches; None for a model without a tree.
        auxiliary: means of the figures that parts reported (`adaptok.utils.auxiliary`), if any.
    """

    label: str
    metrics: Mapping[str, Errors]
    seconds: Mapping[str, float]
    setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    controls: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokens: Tokens | None = None
    cell_sizes: Mapping[str, float] | None = None
    flops: Mapping[str, float] | None = None
    memory: Mapping[str, int] | None = None
    spectral_nmse: Sequence[Number] = ()
    rollout: Rollout | None = None
    predictions: str | None = None
    certificate: Number = None
    auxiliary: Mapping[str, Number] | None = None

    @property
    def vrmse(self) -> Errors:
        """The metric of the Well."""
        return self.metrics["vrmse"]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {k: v for k, v in vars(self).items() if v is not None or k in SETTING_KEYS}
        values["seconds_per_step"] = self.seconds["total"]
        values["peak_memory"] = None if self.memory is None else self.memory["total"]
        if self.tokens is not None:
            values["tokens"] = self.tokens._asdict()
        if self.rollout is not None:
            values["rollout"] = self.rollout.to_json()
        del values["metrics"]
        return values | _metrics_to_json(self.metrics)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SettingResult:
        """Reads `to_json`, and files of older versions, which lack some costs and spectra."""
        tokens, rollout = values.get("tokens"), values.get("rollout")
        made = {"metrics": _metrics_from_json(values), "tokens": tokens and Tokens(**tokens)}
        made["seconds"] = values.get("seconds") or {"total": values["seconds_per_step"]}
        return _known(cls, values, **made, rollout=rollout and Rollout(**rollout))


SETTING_KEYS = ("tokens", "flops", "memory")  # that metrics.json holds even if there is no value
RESERVED = ("seconds_per_step", "peak_memory", *(f.name for f in dataclasses.fields(SettingResult)))


class Training(NamedTuple):
    """What the training took: steps, seconds per step, and peak bytes (None if not known)."""

    steps: int
    seconds_per_step: float
    peak_memory: int | None


@dataclasses.dataclass(frozen=True)
class Results:
    """Tests of a model.

    Attributes:
        data: name of the set.
        split: "train", "valid" or "test".
        fields: names, in the order of the channels.
        persistence: the same test of predicting no change.
        settings: one test each.
        patch_size: period of the patch artifacts of the first setting, per space axis; None if
            not searched for.
        higher_is_better: names of the metrics of which a higher value is better.
        grid: points per space axis.
        boundary: codes at both ends of each axis, see `adaptok.data.FieldInfo`.
        environment: versions and device.
        parameters: number of weights.
        parameters_by_stage: likewise.
        checkpoint: path of the weights, of ``adaptok eval``.
        budget: configured tokens per sample, of a training run.
        training: of a training run.
    """

    data: str
    split: str
    fields: Sequence[str]
    persistence: Persistence
    settings: Sequence[SettingResult]
    patch_size: Sequence[int] | None = None
    higher_is_better: Sequence[str] = ()
    grid: Sequence[int] = ()
    boundary: Sequence[Sequence[int]] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    parameters: int = 0
    parameters_by_stage: Mapping[str, int] = dataclasses.field(default_factory=dict)
    checkpoint: str | None = None
    budget: int | None = None
    training: Training | None = None

    def to_json(self) -> dict[str, Any]:
        """What metrics.json holds."""
        values = dict(vars(self))
        checkpoint, budget, training = (values.pop(k) for k in ("checkpoint", "budget", "training"))
        values["persistence"] = self.persistence.to_json()
        values["settings"] = [setting.to_json() for setting in self.settings]
        if checkpoint is not None:
            values["checkpoint"] = checkpoint
        if training is not None:
            values |= {"budget": budget, "training": training._asdict()}
            values["seconds_per_training_step"] = training.seconds_per_step
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Results:
        """Reads metrics.json, of older versions too; leaves out unknown keys."""
        made: dict[str, Any] = {"persistence": Persistence.from_json(values["persistence"])}
        training = values.get("training")
        made["settings"] = [SettingResult.from_json(setting) for setting in values["settings"]]
        return _known(cls, values, **made, training=training and Training(**training))

    def card(self) -> str:
        """Markdown for a model card: the VRMSE of every setting."""
        errors = {"persistence": self.persistence.vrmse}
        errors |= {setting.label: setting.vrmse for setting in self.settings}
        text = f"Fields, in this order: {', '.join(self.fields)}.\n\n"
        text += f"VRMSE on the {self.split} split of {self.data}, one step, mean:\n\n"
        rows = [[label, number_cell(error.mean)] for label, error in errors.items()]
        return text + table(["setting", "VRMSE"], rows).rstrip()


class FinishedRun(NamedTuple):
    """A training run: what the test found, and what was trained."""

    results: Results
    model: OneStepModel
    data: WellData
    folder: Path


def _metrics_to_json(metrics: Mapping[str, Errors]) -> dict[str, Any]:
    return {k: e.mean if k in PLAIN else e.to_json() for k, e in metrics.items()}


def _metrics_from_json(values: Mapping[str, Any]) -> dict[str, Errors]:
    known = (*PLAIN, *(k for k, v in values.items() if isinstance(v, Mapping) and "median" in v))
    return {k: Errors.from_json(values[k]) for k in known if k in values and k not in RESERVED}


def _known(cls: Any, values: Mapping[str, Any], **made: Any) -> Any:
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{k: v for k, v in values.items() if k in names} | made)


def write_results(values: Mapping[str, Any], text: str, folder: str | Path) -> list[Path]:
    """Writes plain values to metrics.json and a text to metrics.md; returns the files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(values, indent=2, allow_nan=False) + "\n"
    files = {folder / "metrics.json": numbers, folder / "metrics.md": text}
    for file, content in files.items():
        with replacing(file) as temporary:
            temporary.write_text(content)
    return list(files)


def markdown(results: Results) -> str:
    """Tables of the one-step and rollout errors."""
    settings, blank = results.settings, results.persistence
    header = ["setting", "tokens", "cells", "s/step", "VRMSE mean", "median", *results.fields]
    rows = [["persistence", "", "", "", *_row(blank.vrmse)]]
    for row in settings:
        seconds = f"{row.seconds['total']:.3g}"
        counts = tokens_cell(row.tokens), sizes_cell(row.cell_sizes)
        rows.append([row.label, *counts, seconds, *_row(row.vrmse)])
    text = f"# {results.data}, {results.split} split\n\n"
    text += "One step; per field the mean over samples; cells: share of each size.\n\n"
    text += table(header, rows)
    for name in blank.metrics:
        if name != "vrmse":
            header = ["setting", f"{name} mean", "median", *results.fields]
            rows = [[r.label, *_row(r.metrics[name])] for r in settings]
            rows = [["persistence", *_row(blank.metrics[name])], *rows]
            text += f"\nOne step, {name}; per field the mean over samples.\n\n"
            text += table(header, rows)
    rows = [[row.label, *map(number_cell, row.spectral_nmse)] for row in settings]
    text += "\nOne step: squared error over energy in three bands of wavenumbers (BSNMSE).\n\n"
    text += table(["setting", "low", "middle", "high"], rows)
    if blank.rollout is None:
        return text
    curves = {"persistence": blank.rollout}
    curves |= {row.label: row.rollout for row in settings if row.rollout is not None}
    steps = [f"step {i + 1}" for i in range(len(blank.rollout.mean))]
    rows = [
        [k, *map(number_cell, c.mean), *map(number_cell, c.windows.values())]
        for k, c in curves.items()
    ]
    text += "\nRollout: VRMSE, mean over fields and trajectories.\n\n"
    text += table(["setting", *steps, *blank.rollout.windows], rows)
    text += "".join(f"\n**Careful**: {line}.\n" for line in costly_rollouts(settings))
    rows = [
        [k, " x ".join(map(str, c.patch_size or ())), *map(number_cell, c.patch_harmonics)]
        for k, c in curves.items()
        if c.patch_harmonics
    ]
    if rows:
        text += "\nRollout: power of the residual at the harmonics of the patches over that beside "
        text += "them; 1 without artifacts.\n\n" + table(["setting", "patches", *steps], rows)
    rows = [[k, *map(number_cell, c.flicker[1:])] for k, c in curves.items() if c.flicker]
    if rows and steps[1:]:
        text += "\nRollout: share of cells that are new in this step.\n\n"
        text += table(["setting", *steps[1:]], rows)
    rows = [
        [k, f"{c.seconds:.3g}", *(f"{n:.0f}" for n in (sum(c.tokens), *c.tokens))]
        for k, c in curves.items()
        if c.tokens and c.seconds is not None
    ]
    if rows:
        text += "\nRollout: seconds per step of a batch, and tokens per sample.\n\n"
        text += table(["setting", "s/step", "all steps", *steps], rows)
    rows = [[k, *map(number_cell, c.reused)] for k, c in curves.items() if c.reused]
    if rows:
        text += "\nRollout: share of what blocks put out that they kept from the steps before.\n\n"
        text += table(["setting", *steps], rows)
    rows = [
        [k, *("diverged" if off[-1] is None else f"{off[-1]:.1e}" for off in c.sums.values())]
        for k, c in curves.items()
        if c.sums
    ]
    if rows:
        text += f"\nRollout, {steps[-1]}: how far sums are off, over those of absolute values.\n\n"
        text += table(["setting", *results.fields], rows)
    return text


def costly_rollouts(settings: Sequence[SettingResult]) -> list[str]:
    """Says which rollouts used clearly more tokens than one step, as thresholds may on what a
    model predicts.
    """
    lines = []
    for row in settings:
        if row.tokens is None or row.rollout is None or not row.rollout.tokens:
            continue
        per_step = sum(row.rollout.tokens) / len(row.rollout.tokens)
        if per_step > CLEARLY * row.tokens.mean:
            lines.append(
                f"the rollout ({row.label}) used {per_step:.0f} tokens per sample and step, "
                f"one step from true frames {row.tokens.mean:.0f}"
            )
    return lines


def _row(errors: Errors) -> list[str]:
    means = [errors.mean, errors.median, *(field.mean for field in errors.fields.values())]
    return [number_cell(value) for value in means]


def number_cell(value: Number) -> str:
    """Shows a number in a table, or "diverged"."""
    return "diverged" if value is None else f"{value:.4f}"


def sizes_cell(shares: Mapping[str, float] | None) -> str:
    """Share of the cells per size, "8: 20 %, 4: 80 %"; empty for a baseline."""
    return ", ".join(f"{size}: {100 * share:.0f} %" for size, share in (shares or {}).items())


def tokens_cell(tokens: Tokens | None) -> str:
    """Tokens per sample; empty for a baseline."""
    if tokens is None:
        return ""
    spread = "" if tokens.min == tokens.max else f" ({tokens.min:.0f}-{tokens.max:.0f})"
    return f"{tokens.mean:.0f}{spread}"
