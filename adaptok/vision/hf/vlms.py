"""Vision-language models with an adapted tower: as many image tokens as an image has cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaModel
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.paligemma.modeling_paligemma import PaliGemmaModel
from transformers.utils.generic import can_return_tuple

from adaptok.vision.hf.outputs import TowerOutput
from adaptok.vision.hf.tiles import pack_tiles


class AdaptedLlava(LlavaModel):
    """Runs ``LlavaModel``; padding of its tower's output does not become image tokens."""

    @can_return_tuple
    def get_image_features(  # generation reads the names of the arguments
        self,
        pixel_values: Any,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> TowerOutput:
        """Returns what the model's own method does, with one tensor (tokens, d) per image in
        ``pooler_output``: tokens in the order of the tiling.
        """
        features: Any = super().get_image_features
        out = features(
            pixel_values,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            image_sizes=image_sizes,
            **{**kwargs, "return_dict": True},
        )
        if out.cells is not None:  # else the tower is a reduced one, without padding
            mask = out.attention_mask[:, -out.pooler_output[0].shape[0] :]
            counts = mask.sum(1).tolist()
            out.pooler_output = [x[:n] for x, n in zip(out.pooler_output, counts, strict=True)]
        out.image_tokens = tuple(len(x) for x in out.pooler_output)
        return out


class AdaptedPaliGemma(PaliGemmaModel):
    """Runs ``PaliGemmaModel``; padding of its tower's output does not become image tokens."""

    @can_return_tuple
    def get_image_features(self, pixel_values: Any, **kwargs: Any) -> TowerOutput:
        """Returns what the model's own method does, with one tensor (tokens, d) per image in
        ``pooler_output``, so that generation can tell the images of several prompts apart.
        """
        features: Any = super().get_image_features
        out = features(pixel_values, **{**kwargs, "return_dict": True})
        out.image_tokens = tuple(out.attention_mask.sum(1).tolist())
        out.pooler_output = [
            x[:n] for x, n in zip(out.pooler_output, out.image_tokens, strict=True)
        ]
        return out

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *args: Any,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model's own, which takes the tokens of all images as one tensor."""
        given = {**(mm_encoder_outputs or {})}
        if pixel_values is not None and not given:
            given["image"] = self.get_image_features(pixel_values, return_dict=True)
            pixel_values = None
        image = given.get("image")
        if image is not None and isinstance(image.pooler_output, list):
            packed = {**image, "pooler_output": torch.cat(image.pooler_output)[None]}
            given["image"] = type(image)(**packed)
        forward: Any = super().forward
        return forward(input_ids, pixel_values, *args, mm_encoder_outputs=given or None, **kwargs)


class Tiled(nn.Module):
    """Runs a model that cuts images into tiles, whose tower sees each on cells of its own."""

    config: Any
    image_newline: nn.Parameter

    def pack_image_features(
        self, image_features: Any, *args: Any, **kwargs: Any
    ) -> tuple[Any, None]:
        """Leaves the tiles of each image as they are, for `get_image_features`."""
        return image_features, None

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Any,
        image_sizes: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> TowerOutput:
        """Returns what the model's own method does, with tokens as
        `adaptok.vision.hf.tiles.pack_tiles` lays them out.

        Raises:
            ValueError: the class token is to be kept, which has no place on the grid, or a cell
                would be dropped in its place.
        """
        features: Any = super().get_image_features  # pyright: ignore[reportAttributeAccessIssue]
        out = features(
            pixel_values,
            image_sizes,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            **{**kwargs, "return_dict": True},
        )
        tiles = [len(x) for x in out.pooler_output]
        padded = torch.cat(out.pooler_output)
        rows = padded[out.attention_mask[:, -padded.shape[1] :]]
        _check_strategy(len(rows), len(out.cells))
        ratio = kwargs.get("vision_aspect_ratio") or getattr(
            self.config, "vision_aspect_ratio", None
        )
        most = None
        if ratio is not None and max(tiles, default=1) > 1:  # else it may be any word
            most = int(ratio.removeprefix("anyres_max_"))
        out.pooler_output, out.unmerged_tokens = pack_tiles(
            self.config,
            self.image_newline,
            rows,
            out.cells,
            tiles,
            torch.as_tensor(image_sizes).tolist(),
            most,
        )
        out.image_tokens = tuple(len(x) for x in out.pooler_output)
        return out


def _check_strategy(rows: int, cells: int) -> None:
    """Raises ``ValueError`` unless each row of the features is that of a cell."""
    if rows > cells:
        raise ValueError(
            "vision_feature_select_strategy='full' keeps the class token, which has no place "
            "among the patches of the tiles; set 'default'"
        )
    if rows < cells:
        raise ValueError(
            "vision_feature_select_strategy='default' drops the first token, which in a tower "
            "without a class token is a cell; set 'full'"
        )


class AdaptedLlavaNext(Tiled, LlavaNextModel):
    """Runs ``LlavaNextModel``."""


class AdaptedLlavaOnevision(Tiled, LlavaOnevisionModel):
    """Runs ``LlavaOnevisionModel``."""

    def get_image_features(  # generation reads the names of the arguments
        self,
        pixel_values: Any,
        image_sizes: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        vision_aspect_ratio: str | None = None,
        batch_num_images: Tensor | None = None,
        **kwargs: Any,
    ) -> TowerOutput:
        """Returns what `Tiled` does."""
        names = {"vision_aspect_ratio": vision_aspect_ratio, "batch_num_images": batch_num_images}
        more = {name: value for name, value in names.items() if value is not None}
        return super().get_image_features(
            pixel_values,
            image_sizes,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            **more,
            **kwargs,
        )

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses videos.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "videos are pooled on the grid of patches, which cells are not; give images"
        )


VLMS: dict[type[nn.Module], type[nn.Module]] = {
    LlavaModel: AdaptedLlava,
    LlavaNextModel: AdaptedLlavaNext,
    LlavaOnevisionModel: AdaptedLlavaOnevision,
    PaliGemmaModel: AdaptedPaliGemma,
}
