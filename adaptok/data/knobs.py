"""Checks of numbers that users set."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_integers(least: int, **values: int) -> None:
    """Raises ``ValueError`` for a value that is not an integer of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_between(least: int, most: int, meaning: str, **values: int) -> None:
    """Raises ``ValueError`` for a value not in `least` to `most`, which means `meaning`."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ValueError(f"{name} must be between {least} and {meaning}, got {value!r}")


def check_positive(**lists: Sequence[float]) -> None:
    """Raises ``ValueError`` for an empty list, or a number that is not positive and finite."""
    for name, values in lists.items():
        if not values or not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be a list of positive numbers, got {values!r}")
