"""LLaVA with an adapted tower, on a tiny random model: as many image tokens as cells."""

from __future__ import annotations

import pytest
import torch

import adaptok

pytest.importorskip("timm")
transformers = pytest.importorskip("transformers", minversion="5.24")

from adaptok.vision import apply_apt, apply_reducer, freeze_all_but_new  # noqa: E402
from adaptok.vision.hf import encode_images, expand_placeholders  # noqa: E402

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGE = 49
VISION = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
VISION |= {"intermediate_size": 48, "image_size": 64, "patch_size": 8}
TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 32, "num_key_value_heads": 2, "pad_token_id": 0}


def llava(kind: str = "clip"):
    """LLaVA-1.5's plan (CLIP, class token cut off), or a newer one (SigLIP, all tokens, Qwen2)."""
    torch.manual_seed(0)
    new = kind == "siglip"
    vision = (transformers.SiglipVisionConfig if new else transformers.CLIPVisionConfig)(**VISION)
    text = (transformers.Qwen2Config if new else transformers.LlamaConfig)(**TEXT)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_select_strategy="full" if new else "default",
    )
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images() -> torch.Tensor:
    x = torch.full((3, 3, 64, 64), -0.3)
    for i, image in enumerate(x):
        side = 16 * (i + 1)
        image[:, :side, :side] = torch.rand(3, side, side, generator=torch.Generator())
    return x


def prompts(per_image: int) -> dict[str, torch.Tensor]:
    """Two prompts, of one image and of two; the first one padded on the left."""
    one = [IMAGE] * per_image
    rows = [[5, *one, 7, 8], [6, *one, 9, *one, 4]]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": images()}


@pytest.mark.parametrize("kind", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_nothing_merged_generates_the_same(kind):
    model, given = llava(kind), prompts(64)
    fast = apply_apt(model, (-1.0, -1.0), **NORM)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        logits = model(**given).logits
        expected = model.generate(**given, **options)[:, -5:]
        encoded = encode_images(fast, prompts(1))
        assert torch.equal(encoded["input_ids"], given["input_ids"])
        for own in (given, encoded):
            torch.testing.assert_close(fast(**own).logits, logits, rtol=1e-4, atol=1e-4)
            assert torch.equal(fast.generate(**own, **options)[:, -5:], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_placeholders_are_as_many_as_cells(kind):
    model = llava(kind)
    fast = apply_apt(model, (5.0, 4.0), **NORM)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        encoded = encode_images(fast, prompts(64))
        counts = [len(x) for x in encoded["mm_encoder_outputs"]["image"].pooler_output]
        assert tuple(counts) == fast.model.vision_tower.adaptive.last_cells.lengths
        assert len(set(counts)) == 3
        assert max(counts) < 64
        placed = (encoded["input_ids"] == IMAGE).sum(1).tolist()
        assert placed == [counts[0], counts[1] + counts[2]]
        tokens = fast.generate(**encoded, **options)[:, -3:]
        # Each prompt gets what it would get alone.
        whole = prompts(1)
        alone = {name: whole[name][:1] for name in ("input_ids", "attention_mask", "pixel_values")}
        alone = encode_images(fast, alone)
        assert alone["attention_mask"].all()
        assert torch.equal(fast.generate(**alone, **options)[:, -3:], tokens[:1])
        pooled = encode_images(apply_reducer(model, "tome", r=8), whole)
        assert len(pooled["mm_encoder_outputs"]["image"].pooler_output[0]) == 64 - 2 * 8


@pytest.mark.slow
def test_the_recipe_trains_what_is_new_and_the_projector(tmp_path):
    fast = apply_apt(llava(), (5.0, 4.0), **NORM).train()
    trained = freeze_all_but_new(fast, also=("model.multi_modal_projector",))
    encoded = encode_images(fast, {**prompts(64), "labels": prompts(64)["input_ids"]})
    assert (encoded["labels"][encoded["attention_mask"] == 0] == -100).all()
    fast(**encoded).loss.backward()
    assert all(p.grad is not None for p in trained)
    assert len(trained) == 8
    adaptok.save_pretrained(fast, tmp_path)
    again = adaptok.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = fast.eval()(**encode_images(fast, prompts(1))).logits
        torch.testing.assert_close(again(**encode_images(again, prompts(1))).logits, logits)


def test_placeholders_that_do_not_match():
    given = {"input_ids": torch.tensor([[1, IMAGE, IMAGE, 2, IMAGE, IMAGE, IMAGE, IMAGE]])}
    out = expand_placeholders(given, [1, 3, 0], IMAGE)
    assert out["input_ids"].tolist() == [[1, IMAGE, 2, *[IMAGE] * 3]]
    with pytest.raises(ValueError, match="6 placeholder"):
        expand_placeholders(given, [1, 2, 3, 4], IMAGE)
    with pytest.raises(ValueError, match="2 placeholders in a row"):
        expand_placeholders(given, [5, 6], IMAGE)
    with pytest.raises(ValueError, match="for 0 image"):
        expand_placeholders(given, [], IMAGE)
