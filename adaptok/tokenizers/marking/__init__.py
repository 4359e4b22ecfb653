"""Marking: rules that decide from node scores which nodes split."""

from adaptok.tokenizers.marking.base import Budget, Marking, Marks, OutOfReachError, per_sample
from adaptok.tokenizers.marking.best_first import split_best_first, split_stepwise, top_mask
from adaptok.tokenizers.marking.budget import BudgetMarking, plan
from adaptok.tokenizers.marking.fraction import FractionMarking
from adaptok.tokenizers.marking.maximum import MaximumMarking
from adaptok.tokenizers.marking.price import PriceController, PriceMarking
from adaptok.tokenizers.marking.random import RandomMarking
from adaptok.tokenizers.marking.threshold import (
    ThresholdMarking,
    Thresholds,
    as_thresholds,
    level_thresholds,
)
from adaptok.tokenizers.marking.tolerance import ToleranceMarking, split_to_error

__all__ = [
    "Budget",
    "BudgetMarking",
    "FractionMarking",
    "Marking",
    "Marks",
    "MaximumMarking",
    "OutOfReachError",
    "PriceController",
    "PriceMarking",
    "RandomMarking",
    "ThresholdMarking",
    "Thresholds",
    "ToleranceMarking",
    "as_thresholds",
    "level_thresholds",
    "per_sample",
    "plan",
    "split_best_first",
    "split_stepwise",
    "split_to_error",
    "top_mask",
]
