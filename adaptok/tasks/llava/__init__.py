"""LLaVA on adaptive patches: its training mixture, APT's recipe for it, and a test."""

from adaptok.tasks.llava.batches import LlavaData, tokens_of
from adaptok.tasks.llava.evaluation import LlavaResults, evaluate_llava
from adaptok.tasks.llava.models import adapt_llava, load_llava
from adaptok.tasks.llava.run import fit_and_test_llava
from adaptok.tasks.llava.training import LlavaModule

__all__ = [
    "LlavaData",
    "LlavaModule",
    "LlavaResults",
    "adapt_llava",
    "evaluate_llava",
    "fit_and_test_llava",
    "load_llava",
    "tokens_of",
]
