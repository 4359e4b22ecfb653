"""Marking: rules that turn node scores into "split this node"."""

from adaptok.marking.base import Budget, Marking, Marks, per_sample
from adaptok.marking.best_first import split_best_first, split_stepwise, top_mask
from adaptok.marking.budget import BudgetMarking
from adaptok.marking.random import RandomMarking

__all__ = [
    "Budget",
    "BudgetMarking",
    "Marking",
    "Marks",
    "RandomMarking",
    "per_sample",
    "split_best_first",
    "split_stepwise",
    "top_mask",
]
