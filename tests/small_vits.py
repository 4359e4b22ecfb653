"""Small ViTs of timm with random weights, and images for them."""

from __future__ import annotations

import pytest
import torch

timm = pytest.importorskip("timm")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

EVA = {"use_rot_pos_emb": True, "mlp_ratio": 2.0}


def small_vit(**options) -> VisionTransformer:
    model = VisionTransformer(**{**SMALL, "num_classes": 5, **options})
    return shaken(model)


def shaken(model):
    """Random everywhere: initial zeros and ones would hide what is left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def images(*shape: int) -> torch.Tensor:
    """Smooth on the left, noise on the right, normalised."""
    x = torch.linspace(0, 0.2, shape[-1]).expand(shape).clone()
    x[..., shape[-1] // 2 :] = torch.rand(*shape[:-1], shape[-1] - shape[-1] // 2)
    return (x - 0.5) / 0.5


BY_NAME = {
    "vit_tiny_patch16_224": {"img_size": 96},
    "vit_small_patch14_reg4_dinov2": {"img_size": 84, "depth": 3},
    "deit3_small_patch16_224": {"img_size": 96, "depth": 3},
    "vit_base_patch16_clip_quickgelu_224": {"img_size": 96, "depth": 3},
    "vit_base_patch16_siglip_224": {"img_size": 96, "depth": 3},
    "eva02_tiny_patch14_224": {"img_size": 84},
    "vit_small_patch16_dinov3": {"img_size": 96, "depth": 3},
}
