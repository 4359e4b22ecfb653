"""Data sets in the Well's format: reading them, and (in `adaptok.data.synthetic`) making them.

`WellData` needs lightning and the_well, which are imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptok.data.info import FieldInfo

if TYPE_CHECKING:
    from adaptok.data.well import WellData

__all__ = ["FieldInfo", "WellData"]


def __getattr__(name: str) -> Any:
    if name == "WellData":
        from adaptok.data.well import WellData

        return WellData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
