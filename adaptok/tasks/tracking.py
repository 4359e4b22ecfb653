"""Weights & Biases: what a finished run adds to the curves that its logger has written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from adaptok.training.targets import check_loggers
from adaptok.training.trainer import wandb_logger
from adaptok.utils.keys import flattened

Config = Mapping[str, Any]


@contextmanager
def tracked(config: Config, folder: Path) -> Iterator[None]:
    """Logs results and pictures when the run ends and closes it; does nothing if wandb is off.

    Args:
        config: plain configuration; ``config["logger"]["wandb"]`` is None, or arguments of
            Lightning's WandbLogger.
        folder: of the run.

    Raises:
        ValueError: a logger whose package is not installed.
    """
    check_loggers(config["logger"])
    if config["logger"].get("wandb") is None:
        yield
        return
    import wandb

    try:
        yield
        if rank_zero_only.rank == 0:
            _log_results(config, folder)
    except BaseException:
        wandb.finish(exit_code=1)
        raise
    wandb.finish()  # the next run of a sweep is a run of its own


def logger_arguments(config: Config) -> dict[str, Any]:
    """Logger arguments of `make_trainer`, with the configuration of the run for wandb."""
    others = dict(config["logger"])
    chosen = others.pop("wandb", None)
    wandb = None if chosen is None else {**chosen, "config": dict(config)}
    return {"wandb": wandb, "loggers": others}


def _log_results(config: Config, folder: Path) -> None:
    import wandb

    run = wandb.run
    if run is None:  # nothing was trained: no logger has begun one
        run = wandb_logger(folder, **logger_arguments(config)["wandb"]).experiment
    files = sorted(folder.rglob("metrics.json"))
    rows = [row for file in files for row in table_rows(json.loads(file.read_text()))]
    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    values: list[Any] = [[row.get(column) for column in columns] for row in rows]
    table = wandb.Table(columns=columns, data=values, allow_mixed_types=True)
    pictures = {
        str(path.relative_to(folder).with_suffix("")): wandb.Image(str(path))
        for path in sorted(folder.rglob("*.png"))
        if "wandb" not in path.relative_to(folder).parts
    }
    run.log({"test_table": table, **pictures})
    for name, value in (rows[0] if rows else {}).items():
        run.summary[f"test/{name}"] = value


def table_rows(results: Config) -> list[dict[str, Any]]:
    """One row per setting of a metrics.json: its numbers, by dotted name; lists are left out."""
    rows = []
    for setting in results["settings"]:
        numbers = {k: v for k, v in flattened(setting) if isinstance(v, (int, float, str))}
        rows.append({"data": results.get("data"), **numbers})
    return rows
