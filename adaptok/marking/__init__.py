"""Marking: rules that turn node scores into "split this node"."""

from adaptok.marking.base import Budget, Marking, Marks, per_sample
from adaptok.marking.best_first import split_best_first, split_stepwise, top_mask
from adaptok.marking.budget import BudgetMarking
from adaptok.marking.fraction import FractionMarking
from adaptok.marking.maximum import MaximumMarking
from adaptok.marking.random import RandomMarking

__all__ = [
    "Budget",
    "BudgetMarking",
    "FractionMarking",
    "Marking",
    "Marks",
    "MaximumMarking",
    "RandomMarking",
    "per_sample",
    "split_best_first",
    "split_stepwise",
    "top_mask",
]
