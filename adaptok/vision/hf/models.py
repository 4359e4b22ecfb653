"""transformers' vision models with their forward pass on cells, or with a reducer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.clip.modeling_clip import CLIPForImageClassification, CLIPVisionModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2ForImageClassification, Dinov2Model
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel
from transformers.models.siglip.modeling_siglip import (
    SiglipForImageClassification,
    SiglipVisionModel,
)
from transformers.models.vit.modeling_vit import ViTModel
from transformers.utils.generic import can_return_tuple

from adaptok.tokens import TokenSet
from adaptok.vision.hf.attention import NAME
from adaptok.vision.hf.cells import CellRun, Images
from adaptok.vision.hf.outputs import TowerOutput
from adaptok.vision.hf.reducing import ReducedRun


class Adapted(nn.Module):
    """Runs a vision model of transformers by `adaptive`; parameters, names and layers stay."""

    adaptive: CellRun | ReducedRun
    config: Any

    @can_return_tuple
    def forward(
        self,
        pixel_values: Images | None = None,
        *,
        interpolate_pos_encoding: bool | None = None,
        bool_masked_pos: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> TowerOutput:
        """Returns what the model returns, padded to the longest image.

        Args:
            pixel_values: images as the image processor gives them, or on cells a list of (c, h, w)
                of any sizes.
            interpolate_pos_encoding: resample positions to other sizes, as in transformers.
            bool_masked_pos: refused, as there are no masks of patches here.
            attention_mask: refused likewise.
            output_hidden_states: True for all of them, or indices of those to return.
            output_attentions: refused, as packed kernels return no weights.
            kwargs: thresholds, budget or cells for this call; others are ignored, as in
                transformers.

        Raises:
            ValueError: no images, images of another size than the positions, or a refused argument.
        """
        if pixel_values is None:
            raise ValueError("pixel_values are needed")
        refused = {"bool_masked_pos": bool_masked_pos, "attention_mask": attention_mask}
        for name, value in refused.items():
            if value is not None:
                raise ValueError(
                    f"an adapted model takes no {name}, because its tokens are not patches"
                )
        if output_attentions or getattr(self.config, "output_attentions", False):
            raise ValueError("attention weights are not returned: packed kernels keep none")
        if self.config._attn_implementation != NAME:
            raise ValueError(
                f"the attention of an adapted model is {NAME!r}, and was set to "
                f"{self.config._attn_implementation!r} afterwards"
            )
        run: Any = self.adaptive
        control = {k: kwargs[k] for k in run.controls if kwargs.get(k) is not None}
        asked = output_hidden_states
        asked = self.config.output_hidden_states if asked is None else asked
        wanted = _indices(asked, len(self.blocks) + 1)
        ran = run(self, pixel_values, bool(interpolate_pos_encoding), wanted, **control)
        hidden = ~ran.mask
        if ran.bias is not None:
            hidden = ran.bias.masked_fill(hidden, -torch.inf).to(ran.last.dtype)
        return TowerOutput(
            last_hidden_state=ran.last,
            pooler_output=run.family.pool(self, ran.last, hidden),
            hidden_states=tuple(ran.hidden) if wanted else None,
            attention_mask=ran.mask,
            weight=ran.weight,
            cells=ran.cells,
        )

    @property
    def blocks(self) -> Any:
        """The model's layers."""
        return self.adaptive.family.piece(self, self.adaptive.family.layers)

    def tokens_after(
        self,
        x: Images,
        block: int,
        *,
        interpolate_pos_encoding: bool = False,
        **control: Any,
    ) -> TokenSet:
        """Returns the cell tokens after layer number `block`, without the final norm.

        Raises:
            ValueError: a reduced model, whose tokens are no cells.
        """
        if not isinstance(self.adaptive, CellRun):
            raise ValueError("the tokens of a reduced model have no cells")
        at = block % len(self.blocks) + 1
        _, states = self.adaptive.run(self, x, interpolate_pos_encoding, {at}, **control)
        found = states[at]
        assert found is not None
        return found.tokens


