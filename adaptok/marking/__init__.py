"""Marking: rules that turn node scores into "split this node"."""

from adaptok.marking.base import Budget, Marking, Marks, per_sample
from adaptok.marking.best_first import split_best_first, split_stepwise, top_mask
from adaptok.marking.budget import BudgetMarking, plan
from adaptok.marking.fraction import FractionMarking
from adaptok.marking.maximum import MaximumMarking
from adaptok.marking.random import RandomMarking
from adaptok.marking.threshold import ThresholdMarking, level_thresholds

__all__ = [
    "Budget",
    "BudgetMarking",
    "FractionMarking",
    "Marking",
    "Marks",
    "MaximumMarking",
    "RandomMarking",
    "ThresholdMarking",
    "level_thresholds",
    "per_sample",
    "plan",
    "split_best_first",
    "split_stepwise",
    "top_mask",
]
