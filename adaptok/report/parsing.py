"""Values of metrics.json, whatever is missing or of another type than expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptok.report.records import Number, Result

BANDS = ("low", "middle", "high")
# Entries of a row that are read by name; other numbers are kept under their own.
STRUCTURED = ("label", "setting", "controls", "vrmse", "tokens", "rollout", "spectral_nmse")


def chain(content: Any, *keys: str) -> Any:
    """A nested entry, None where there is none."""
    for key in keys:
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content


def number(value: Any) -> Number:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def numbers(values: Any) -> list[Number]:
    """A list of numbers, empty for anything else."""
    return [number(v) for v in values] if isinstance(values, list) else []


def result_of(row: Mapping[str, Any]) -> Result:
    """A row of ``settings``."""
    values: dict[str, Number] = {}
    setting = row.get("setting")
    if "vrmse" in row:
        values["vrmse"] = number(chain(row, "vrmse", "mean"))
        values["vrmse_median"] = number(chain(row, "vrmse", "median"))
    for name, suffix in (("mean", ""), ("min", "_min"), ("max", "_max")):
        if (tokens := number(chain(row, "tokens", name))) is not None:
            values[f"tokens{suffix}"] = tokens
    for name, value in zip(BANDS, numbers(row.get("spectral_nmse")), strict=False):
        values[f"nmse_{name}"] = value
    values |= _rollout_values(row.get("rollout"))
    for key, value in row.items():
        if key not in STRUCTURED:
            values |= _scalars(key, value)
    per_field = chain(row, "vrmse", "fields")
    return Result(
        label=str(row.get("label") or "as built"),
        setting=dict(setting) if isinstance(setting, Mapping) else {},
        values=values,
        curves=_curves(row.get("rollout")),
        fields={str(k): number(chain(v, "mean")) for k, v in (per_field or {}).items()}
        if isinstance(per_field, Mapping)
        else {},
    )


def _rollout_values(rollout: Any) -> dict[str, Number]:
    steps = numbers(chain(rollout, "mean"))
    windows = chain(rollout, "windows")
    values: dict[str, Number] = {}
    if steps:
        values |= {"rollout_last": steps[-1], "rollout_steps": float(len(steps))}
    if isinstance(windows, Mapping):
        values |= {f"rollout_{name}": number(value) for name, value in windows.items()}
    return values


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


def _scalars(key: str, value: Any) -> dict[str, Number]:
    """A number, or those of a mapping: flops and flops_tokenizer ..."""
    if isinstance(value, Mapping):
        scalars = {f"{key}_{k}": number(v) for k, v in value.items() if number(v) is not None}
        if f"{key}_total" in scalars:
            scalars[key] = scalars.pop(f"{key}_total")
        return scalars
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {key: number(value)} if is_number or value is None else {}
