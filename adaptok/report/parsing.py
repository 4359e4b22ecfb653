"""Values of metrics.json, tolerant of missing entries and unexpected types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptok.report.runs import Number, SettingResult

BANDS = ("low", "middle", "high")
FIRST = ("vrmse", "tokens", "spectral_nmse", "rollout")  # order of the columns
OTHERS = ("label", "setting", "controls")  # entries of a row that are no numbers


def chain(content: Any, *keys: str) -> Any:
    """Returns a nested entry, None if there is none."""
    for key in keys:
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content


def entries(content: Any, *keys: str) -> dict[str, Any]:
    """Returns a nested mapping, empty for anything else."""
    found = chain(content, *keys)
    return {str(k): v for k, v in found.items()} if isinstance(found, Mapping) else {}


def number(value: Any) -> Number:
    """Returns a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def numbers(values: Any) -> list[Number]:
    """Returns a list of numbers, empty for anything else."""
    return [number(v) for v in values] if isinstance(values, list) else []


def result_of(row: Mapping[str, Any]) -> SettingResult:
    """Reads a row of ``settings``: every mapping with a "mean" but the tokens is an error metric.

    Names of values: "x" for a number x and for the mean or total of a mapping x, "x_part" for its
    other numbers (``flops_processor``, ``vrmse_median``, ``auxiliary_drift``).
    """
    values: dict[str, Number] = {}
    fields: dict[str, Number] = {}
    metrics = [k for k, v in row.items() if isinstance(v, Mapping) and "mean" in v]
    metrics = [name for name in metrics if name not in ("tokens", "rollout")]
    for name, value in ({key: row[key] for key in FIRST if key in row} | dict(row)).items():
        if name in OTHERS or isinstance(value, bool):
            continue
        if name == "spectral_nmse":
            bands = zip(BANDS, numbers(value), strict=False)
            values |= {f"nmse_{band}": error for band, error in bands}
        elif name == "rollout":
            if steps := numbers(chain(value, "mean")):
                values |= {"rollout_last": steps[-1], "rollout_steps": float(len(steps))}
            windows = entries(value, "windows")
            values |= {f"rollout_{window}": number(error) for window, error in windows.items()}
        elif isinstance(value, Mapping):
            own = {f"{name}_{k}": number(v) for k, v in value.items()}
            kept = (f"{name}_mean", f"{name}_median") if name in metrics else ()
            own = {k: v for k, v in own.items() if v is not None or k in kept}
            renamed = {f"{name}_mean": name, f"{name}_total": name}
            values |= {renamed.get(k, k): v for k, v in own.items()}
            errors = entries(value, "fields") if name in metrics else {}
            fields |= {f"{name}.{field}": number(chain(v, "mean")) for field, v in errors.items()}
        elif name == "vrmse" or value is None or isinstance(value, (int, float)):
            values[name] = number(value)
    return SettingResult(
        label=str(row.get("label") or "as built"),
        setting=entries(row, "setting"),
        values=values,
        curves=_curves(row.get("rollout")),
        fields=fields,
        metrics=metrics,
    )


def _curves(rollout: Any) -> dict[str, list[Any]]:
    bands, power = chain(rollout, "spectral_nmse"), chain(rollout, "residual_spectrum", "power")
    curves: dict[str, list[Any]] = {
        "rollout": numbers(chain(rollout, "mean")),
        "harmonics": numbers(chain(rollout, "patch_harmonics")),
        "wavenumber": numbers(chain(rollout, "residual_spectrum", "wavenumber")),
        "bands": [numbers(row) for row in bands] if isinstance(bands, list) else [],
        "power": [numbers(row) for row in power] if isinstance(power, list) else [],
    }
    return {name: values for name, values in curves.items() if values}
