"""adaptok: adaptive tokenizers for transformers on images and PDE fields."""

from adaptok import decoders, processors, tokenizers
from adaptok.attention import attend, attention_backend
from adaptok.cells import Cells, Groups
from adaptok.model import (
    Surrogate,
    create_decoder,
    create_processor,
    create_surrogate,
    create_tokenizer,
)
from adaptok.pi_resize import pi_resize
from adaptok.pretrained import from_pretrained, save_pretrained
from adaptok.registry import (
    DECODERS,
    EMBEDDINGS,
    INDICATORS,
    MARKINGS,
    PROCESSORS,
    TOKENIZERS,
    Registry,
)
from adaptok.schedules import SCHEDULES, create_schedule
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.tree import TreeTokenizer, cells_from_score

__version__ = "0.1.0"

__all__ = [
    "DECODERS",
    "EMBEDDINGS",
    "INDICATORS",
    "MARKINGS",
    "PROCESSORS",
    "SCHEDULES",
    "TOKENIZERS",
    "Cells",
    "Groups",
    "Registry",
    "Surrogate",
    "TokenSet",
    "TokenizerSpec",
    "TreeTokenizer",
    "attend",
    "attention_backend",
    "cells_from_score",
    "create_decoder",
    "create_processor",
    "create_schedule",
    "create_surrogate",
    "create_tokenizer",
    "decoders",
    "from_pretrained",
    "pi_resize",
    "processors",
    "save_pretrained",
    "tokenizers",
]
