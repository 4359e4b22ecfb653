"""Vision models of transformers on adaptive patches (extra ``hf``); importing this imports it."""

from adaptok.vision.hf.apply import statistics
from adaptok.vision.hf.llava import encode_images, expand_placeholders
from adaptok.vision.hf.outputs import TowerOutput

__all__ = ["TowerOutput", "encode_images", "expand_placeholders", "statistics"]
