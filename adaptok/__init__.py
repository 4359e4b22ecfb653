"""adaptok: adaptive tokenizers for transformers on images and PDE fields."""

from adaptok import decoders, positions, processors, tokenizers, vision
from adaptok.attention import attend, attention_backend
from adaptok.cells import Cells, Groups
from adaptok.model import (
    Surrogate,
    create_decoder,
    create_processor,
    create_surrogate,
    create_tokenizer,
)
from adaptok.multiphysics import Multiphysics, create_multiphysics
from adaptok.pi_resize import pi_resize
from adaptok.pretrained import from_pretrained, save_pretrained
from adaptok.registry import (
    DECODERS,
    EMBEDDINGS,
    INDICATORS,
    MARKINGS,
    POSITIONS,
    PROCESSORS,
    TOKENIZERS,
    Registry,
)
from adaptok.schedules import SCHEDULES, create_schedule
from adaptok.tokenizer import CellTokenizer
from adaptok.tokenizers import at_budget, calibrate
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.tree import TreeTokenizer, cells_from_score

__version__ = "0.1.0"

__all__ = [
    "DECODERS",
    "EMBEDDINGS",
    "INDICATORS",
    "MARKINGS",
    "POSITIONS",
    "PROCESSORS",
    "SCHEDULES",
    "TOKENIZERS",
    "CellTokenizer",
    "Cells",
    "Groups",
    "Multiphysics",
    "Registry",
    "Surrogate",
    "TokenSet",
    "TokenizerSpec",
    "TreeTokenizer",
    "at_budget",
    "attend",
    "attention_backend",
    "calibrate",
    "cells_from_score",
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
    "save_pretrained",
    "tokenizers",
    "vision",
]
