"""A tiny LLaVA with random weights, and scenes with conversations in LLaVA's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH = 64, 8
COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}
PATTERNS = ("plain", "striped", "dotted")
SIZES = ("small", "large")
CHANCE = 1 / (len(COLORS) * len(PATTERNS) * len(SIZES))
QUESTIONS = {"Which colour ?": COLORS, "Which pattern ?": PATTERNS, "Which size ?": SIZES}
FILLER, MOST = "look", 24  # words before an image, so that a model does not count places
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")


def scene(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """Draws a noisy square on a plain background; returns it with its colour, pattern and size."""
    color, pattern, size = (str(rng.choice([*kinds])) for kinds in QUESTIONS.values())
    side = int(rng.integers(12, 17) if size == "small" else rng.integers(24, 29))
    top, left = (int(n) for n in rng.integers(0, SIDE - side, 2))
    y, x = np.mgrid[:side, :side] // 2 % 2
    dark = {"plain": 0 * y, "striped": y, "dotted": y * x}[pattern]
    square = np.array(COLORS[color]) * (1 - 0.7 * dark[..., None])
    pixels = np.full((SIDE, SIDE, 3), rng.uniform(90, 180))
    pixels[top : top + side, left : left + side] = square + rng.normal(0, 10, (side, side, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), [color, pattern, size]


def write_scenes(folder: Path, count: int, seed: int) -> Path:
    """Writes scenes and their list of conversations; returns the list."""
    rng, entries = np.random.default_rng(seed), []
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, answers = scene(rng)
        name = f"scenes/{number:05d}.png"
        image.save(folder / name)
        said = []
        for question, answer in zip(QUESTIONS, answers, strict=True):
            before = f"{FILLER} " * int(rng.integers(MOST + 1))
            lead = "" if said else f"{before}<image>\n"
            said += [{"from": "human", "value": lead + question}, {"from": "gpt", "value": answer}]
        entries.append({"id": str(number), "image": name, "conversations": said})
    file = folder / "conversations.json"
    file.write_text(json.dumps(entries))
    return file


def write_llava(folder: Path, seed: int) -> Path:
    """Writes a LLaVA of 0.3 million random weights (CLIP and Llama) with its processor."""
    text = ["USER : ASSISTANT", FILLER, *QUESTIONS, *COLORS, *PATTERNS, *SIZES]
    words = [*SPECIAL, *dict.fromkeys(" ".join(text).split())]
    vocabulary = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    plain = Tokenizer(vocabulary)
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size=size, crop_size=size)
    processor = LlavaProcessor(images, tokenizer, patch_size=PATCH)
    width: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**width, num_hidden_layers=4, image_size=SIDE, patch_size=PATCH)
    language = LlamaConfig(
        **width,
        num_hidden_layers=2,
        num_key_value_heads=4,
        vocab_size=len(words),
        pad_token_id=words.index("<pad>"),
    )
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=words.index("<image>")
    )
    torch.manual_seed(seed)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
