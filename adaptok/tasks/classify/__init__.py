"""Image classification with timm's models, fixed patches or adaptive ones."""

from adaptok.tasks.classify.data import ImageData
from adaptok.tasks.classify.evaluation import ClassifierResults, evaluate_classifier
from adaptok.tasks.classify.models import build_classifier, load_classifier
from adaptok.tasks.classify.module import ClassifierModule, ClassifierOptim

__all__ = [
    "ClassifierModule",
    "ClassifierOptim",
    "ClassifierResults",
    "ImageData",
    "build_classifier",
    "evaluate_classifier",
    "load_classifier",
]
