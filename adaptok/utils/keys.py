"""Dotted keys of configurations, and what two of them differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], keys: tuple[str, ...]
) -> Iterator[str]:
    """What two configurations differ in, one sentence per dotted key; silent where one is empty."""
    if not there or not here:
        return
    flat_there = dict(flattened({k: there.get(k) for k in keys}))
    flat_here = dict(flattened({k: here.get(k) for k in keys}))
    for key in {**flat_there, **flat_here}:
        a, b = flat_there.get(key, "absent"), flat_here.get(key, "absent")
        if a != b:
            yield f"{key} is {a} in the checkpoint, {b} here"


def flattened(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values."""
    if not isinstance(config, Mapping):
        yield prefix, config
        return
    for key, value in config.items():
        yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
