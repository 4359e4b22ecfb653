"""Made-up rows of the benchmark."""

from __future__ import annotations

from typing import Any

from adaptok.evaluation.standings import SCHEMA, Row, key_of

METRICS: dict[str, dict[str, Any]] = {
    "T0": {"field_0": 0.3, "field_1": 0.2, "change_0": 0.5, "change_1": 0.4},
    "T1": {"vrmse": 0.2, "worst_decile": 0.3, "persistence": 0.5, "transfer": None},
    "T2": {"error": 0.1, "chance": 0.9, "dense_loss": None},
}


def made_up(**given: Any) -> Row:
    """A row that passes all checks, with changes; `metrics` are added to those of the track."""
    track = given.get("track", "T1")
    config = {"method": given.get("method", "iap"), "seed": given.get("seed", 0)}
    errors = [0.1 * (step + 1) for step in range(12)]
    rollout = {"first": 1, "errors": errors, "windows": {"6:12": sum(errors[6:]) / 6}}
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "track": "T1",
        "set": "maze_64",
        "method": "iap",
        "budget": {"kind": "tokens", "value": 64},
        "seed": 0,
        "measured": True,
        "source": "",
        "key": key_of(given.get("config", config)),
        "config": config,
        "commit": "abc1234",
        "versions": {"adaptok": "0.1.0", "torch": "2.10.0", "python": "3.11.7"},
        "hardware": "cpu, x86_64, 1 thread",
        "when": "2026-11-01T00:00:00+00:00",
        "tokens": 64.0,
        "flops": 4e7,
        "parameters": 1000,
        "seconds": {"training": 0.03, "inference": 0.01},
        "memory": 10**6,
        "rollout": rollout if track == "T1" else None,
    }
    metrics = METRICS[track] | given.pop("metrics", {})
    return Row(**{**fields, "metrics": metrics, **given})
