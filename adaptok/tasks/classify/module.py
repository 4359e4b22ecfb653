"""Training a classifier: loss, layer decay, and what is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric

from adaptok.registry import choice
from adaptok.training.fit_module import FitModule
from adaptok.training.optim import OptimBase
from adaptok.utils.arguments import NonNegativeFloat, Positive, PositiveShare, Rate
from adaptok.vision import freeze_all_but_new


@dataclasses.dataclass(frozen=True)
class ClassifierOptim(OptimBase):
    """Optimizer of a classifier; see `adaptok.training.optim.OptimBase` for the rest.

    Attributes:
        layer_decay: factor on the learning rate from each layer to the one below it (BEiT, Bao et
            al. 2022); the head and what APT adds have 1.
        label_smoothing: share of the target spread over all classes.
        lr_batch: number of images per batch that `lr`, `lr_start` and `lr_min` are for; they scale
            with the batch. None: they are used unchanged.
        warmup_epochs: replaces `warmup_steps` unless None.
    """

    layer_decay: PositiveShare = 1.0
    label_smoothing: Rate = 0.0
    lr_batch: Positive | None = None
    warmup_epochs: NonNegativeFloat | None = None

    def scaled(self, batch_size: int, steps_per_epoch: int) -> ClassifierOptim:
        """Returns the rates for a batch size, with the warm-up in steps.

        Args:
            batch_size: images per optimizer step, over all processes.
            steps_per_epoch: optimizer steps.
        """
        factor = 1.0 if self.lr_batch is None else batch_size / self.lr_batch
        rates = {name: getattr(self, name) * factor for name in ("lr", "lr_start", "lr_min")}
        warmup = self.warmup_steps
        if self.warmup_epochs is not None:
            warmup = round(self.warmup_epochs * steps_per_epoch)
        return dataclasses.replace(
            self, **rates, warmup_steps=warmup, lr_batch=None, warmup_epochs=None
        )

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Groups the trainable weights by layer and weight decay, as timm does."""
        from timm.optim import param_groups_layer_decay  # pyright: ignore

        model: Any = module.model
        groups = param_groups_layer_decay(
            model, self.weight_decay, model.no_weight_decay(), layer_decay=self.layer_decay
        )
        # PyTorch's schedulers start from the rate of each group and ignore timm's `lr_scale`.
        return [
            {k: g[k] for k in ("params", "weight_decay")} | {"lr": self.lr * g["lr_scale"]}
            for g in groups
        ]


class ClassifierModule(FitModule):
    """Trains a timm model, wrapped or not, on labelled images.

    Args:
        model: maps normalised images to logits.
        optim: with rates scaled to the batch size.
        config: plain configuration to keep in checkpoints.
        about: "model", "tokenizer" and "classes", for `load_classifier`.
        only: "all" trains all weights, "new" what APT added and the head.
        mixed: mixes batches of training, such as `adaptok.tasks.classify.mixing.Mix`.
        seed: of the random numbers of training.

    Raises:
        ValueError: `only` is unknown, or is "new" and nothing was added to the model.
    """

    optim: ClassifierOptim

    def __init__(
        self,
        model: Any,
        optim: ClassifierOptim,
        config: Mapping[str, Any] | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        only: str = "all",
        mixed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        seed: int = 0,
    ):
        super().__init__(optim, config, seed=seed)
        self.mixed = mixed
        choice("train.only", only, ("all", "new"))
        self.model, self.about = model, dict(about or {})
        if only == "new":
            if not list(getattr(model, "new_parameters", list)()):
                raise ValueError("train.only=new: this tokenizer adds no parameters to the model")
            freeze_all_but_new(model, also=("head",))
        self.wrong = MeanMetric()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Returns the cross-entropy of one batch."""
        images, labels = batch if self.mixed is None else self.mixed(*batch)
        logits = self.model(images)
        smoothing = self.optim.label_smoothing
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        self.tokens_per_sample = tokens_per_image(self.model)
        self.log_step(loss, len(labels))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Counts wrong answers; logs their share over all batches and ranks."""
        images, labels = batch
        wrong = ~is_right(self.model(images), labels)
        self.wrong.update(wrong, self.real_samples(batch_idx, len(labels)))
        self.log("val/error", self.wrong, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration, and what `load_classifier` needs."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["adaptok_classifier"] = self.about


def is_right(logits: Float[Tensor, "b classes"], labels: Int[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Compares answers with labels; logits that are not finite are no answer."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def tokens_per_image(model: Any) -> float:
    """Counts cells per image in the last forward pass, from shapes, without special tokens."""
    cells = getattr(model, "last_cells", None)
    if cells is not None:
        return len(cells) / cells.batch_size
    return float(model.patch_embed.num_patches)
