"""Checks of numbers that users set."""

from __future__ import annotations

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
    """Raises ``ValueError`` for a list that is empty or has a number that is not positive."""
    for name, values in lists.items():
        if not values or min(values) <= 0:
            raise ValueError(f"{name} must be a list of positive numbers, got {values!r}")
