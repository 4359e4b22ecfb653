"""What a LLaVA answers, with how many image tokens, and how fast."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adaptok.evaluation.evaluate import device_of, precision
from adaptok.evaluation.results import Tokens
from adaptok.tasks.llava.batches import SKIPPED, LlavaData
from adaptok.vision.hf import encode_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaResults:
    """Holds the test of a LLaVA.

    Attributes:
        answers: share of the conversations whose answers greedy decoding gives to the last token.
        loss: mean cross-entropy of the tokens of the answers.
        tokens: "mean", "min" and "max" image tokens per image.
        images_per_second: of a forward pass through cells, tower, projector and language model
            over prompts with answers; loading is excluded, and so is the first batch if there are
            more.
    """

    answers: float
    loss: float
    tokens: dict[str, float]
    images_per_second: float


@torch.no_grad()
def evaluate_llava(model: Any, data: LlavaData, *, device: str = "auto") -> LlavaResults:
    """Tests a LLaVA on the conversations that are not trained on.

    Args:
        model: made by `adapt_llava`, or as it is.
        data: with conversations to test.
        device: "auto" (CUDA if available, in bf16), "cpu" or "cuda".

    Raises:
        ValueError: there are none.
    """
    if not len(data.parts["valid"]):
        raise ValueError("nothing to test: data.valid=0")
    place = device_of(device)
    model = model.to(place).eval()
    right, losses, counts, seconds = [], [], [], []
    for batch in data.loader():
        batch = {name: value.to(place) for name, value in batch.items()}
        start = _now(place)
        with precision(place):
            encoded = encode_images(model, batch)
            labels = encoded.pop("labels")
            logits = model(**encoded).logits
        seconds.append(_now(place) - start)
        own = answer_losses(logits.float(), labels)
        right += [one.isfinite().all().item() and hit for one, hit in own]
        losses += [one for one, _ in own]
        counts += [len(x) for x in encoded["mm_encoder_outputs"]["image"].pooler_output]
    sizes = [min(data.batch_size, len(counts) - i) for i in range(0, len(counts), data.batch_size)]
    warm = slice(len(sizes) > 1, None)
    return LlavaResults(
        answers=sum(right) / len(right),
        loss=torch.cat(losses).double().mean().item(),
        tokens=Tokens.of(torch.tensor(counts))._asdict(),
        images_per_second=sum(sizes[warm]) / sum(seconds[warm]),
    )


def answer_losses(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, bool]]:
    """Returns, per row, the loss of each token of its answers, and whether each is the likeliest;
    without any it is no answer.

    A token is predicted by the position before it.
    """
    guesses, wanted = logits[:, :-1], labels[:, 1:]
    found = []
    for guess, want in zip(guesses, wanted, strict=True):
        at = want != SKIPPED
        loss = cross_entropy(guess[at], want[at], reduction="none")
        hit = at.any() & (guess[at].argmax(-1) == want[at]).all()
        found.append((loss, bool(hit)))
    return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
