"""What rows of studies train: configuration, data and model, a fit that resumes, its curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.data import WellData
from adaptok.evaluation.evaluate import persistence
from adaptok.models.one_step import OneStepModel
from adaptok.tasks.surrogate import begin, config_at_budget, fit_surrogate, objectives
from adaptok.training import SurrogateModule
from adaptok.utils.keys import quoted
from adaptok.utils.tables import read_metrics

Configured = tuple[dict[str, Any], WellData, OneStepModel]


class Trained(Protocol):
    """A row that trains; its key is a hash of all that decides the numbers."""

    @property
    def data(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def key(self) -> str: ...
    def overrides(self) -> list[str]: ...


def configured(row: Trained, work: Path, steps: int) -> Configured:
    """Returns configuration, data and fresh model of a row.

    Args:
        steps: of the rollouts of its test.
    """
    words = [*row.overrides(), f"seed={row.seed}", quoted("data.base", work / "data" / row.data)]
    last = work / row.label / row.key / "checkpoints" / "last.ckpt"
    words += [quoted("resume", last)] if last.is_file() else []
    config = plain(compose("train", [*words, f"test.steps={steps}"]))
    begin(config)
    data = build_data(config)
    if config["budget"] is not None:
        config = dict(config_at_budget(config, data))
    return config, data, build_surrogate(config, data.info)


def fit(row: Trained, made: Configured, work: Path) -> tuple[int, list[tuple[int, float]]]:
    """Trains the model of a row, from its last checkpoint if there is one.

    Returns:
        The number of steps, and the validation errors by step. The model has its averaged weights.
    """
    config, data, model = made
    folder = work / row.label / row.key
    module = SurrogateModule(model, *objectives(config), config, seed=config["seed"])
    took = fit_surrogate(module, data, config, folder)
    assert took is not None
    logged = [(int(m["step"]), m["val/vrmse"]) for m in read_metrics(folder) if "val/vrmse" in m]
    return took.steps, sorted(dict(logged).items())  # once each, though a kill may repeat one


def still(data: WellData, steps: int) -> dict[str, Any]:
    """Returns the errors of persistence, one step and rollouts."""
    found = persistence(data, "test", steps)
    assert found.rollout is not None
    return {"vrmse": found.vrmse.mean, "rollout": list(found.rollout.mean)}
