"""Training: Lightning modules around models, their trainer, optimization and checkpoints.

Imports Lightning when one of these is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptok.training.optim import Optim
    from adaptok.training.pretraining import PretrainModule
    from adaptok.training.surrogate_module import SurrogateModule
    from adaptok.training.trainer import make_trainer

__all__ = ["Optim", "PretrainModule", "SurrogateModule", "make_trainer"]
MODULES = {
    "Optim": "optim",
    "PretrainModule": "pretraining",
    "SurrogateModule": "surrogate_module",
    "make_trainer": "trainer",
}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"adaptok.training.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
