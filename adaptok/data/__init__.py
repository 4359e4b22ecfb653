"""Reads data sets in the Well's format, and (in `adaptok.data.synthetic`) makes them.

Lightning and the_well, which `WellData`, `PDEBench` and `Mixture` need, are imported when one of
these is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptok.data.info import FieldInfo

if TYPE_CHECKING:
    from adaptok.data.mixture import Mixture
    from adaptok.data.pdebench import PDEBench
    from adaptok.data.well import WellData

__all__ = ["FieldInfo", "Mixture", "PDEBench", "WellData"]
MODULES = {"Mixture": "mixture", "PDEBench": "pdebench", "WellData": "well"}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"adaptok.data.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
