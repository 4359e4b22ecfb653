"""Reducers: fewer tokens inside a transformer, by merging or dropping them between its blocks."""

from adaptok.processors.reducers.base import Reduced, Reducer, Seen, per_block
from adaptok.processors.reducers.dtem import DTEM
from adaptok.processors.reducers.dynamicvit import DynamicViT
from adaptok.processors.reducers.evit import EViT
from adaptok.processors.reducers.flow import Flow, advance, begin, subset
from adaptok.processors.reducers.pitome import PiToMe
from adaptok.processors.reducers.random import RandomDropping
from adaptok.processors.reducers.sequences import Reduction, Sequences, in_order, largest
from adaptok.processors.reducers.tome import ToMe, match
from adaptok.processors.reducers.trail import Trail
from adaptok.registry import REDUCERS

__all__ = [
    "DTEM",
    "REDUCERS",
    "DynamicViT",
    "EViT",
    "Flow",
    "PiToMe",
    "RandomDropping",
    "Reduced",
    "Reducer",
    "Reduction",
    "Seen",
    "Sequences",
    "ToMe",
    "Trail",
    "advance",
    "begin",
    "in_order",
    "largest",
    "match",
    "per_block",
    "subset",
]
