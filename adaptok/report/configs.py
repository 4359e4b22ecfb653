"""Configurations without what has no influence on the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adaptok.utils.keys import NEW_MODEL, identity

# Parts that a baseline does not have, though its configuration names them.
OF_SURROGATE = (
    *("tokenizer", "processor", "decoder", "size", "history_mode", "score_on", "schedule"),
    "lookahead",
)
# Knobs that follow from a budget of the whole model and from the data.
CALIBRATED = ("budget", "size", "patch_size", "thresholds", "gamma", "price", "fraction", "ratio")
# Keys that the samples of the training split depend on, but those of the test split do not.
OF_TRAINING_DATA = (
    "data.batch_size",
    "data.train_samples",
    "data.train_fraction",
    "data.augment",
    "data.generate.train",
    "data.generate.valid",
    "data.max_lead",
)


def under(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of the names, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def significant(config: Mapping[str, Any], *, evaluated: bool = False) -> dict[str, Any]:
    """The keys of a flat configuration that tell one model from another, the seed aside.

    Args:
        evaluated: the configuration is that of ``adaptok eval``.
    """
    dropped = ["ckpt"] if evaluated else []
    if config.get("model.name", "surrogate") != "surrogate" and config.get("task") != "classify":
        dropped += OF_SURROGATE
    if config.get("budget") is not None:
        dropped += [f"tokenizer.{part}{name}" for part in ("", "marking.") for name in CALIBRATED]
    if config.get("schedule.seed") == config.get("seed"):
        dropped.append("schedule.seed")
    kept = identity(config, NEW_MODEL)
    return {key: value for key, value in kept.items() if not under(key, dropped)}
