"""Vision models of transformers on adaptive patches (extra ``hf``); importing this imports it."""

from adaptok.vision.hf.apply import statistics
from adaptok.vision.hf.outputs import TowerOutput
from adaptok.vision.hf.prompts import encode_images, expand_placeholders

__all__ = ["TowerOutput", "encode_images", "expand_placeholders", "statistics"]
