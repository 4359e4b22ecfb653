"""Conversations about images, in the layout of LLaVA's training mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

IMAGE = "<image>"
ROLES = ("human", "gpt")


class Conversation(NamedTuple):
    """Holds one image and what was said about it: pairs of question and answer."""

    image: Path
    turns: tuple[tuple[str, str], ...]


class Conversations(Dataset):
    """Reads a list like ``llava_v1_5_mix665k.json`` (Liu et al. 2024), and the images it names.

    The list holds ``{"id": ..., "image": "coco/train2017/1.jpg", "conversations": [{"from":
    "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}, ...]}``.
    Entries without an image are left out: what a recipe for the tower trains gets no gradient from
    them.

    Args:
        file: the list.
        images: folder that its images are named in; by default that of the list.

    Attributes:
        without_image: number of entries that were left out.

    Raises:
        ValueError: no such file, or an entry of another form.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None):
        path = Path(file).expanduser()
        root = path.parent if images is None else Path(images).expanduser()
        if not path.is_file():
            raise ValueError(f"no list of conversations at {path}")
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} holds no JSON: {error}") from error
        if not isinstance(entries, list):
            raise ValueError(f"{path} must hold a list of conversations, got {type(entries)}")
        with_image = [(i, e) for i, e in enumerate(entries) if "image" in e]
        self.without_image = len(entries) - len(with_image)
        self.entries = [
            Conversation(root / entry["image"], _turns(entry, f"{path}, entry {number}"))
            for number, entry in with_image
        ]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Image.Image, tuple[tuple[str, str], ...]]:
        """Returns an RGB image and its turns; the first question holds ``<image>`` once."""
        entry = self.entries[index]
        with Image.open(entry.image) as image:
            return image.convert("RGB"), entry.turns


def _turns(entry: Any, where: str) -> tuple[tuple[str, str], ...]:
    said = entry.get("conversations") or []
    roles = [one.get("from") for one in said]
    if not said or len(said) % 2 or roles != [*ROLES] * (len(said) // 2):
        raise ValueError(f"{where}: human and gpt speak by turns, got {roles}")
    texts = [one["value"] for one in said]
    if sum(text.count(IMAGE) for text in texts) != 1 or IMAGE not in texts[0]:
        raise ValueError(f"{where}: the first question, and it alone, must name {IMAGE} once")
    return tuple(zip(texts[::2], texts[1::2], strict=True))
