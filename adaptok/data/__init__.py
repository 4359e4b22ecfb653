"""Reads data sets in the Well's format, makes them of arrays, and (in `adaptok.data.synthetic`)
simulates them.

Lightning and the_well, which `WellData`, `PDEBench` and `Mixture` need, are imported when one of
these is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptok.data.info import FieldInfo

if TYPE_CHECKING:
    from adaptok.data.arrays import from_arrays
    from adaptok.data.mixture import Mixture
    from adaptok.data.pdebench import PDEBench
    from adaptok.data.statistics import write_statistics
    from adaptok.data.well import WellData

__all__ = ["FieldInfo", "Mixture", "PDEBench", "WellData", "from_arrays", "write_statistics"]
MODULES = {
    "Mixture": "mixture",
    "PDEBench": "pdebench",
    "WellData": "well",
    "from_arrays": "arrays",
    "write_statistics": "statistics",
}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"adaptok.data.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
