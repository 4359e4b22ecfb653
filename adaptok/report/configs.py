"""Configurations without what has no influence on the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Prefixes of keys that say where and how fast a run is done, not what is trained.
NEUTRAL = (
    "name",
    "sweep",
    "logger",
    "resume",
    "resume_anyway",
    "test",
    "activation_checkpointing",
    "vocabulary",
    "data.base",
    "data.storage_options",
    "data.num_workers",
    "data.cache",
    "data.cache_limit",
    "data.skip_bad",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.val_check_interval",
    "trainer.limit_val_batches",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.compile",
)
# Likewise, of `adaptok eval`.
OF_EVAL = (
    "ckpt",
    "split",
    "settings",
    "steps",
    "patch_size",
    "device",
    "save_predictions",
    "video",
)
# Parts that a baseline does not have, though its configuration names them.
OF_SURROGATE = ("tokenizer", "processor", "decoder", "size", "history_mode", "score_on", "schedule")
# Knobs that follow from a budget of the whole model and from the data.
CALIBRATED = ("budget", "size", "patch_size", "thresholds", "gamma", "fraction", "ratio")
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
    dropped = [*NEUTRAL, "seed", *(OF_EVAL if evaluated else ())]
    if config.get("model.name", "surrogate") != "surrogate" and config.get("task") != "classify":
        dropped += OF_SURROGATE
    if config.get("budget") is not None:
        dropped += [f"tokenizer.{part}{name}" for part in ("", "marking.") for name in CALIBRATED]
    if config.get("schedule.seed") == config.get("seed"):
        dropped.append("schedule.seed")
    return {key: value for key, value in config.items() if not under(key, dropped)}
