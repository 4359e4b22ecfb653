"""Image classification with timm's models, fixed patches or adaptive ones."""

from adaptok.classify.data import ImageData
from adaptok.classify.evaluation import evaluate_classifier
from adaptok.classify.models import build_classifier, load_classifier
from adaptok.classify.module import ClassifierModule, ClassifierOptim

__all__ = [
    "ClassifierModule",
    "ClassifierOptim",
    "ImageData",
    "build_classifier",
    "evaluate_classifier",
    "load_classifier",
]
