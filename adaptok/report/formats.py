"""Writes numbers as people read them."""

from __future__ import annotations

from adaptok.report.runs import Number
from adaptok.report.summaries import Spread

SI = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BINARY = ((2.0**40, "Ti"), (2.0**30, "Gi"), (2.0**20, "Mi"), (2.0**10, "ki"))
MISSING = "–"


def error(value: Number) -> str:
    """Writes an error without unit, or an accuracy."""
    if value is None:
        return MISSING
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}"


def error_spread(value: Spread | None) -> str:
    """Writes ``0.0891 ± 0.0007``; the mean alone for one seed."""
    if value is None:
        return MISSING
    return error(value.mean) + (f" ± {error(value.std)}" if value.std is not None else "")


def count(value: Number) -> str:
    """Writes a whole number, such as tokens or steps."""
    return MISSING if value is None else f"{value:.0f}"


def quantity(value: Number, unit: str = "") -> str:
    """Writes three digits with a prefix: ``1.23 GFLOP``."""
    return _scaled(value, SI, unit)


def size(value: Number) -> str:
    """Writes bytes: ``1.23 GiB``."""
    return _scaled(value, BINARY, "B")


def seconds(value: Number) -> str:
    """Writes a time in microseconds to hours; 0 means not measured."""
    if not value:
        return MISSING
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (600, 1, "s")):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def _scaled(value: Number, prefixes: tuple[tuple[float, str], ...], unit: str) -> str:
    if value is None:
        return MISSING
    for factor, prefix in prefixes:
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()
