"""Checks of own parts, as the project makes them of its own: call them in your tests.

Each builds small random inputs, runs the part on them, and raises ``AssertionError`` that names the
part and the promise that it breaks.
"""

from adaptok.testing.cells import check_indicator, check_marking
from adaptok.testing.tokens import (
    check_decoder,
    check_embedding,
    check_processor,
    check_tokenizer,
)

__all__ = [
    "check_decoder",
    "check_embedding",
    "check_indicator",
    "check_marking",
    "check_processor",
    "check_tokenizer",
]
