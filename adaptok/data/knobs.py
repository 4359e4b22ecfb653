"""Checks of numbers that users set."""

from __future__ import annotations


def check_between(least: int, most: int, meaning: str, **values: int) -> None:
    """Raises ``ValueError`` for a value not in `least` to `most`, which means `meaning`."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ValueError(f"{name} must be between {least} and {meaning}, got {value!r}")
