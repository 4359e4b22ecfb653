"""Adaptive tokenizers for transformers on images and PDE fields.

field -> indicator -> marking -> cells -> embedding -> processor -> decoder -> field: parts are
chosen by name, `create_surrogate` joins them, and `vision.apply_apt` puts timm's models on cells.
"""

from importlib.metadata import PackageNotFoundError, version

from adaptok import decoders, processors, tokenizers, vision
from adaptok.cells import Cells, Groups, cells_from_boxes
from adaptok.layers import positions
from adaptok.layers.attention import attend, attention_backend
from adaptok.layers.mixed import collate
from adaptok.layers.pi_resize import pi_resize
from adaptok.models.multiphysics import Multiphysics, create_multiphysics
from adaptok.models.parts import (
    Decoder,
    Processor,
    create_decoder,
    create_processor,
    create_tokenizer,
)
from adaptok.models.pretrained import from_pretrained, save_pretrained
from adaptok.models.schedules import SCHEDULES, create_schedule
from adaptok.models.surrogate import Surrogate, create_surrogate
from adaptok.processors import reducers
from adaptok.registry import (
    DECODERS,
    EMBEDDINGS,
    INDICATORS,
    MARKINGS,
    POSITIONS,
    PROCESSORS,
    REDUCERS,
    TOKENIZERS,
    Registry,
)
from adaptok.tokenizers import at_budget, calibrate
from adaptok.tokenizers.base import CellTokenizer, Embedding
from adaptok.tokenizers.indicators import Indicator
from adaptok.tokenizers.marking import Marking
from adaptok.tokenizers.tree import TreeTokenizer, cells_from_score
from adaptok.tokens import Tokenizer, TokenizerSpec, TokenSet

try:
    __version__ = version("adaptok")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "DECODERS",
    "EMBEDDINGS",
    "INDICATORS",
    "MARKINGS",
    "POSITIONS",
    "PROCESSORS",
    "REDUCERS",
    "SCHEDULES",
    "TOKENIZERS",
    "CellTokenizer",
    "Cells",
    "Decoder",
    "Embedding",
    "Groups",
    "Indicator",
    "Marking",
    "Multiphysics",
    "Processor",
    "Registry",
    "Surrogate",
    "TokenSet",
    "Tokenizer",
    "TokenizerSpec",
    "TreeTokenizer",
    "at_budget",
    "attend",
    "attention_backend",
    "calibrate",
    "cells_from_boxes",
    "cells_from_score",
    "collate",
    "create_decoder",
    "create_multiphysics",
    "create_processor",
    "create_schedule",
    "create_surrogate",
    "create_tokenizer",
    "decoders",
    "from_pretrained",
    "pi_resize",
    "positions",
    "processors",
    "reducers",
    "save_pretrained",
    "tokenizers",
    "vision",
]
