"""Training LLaVA, or the few of its weights that a recipe moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptok.tasks.llava.models import train_only
from adaptok.training.fit_module import FitModule
from adaptok.training.optim import OptimBase
from adaptok.vision.hf import encode_images


class LlavaModule(FitModule):
    """Trains an adapted ``LlavaForConditionalGeneration``, or one as it is, on its answers.

    What is trained is in single precision, whatever the rest is in (train that with
    ``precision="bf16-mixed"``). Checkpoints hold what is trained alone.

    Args:
        model: made by `adapt_llava`.
        optim: optimizer and learning rate.
        config: plain configuration to keep in checkpoints.
        only: "new" trains what the tokenizer added and the projector, "all" all weights.
        seed: of the random numbers of training.

    Raises:
        ValueError: `only` is unknown.
    """

    strict_loading = False  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(
        self,
        model: Any,
        optim: OptimBase,
        config: Mapping[str, Any] | None = None,
        *,
        only: str = "new",
        seed: int = 0,
    ):
        super().__init__(optim, config, seed=seed)
        self.model = model
        for weight in train_only(model, only):  # half precision would round small steps away
            weight.data = weight.data.float()

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the mean loss of the tokens of the answers."""
        encoded = encode_images(self.model, batch)
        loss: Tensor = self.model(**encoded).loss
        counts = [len(x) for x in encoded["mm_encoder_outputs"]["image"].pooler_output]
        self.tokens_per_sample = sum(counts) / len(counts)
        self.log_step(loss, len(counts))
        return loss

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns what is trained; all else is that of the given model."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        whole = super().state_dict(*args, **kwargs)
        return {name: value for name, value in whole.items() if name in trained}
