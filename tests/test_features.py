"""Loss of dense features, and weights of an exported model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from adaptok.evaluation.bench import features, vision

DINOV2 = "ADAPTOK_DINOV2"  # a file that experiments/onnx_weights.py wrote


def test_a_model_loses_nothing_with_all_its_patches_and_more_with_fewer():
    import timm

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, dynamic_img_size=True, num_classes=0
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    wanted = features.dense(model, x)
    assert wanted.shape == (2, 192, 4, 4)
    assert features.loss(wanted, wanted).abs().max() < 1e-6
    torch.testing.assert_close(features.loss(-wanted, wanted), torch.full((2,), 2.0))
    with torch.inference_mode():
        rows = [*features.measure(model, x, [0.99, 0.4])]
    assert [row["tokens"] for row in rows[::2]] == [*features.plans(), "tome", "smaller image"]
    for whole, fewer in zip(rows[::2], rows[1::2], strict=True):
        assert whole["kept"] > fewer["kept"]
        assert 0 <= whole["loss"] < fewer["loss"] <= 2


def test_merges_keep_the_share_of_the_mean_over_blocks():
    blocks = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(12)))
    r, kept = features.merges(type("", (), {"blocks": blocks}), 576, 0.77)
    counts = [576 - r * i for i in range(1, 13)]
    assert kept == pytest.approx(sum(counts) / (12 * 576))
    assert abs(kept - 0.77) < 12 / 576
    few = type("", (), {"blocks": blocks[:4]})
    assert features.merges(few, 64, 0.25) == (31, 0.25)  # 33, 17, 9, 5: at most half of them merge


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        (features, "--images 0", "count"),
        (features, "--threads 0", "threads"),
        (vision, "--batches 0", "batch"),
        (vision, "--repeats 0", "repeats"),
        (vision, "--shares 2", "shares"),
        (vision, "--threads -1", "threads"),
    ],
)
def test_numbers_out_of_range_are_refused_first(module, words, told, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["adaptok bench", str(tmp_path), *words.split()])
    with pytest.raises(ValueError, match=f"^{told} must be"):
        module.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_exported_model_gives_the_features_of_transformers(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    import onnx_weights

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Dinov2Config(**sizes, image_size=56, patch_size=14)

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = transformers.Dinov2Model(config)

        def forward(self, x):
            return self.backbone(x).last_hidden_state

    whole, x = Whole().eval(), torch.randn(1, 3, 56, 56)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.onnx.export(whole, (x,), tmp_path / "model.onnx", dynamo=False)
    onnx_weights.main(str(tmp_path / "model.onnx"), str(tmp_path / "weights.safetensors"))
    model = timm.create_model(
        "vit_small_patch14_dinov2",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.safetensors")},
        **{"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 56, "num_classes": 0},
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x), whole(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(DINOV2 not in os.environ, reason=f"{DINOV2} names a file of weights")
def test_pretrained_features_off_the_shelf(tmp_path, monkeypatch):
    words = ["features", str(tmp_path), "--weights", os.environ[DINOV2]]
    monkeypatch.setattr(sys, "argv", [*words, "--shares", "0.77", "0.56"])
    features.main()
    rows = json.loads((tmp_path / "features.json").read_text())["rows"]
    loss = {(row["tokens"], row["share"]): row["loss"] for row in rows}
    best = "variance by area, normalised, weighted"
    assert loss[best, 0.77] < 0.5 * loss["entropy", 0.77]
    assert loss[best, 0.56] < loss["smaller image", 0.56] < loss["entropy", 0.56]
