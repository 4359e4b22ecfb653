"""Parameters of tests that are too many for the fast suite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(values: Iterable[Any], every: int) -> list[Any]:
    """Leaves one value in `every` to the fast tests, the first among them, the rest to the slow."""
    slow = pytest.mark.slow
    return [v if i % every == 0 else pytest.param(v, marks=slow) for i, v in enumerate(values)]
