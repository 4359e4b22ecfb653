"""Records of runs: plain values, each of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Number = float | None
BANDS = ("low", "middle", "high")  # of wavenumbers


class LeftOut(NamedTuple):
    """A folder or file that the report leaves out, and why."""

    folder: Path
    what: str


class Measure(NamedTuple):
    """The number that ranks models."""

    key: str
    title: str
    lower: bool
    reference: str

    @property
    def direction(self) -> str:
        """ "lower is better", or higher."""
        return f"{'lower' if self.lower else 'higher'} is better"

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`."""
        return a < b if self.lower else a > b


VRMSE = Measure("vrmse", "VRMSE", True, "persistence")
ACCURACY = Measure("accuracy", "accuracy", False, "chance")


@dataclass(frozen=True)
class SettingResult:
    """A trained model tested at one setting: a row of metrics.json.

    Attributes:
        label: of the setting, "as built" without one.
        setting: the controls.
        values: numbers by name; None is one that diverged.
        curves: lists of numbers: "rollout" and "harmonics" (steps,), "period" (axes,) of the
            latter, "tokens" (steps,), "bands" (steps, 3), "wavenumber" (m,) and "power" (steps, m);
            only those that were measured.
        fields: errors by metric and field: "vrmse.pressure".
        metrics: names of the error metrics among the values.
    """

    label: str
    setting: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Number] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fields: Mapping[str, Number] = field(default_factory=dict)
    metrics: Sequence[str] = ()

    def get(self, name: str) -> Number:
        """Returns a number, None if it is missing or diverged."""
        return self.values.get(name)

    @property
    def budget(self) -> int | None:
        """Tokens per sample that the setting asks for."""
        budget = self.setting.get("budget")
        return budget if isinstance(budget, int) else None


@dataclass(frozen=True)
class RunRecord:
    """A run folder and one data set; a pretraining run has a record per set.

    Attributes:
        folder: where the numbers are.
        name: shortest end of the folder's path that is unique among the runs read.
        status: "finished", "diverged", "failed" or "unfinished".
        measure: VRMSE or accuracy.
        data: name of the data set.
        split: tested split.
        config: dotted keys, such as ``tokenizer.budget``, with their values.
        results: one per setting; empty unless the run is finished or diverged.
        references: errors of persistence by metric, and of its rollout ("rollout_last",
            "rollout_6:12"), or the accuracy of guessing.
        reference_rollout: VRMSE of persistence at every rollout step.
        values: numbers of the whole run: parameters, seconds per training step ...
        environment: adaptok, torch, device, hardware, when.
        curve: rows of metrics.csv.
        higher: names of metrics of which a higher value is better.
        note: why it is not finished.
        source: run folder of the evaluated checkpoint; None for a training run.
        modified: time stamp of its results.
    """

    folder: Path
    name: str
    status: str
    measure: Measure
    data: str
    split: str = "test"
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[SettingResult] = ()
    references: Mapping[str, Number] = field(default_factory=dict)
    reference_rollout: Sequence[Number] = ()
    values: Mapping[str, Number] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    higher: Sequence[str] = ()
    note: str = ""
    source: Path | None = None
    modified: float = 0.0

    @property
    def reference(self) -> Number:
        """Persistence's error, or the accuracy of guessing."""
        return self.references.get(self.measure.key)

    @property
    def seed(self) -> int | None:
        """Seed of the weights and of the order of the samples."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def kind(self) -> str:
        """Tokenizer, or name of a baseline: it decides the color."""
        model = self.config.get("model.name")
        if self.measure is VRMSE and model not in (None, "surrogate"):
            return str(model)
        return str(self.config.get("tokenizer.name") or model or "unknown")

    @property
    def budget(self) -> int | str | None:
        """Tokens per sample in training; several of them as text: "32 to 512, random"."""
        settings = self.config.get("schedule.settings")
        asked = [s.get("budget") for s in settings or () if isinstance(s, dict)]
        known = [b for b in asked if isinstance(b, int)]
        if len(known) > 1:
            return f"{min(known)} to {max(known)}, {self.config.get('schedule.name')}"
        if len(known) == 1:
            return known[0]
        for key in ("budget", "tokenizer.budget"):
            if isinstance(budget := self.config.get(key), int):
                return budget
        return None

    @property
    def home(self) -> SettingResult | None:
        """The setting that the model was trained at, or else the first one."""
        return next(iter(sorted(self.results, key=self.trained_at, reverse=True)), None)

    def trained_at(self, result: SettingResult) -> bool:
        """Whether the result belongs to the setting that the model was trained at."""
        return not result.setting or result.budget == self.budget is not None

    def beats_reference(self, result: SettingResult) -> bool | None:
        """Whether a result is better than persistence (or chance); None if that is unknown."""
        if self.reference is None or self.measure.key not in result.values:
            return None
        value = result.get(self.measure.key)
        return value is not None and self.measure.better(value, self.reference)


class Runs(NamedTuple):
    """The runs found, and what was left out."""

    runs: list[RunRecord]
    problems: list[LeftOut]