def _indices(asked: bool | int | list[int] | None, count: int) -> set[int]:
    """Hidden states that are asked for, as transformers counts them: the embedding is number 0."""
    if asked is None or isinstance(asked, bool):
        return set(range(count)) if asked else set()
    chosen = [asked] if isinstance(asked, int) else list(asked)
    return {i % count for i in chosen if -count <= i < count}


class MeanHead(nn.Module):
    """Classifies by a mean over patches, which each token enters for as many as it stands for."""

    tower: str
    classifier: nn.Module
    config: Any
    loss_function: Any

    @can_return_tuple
    def forward(
        self,
        pixel_values: Images | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Returns logits, as the model's own method does, and the loss if there are labels."""
        tower = getattr(self, self.tower)
        out = tower(pixel_values, **{**kwargs, "return_dict": True})
        run, x = tower.adaptive, out.last_hidden_state
        special = run.family.prefix(tower, x.shape[-1])
        weight = out.weight if run.pooling == "area" else out.attention_mask.float()
        pooled = _mean(x[:, special:], weight[:, special:])
        if isinstance(
            self, Dinov2ForImageClassification | Dinov2WithRegistersForImageClassification
        ):
            pooled = torch.cat([x[:, 0], pooled], 1)
        logits: Any = self.classifier(pooled)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


def _mean(x: Float[Tensor, "b m d"], weight: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
    share = weight / weight.sum(1, keepdim=True).clamp(min=1)  # all may be out in training
    return (x.float() * share[..., None]).sum(1).to(x.dtype)


class AdaptedViT(Adapted, ViTModel):
    """Runs ``ViTModel``."""


class AdaptedDinov2(Adapted, Dinov2Model):
    """Runs ``Dinov2Model``."""


class AdaptedDinov2WithRegisters(Adapted, Dinov2WithRegistersModel):
    """Runs ``Dinov2WithRegistersModel``."""


class AdaptedDINOv3ViT(Adapted, DINOv3ViTModel):
    """Runs ``DINOv3ViTModel``."""


class AdaptedCLIPVision(Adapted, CLIPVisionModel):
    """Runs ``CLIPVisionModel``."""


class AdaptedSiglipVision(Adapted, SiglipVisionModel):
    """Runs ``SiglipVisionModel``."""


class AdaptedDinov2Classifier(MeanHead, Dinov2ForImageClassification):
    """Runs ``Dinov2ForImageClassification``."""

    tower = "dinov2"


class AdaptedDinov2WithRegistersClassifier(MeanHead, Dinov2WithRegistersForImageClassification):
    """Runs ``Dinov2WithRegistersForImageClassification``."""

    tower = "dinov2_with_registers"


class AdaptedCLIPClassifier(MeanHead, CLIPForImageClassification):
    """Runs ``CLIPForImageClassification``."""

    tower = "vision_model"


class AdaptedSiglipClassifier(MeanHead, SiglipForImageClassification):
    """Runs ``SiglipForImageClassification``."""

    tower = "vision_model"


TOWERS: dict[type[nn.Module], type[Adapted]] = {
    ViTModel: AdaptedViT,
    Dinov2Model: AdaptedDinov2,
    Dinov2WithRegistersModel: AdaptedDinov2WithRegisters,
    DINOv3ViTModel: AdaptedDINOv3ViT,
    CLIPVisionModel: AdaptedCLIPVision,
    SiglipVisionModel: AdaptedSiglipVision,
}
HEADS: dict[type[nn.Module], type[nn.Module]] = {
    Dinov2ForImageClassification: AdaptedDinov2Classifier,
    Dinov2WithRegistersForImageClassification: AdaptedDinov2WithRegistersClassifier,
    CLIPForImageClassification: AdaptedCLIPClassifier,
    SiglipForImageClassification: AdaptedSiglipClassifier,
}
