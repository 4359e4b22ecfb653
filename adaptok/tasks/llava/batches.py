"""Batches of conversations about images, as LLaVA-1.5 is fine-tuned on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from adaptok.data.images import Conversations
from adaptok.data.order import EpochSampler, ResumableLoader, Seeded
from adaptok.utils.arguments import NonNegative, Positive, Seed, checked

# What LLaVA-1.5 was trained with (that of Vicuna), in front of every conversation.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
SKIPPED = -100  # label of a token that the loss leaves out
Turns = Sequence[tuple[str, str]]


def tokens_of(turns: Turns, tokenizer: Any, system: str = SYSTEM) -> tuple[list[int], list[int]]:
    """Returns the tokens of a conversation, and labels: its answers, with the end of each, and
    -100 elsewhere.

    ``<system> USER: <question> ASSISTANT: <answer></s>USER: ...``, LLaVA-1.5's form. The image has
    one placeholder, which `adaptok.vision.hf.encode_images` repeats for its tokens.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens, labels, lead = start, [SKIPPED] * len(start), f"{system} " if system else ""
    for question, answer in turns:
        asked = ids(f"{lead}USER: {question} ASSISTANT:")
        said = [*ids(answer), tokenizer.eos_token_id]
        tokens = [*tokens, *asked, *said]
        labels = [*labels, *[SKIPPED] * len(asked), *said]
        lead = ""
    return tokens, labels


class Collate:
    """Makes a batch of conversations: what LLaVA's processor returns, with labels.

    Args:
        processor: LLaVA's.
        max_length: tokens of a conversation, its image counted as one; the rest is cut off.
        system: see `tokens_of`.
    """

    def __init__(self, processor: Any, max_length: int, system: str):
        self.processor, self.max_length, self.system = processor, max_length, system

    def __call__(self, samples: Sequence[tuple[Any, Turns]]) -> dict[str, Tensor]:
        """Returns input_ids, attention_mask and labels (b, n), and pixel_values (b, 3, h, w)."""
        tokenizer = self.processor.tokenizer
        rows = [tokens_of(turns, tokenizer, self.system) for _, turns in samples]
        rows = [(ids[: self.max_length], own[: self.max_length]) for ids, own in rows]
        longest = max(len(ids) for ids, _ in rows)
        pad = tokenizer.pad_token_id or 0
        left = [longest - len(ids) for ids, _ in rows]  # on the left, as generation needs it
        table = {
            "input_ids": [[pad] * n + ids for n, (ids, _) in zip(left, rows, strict=True)],
            "attention_mask": [[0] * n + [1] * (longest - n) for n in left],
            "labels": [[SKIPPED] * n + own for n, (_, own) in zip(left, rows, strict=True)],
        }
        images = [image for image, _ in samples]
        pixels = self.processor.image_processor(images=images, return_tensors="pt").pixel_values
        return {**{k: torch.tensor(v) for k, v in table.items()}, "pixel_values": pixels}


class LlavaData(LightningDataModule):
    """Loads a list of conversations in LLaVA's layout, see `adaptok.data.images.Conversations`.

    The order of training is a function of (seed, epoch).

    Args:
        processor: of the model.
        path: the list, such as ``llava_v1_5_mix665k.json``.
        images: folder that its images are named in; by default that of the list.
        valid: conversations at the end of the list that are not trained on, but tested.
        batch_size: conversations per batch and process.
        max_length: tokens of a conversation, its image counted as one; the rest is cut off.
        system: text in front of every conversation.
        num_workers: processes that load images.
        seed: for the order.

    Raises:
        ValueError: the list is not found or of another form, or leaves no batch to train on.
    """

    @checked
    def __init__(
        self,
        processor: Any,
        path: str | Path,
        images: str | Path | None = None,
        *,
        valid: NonNegative = 1000,
        batch_size: Positive = 16,
        max_length: Positive = 2048,
        system: str = SYSTEM,
        num_workers: NonNegative = 0,
        seed: Seed = 0,
    ):
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.conversations = Conversations(path, images)
        self.collate = Collate(processor, max_length, system)
        count = len(self.conversations) - valid
        if count < batch_size:
            raise ValueError(
                f"{path} has {len(self.conversations)} conversations about images: without "
                f"data.valid={valid} of them they make no batch of {batch_size}"
            )
        self.parts = {
            "train": Subset(self.conversations, range(count)),
            "valid": Subset(self.conversations, range(count, count + valid)),
        }

    def train_dataloader(self) -> ResumableLoader:
        """Returns shuffled conversations in whole batches."""
        trainer = self.trainer
        ranks = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        part = self.parts["train"]
        return ResumableLoader(
            Seeded(part, self.seed),
            batch_size=self.batch_size,
            sampler=EpochSampler(part, seed=self.seed, ranks=ranks[0], rank=ranks[1]),
            num_workers=self.num_workers,
            drop_last=True,
            collate_fn=self.collate,
        )

    def loader(self) -> DataLoader:
        """Returns the conversations that are not trained on, in order."""
        part = self.parts["valid"]
        return DataLoader(
            part, self.batch_size, num_workers=self.num_workers, collate_fn=self.collate
        )
