"""Published sets of images with masks, boxes or conversations, in the folders that they come in.

Needs torchvision and lightning (extras ``vision`` and ``train``). Images with class labels are
read by `adaptok.tasks.classify.ImageData`.
"""

from adaptok.data.images.ade20k import ADE20K
from adaptok.data.images.coco import COCO
from adaptok.data.images.conversations import Conversations
from adaptok.data.images.loading import DetectionData, SegmentationData

__all__ = ["ADE20K", "COCO", "Conversations", "DetectionData", "SegmentationData"]
