"""timm's vision transformers on adaptive patches (APT). Importing this does not import timm."""

from adaptok.vision.apply import apply_apt, apply_reducer, freeze_all_but_new, supported
from adaptok.vision.batches import pack
from adaptok.vision.cut_images import CutImages, Tokenize
from adaptok.vision.detection import DetectionBackbone, skip_padding
from adaptok.vision.features import VisionTokens, dense_map
from adaptok.vision.padding import pad_maps
from adaptok.vision.pyramid import FeaturePyramid
from adaptok.vision.segmentation import Segmenter, UperHead
from adaptok.vision.tokenizers import IMAGE_TOKENIZERS
from adaptok.vision.vision_tower import TowerTokens, VisionTower

__all__ = [
    "IMAGE_TOKENIZERS",
    "CutImages",
    "DetectionBackbone",
    "FeaturePyramid",
    "Segmenter",
    "Tokenize",
    "TowerTokens",
    "UperHead",
    "VisionTokens",
    "VisionTower",
    "apply_apt",
    "apply_reducer",
    "dense_map",
    "freeze_all_but_new",
    "pack",
    "pad_maps",
    "skip_padding",
    "supported",
]
