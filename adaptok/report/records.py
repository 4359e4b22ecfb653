"""What is kept of a run: plain values, each of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Number = float | None


class Problem(NamedTuple):
    """A folder that was left out, or a part of it, and why."""

    folder: Path
    what: str


class Measure(NamedTuple):
    """The number that models are compared by."""

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
class Result:
    """A trained model at one setting: a row of metrics.json.

    Attributes:
        label: of the setting, "as built" without one.
        setting: the controls.
        values: numbers by name; None is one that diverged.
        curves: lists of numbers: "rollout" and "harmonics" (steps,), "bands" (steps, 3),
            "wavenumber" (m,) and "power" (steps, m); only those that were measured.
        fields: VRMSE by field.
    """

    label: str
    setting: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Number] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fields: Mapping[str, Number] = field(default_factory=dict)

    def get(self, name: str) -> Number:
        """A number, None where it is missing or diverged."""
        return self.values.get(name)

    @property
    def budget(self) -> int | None:
        """Tokens per sample that the setting asks for."""
        budget = self.setting.get("budget")
        return budget if isinstance(budget, int) else None


@dataclass(frozen=True)
class Run:
    """A run folder, for one data set: a pretraining run is one of these per set.

    Attributes:
        folder: where the numbers are.
        name: of the folder, as short as it is unique among those read.
        status: "finished", "diverged", "failed" or "unfinished".
        measure: VRMSE or accuracy.
        data: name of the data set.
        split: that was tested.
        config: of the run, flat: ``tokenizer.budget``.
        results: a row per setting, empty unless it is finished or diverged.
        reference: errors of persistence, or the accuracy of guessing.
        reference_rollout: VRMSE of persistence at every rollout step.
        values: numbers of the whole run: parameters, seconds per training step ...
        environment: adaptok, torch, device, hardware, when.
        curve: rows of metrics.csv.
        note: why it is not finished.
        source: run folder of the checkpoint that was evaluated, None of a training run.
        modified: time stamp of its results.
    """

    folder: Path
    name: str
    status: str
    measure: Measure
    data: str
    split: str = "test"
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()
    reference: Number = None
    reference_rollout: Sequence[Number] = ()
    values: Mapping[str, Number] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    note: str = ""
    source: Path | None = None
    modified: float = 0.0

    @property
    def seed(self) -> int | None:
        """Seed of the weights and of the order of the samples."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def kind(self) -> str:
        """What gives a run its colour: its tokenizer, or the name of a baseline."""
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
    def home(self) -> Result | None:
        """The setting that the model was trained at, or else the first one."""
        at_home = [result for result in self.results if self.trained_at(result)]
        return next(iter([*at_home, *self.results]), None)

    def trained_at(self, result: Result) -> bool:
        """Whether a result is of the setting that the model was trained at."""
        return not result.setting or result.budget == self.budget is not None

    def reference_of(self, name: str) -> Number:
        """Persistence's value of "vrmse", "rollout_last" or a window such as "rollout_6:12"."""
        if name == self.measure.key:
            return self.reference
        window = name.removeprefix("rollout_")
        if name == "rollout_last":
            steps = list(self.reference_rollout[-1:])
        elif ":" in window:
            first, _, stop = window.partition(":")
            steps = list(self.reference_rollout[int(first) : int(stop)])
        else:
            return None
        known = [step for step in steps if step is not None]
        return sum(known) / len(known) if known and len(known) == len(steps) else None

    def beats_reference(self, result: Result) -> bool | None:
        """Whether a result is better than persistence (or chance); None where that is unknown."""
        if self.reference is None or self.measure.key not in result.values:
            return None
        value = result.get(self.measure.key)
        return value is not None and self.measure.better(value, self.reference)


class Runs(NamedTuple):
    """What was found: the runs, and what was left out."""

    runs: list[Run]
    problems: list[Problem]
