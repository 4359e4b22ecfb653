"""Vision-language models with tiles (LLaVA-NeXT, LLaVA-OneVision) and PaliGemma, on cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import adaptok

pytest.importorskip("timm")
transformers = pytest.importorskip("transformers", minversion="5.24")

from transformers.models.llava_next.modeling_llava_next import (  # noqa: E402
    image_size_to_num_patches,
    unpad_image,
)

from adaptok.patches import owner_grid  # noqa: E402
from adaptok.vision import apply_apt, apply_reducer  # noqa: E402
from adaptok.vision.hf import encode_images  # noqa: E402

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGE, SIDE, PATCH, DIM = 49, 64, 8, 16
GRID = SIDE // PATCH
VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION |= {"intermediate_size": 48, "image_size": SIDE, "patch_size": PATCH}
TEXT = {"vocab_size": 50, "hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 32, "num_key_value_heads": 2, "pad_token_id": 0}
PINPOINTS = [[64, 128], [128, 64], [128, 128], [64, 192]]
SIZES = [(120, 50), (70, 130), (100, 100)]  # padding at the sides, above and below, and none
TILED = ("next", "onevision")
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}


def model_of(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    own: dict[str, Any] = {"image_token_index": IMAGE, **more}
    if kind == "paligemma":
        vision = transformers.SiglipVisionConfig(**VISION, vision_use_head=False)
        text = transformers.GemmaConfig(**TEXT, head_dim=8)
        config = transformers.PaliGemmaConfig(
            vision_config=vision, text_config=text, projection_dim=DIM, image_token_index=IMAGE
        )
        model = transformers.PaliGemmaForConditionalGeneration(config)
    elif kind == "next":
        vision, text = transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**TEXT)
        config = transformers.LlavaNextConfig(
            vision_config=vision, text_config=text, image_grid_pinpoints=PINPOINTS, **own
        )
        model = transformers.LlavaNextForConditionalGeneration(config)
    else:
        vision, text = transformers.SiglipVisionConfig(**VISION), transformers.Qwen2Config(**TEXT)
        own |= {"video_token_index": 48, "vision_aspect_ratio": "anyres_max_3"}
        own |= {"vision_feature_layer": -1, **more}
        config = transformers.LlavaOnevisionConfig(
            vision_config=vision, text_config=text, image_grid_pinpoints=PINPOINTS, **own
        )
        model = transformers.LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def textured(count: int) -> Tensor:
    x = torch.full((count, 3, SIDE, SIDE), -0.3)
    draw = torch.Generator().manual_seed(1)
    for i, image in enumerate(x):
        side = 16 * (i % 4)
        image[:, :side, :side] = torch.rand(3, side, side, generator=draw)
    return x


def inputs_of(model: Any, sizes: list[tuple[int, int]] = SIZES) -> dict[str, Tensor]:
    """Tiles as the processor pads them, and prompts with one placeholder per image: of the first
    image, and of all others."""
    points = model.config.image_grid_pinpoints
    tiles = [image_size_to_num_patches([*size], points, SIDE) for size in sizes]
    pixels = torch.zeros(len(sizes), max(tiles), 3, SIDE, SIDE)
    for own, count, values in zip(pixels, tiles, textured(sum(tiles)).split(tiles), strict=True):
        own[:count] = values
    ids = torch.tensor([[0, 5, IMAGE, 7, 8], [6, IMAGE, 9, IMAGE, 4]])
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": pixels,
        "image_sizes": torch.tensor(sizes),
    }


def repeated(given: dict[str, Tensor], counts: list[int]) -> dict[str, Tensor]:
    """Prompts as a processor writes them, with as many placeholders as patches."""
    rows, left = [], [*counts]
    for row in given["input_ids"].tolist():
        rows.append([x for token in row for x in [token] * (left.pop(0) if token == IMAGE else 1)])
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return {**given, "input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("next", {}),
        ("onevision", {"vision_aspect_ratio": "anyres_max_1"}),
        pytest.param("onevision", {}, marks=pytest.mark.slow),
        pytest.param("next", {"vision_feature_layer": [-2, -1]}, marks=pytest.mark.slow),
    ],
)
def test_tiles_of_finest_cells_give_what_the_model_gives(kind: str, more: dict[str, Any]):
    model = model_of(kind, **more)
    given = inputs_of(model)
    fast = apply_apt(model, (-1.0, -1.0), **NORM)
    with torch.no_grad():
        pixels, sizes = given["pixel_values"], given["image_sizes"]
        expected = model.model.get_image_features(pixels, sizes, return_dict=True).pooler_output
        found = fast.model.get_image_features(pixels, sizes, return_dict=True)
        assert found.image_tokens == tuple(found.unmerged_tokens) == tuple(map(len, expected))
        for x, y in zip(found.pooler_output, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
        encoded = encode_images(fast, given)
        whole = repeated(given, [*map(len, expected)])
        assert torch.equal(encoded["input_ids"], whole["input_ids"])
        assert torch.equal(encode_images(fast, whole)["input_ids"], whole["input_ids"])
        assert torch.equal(encode_images(model, given)["input_ids"], whole["input_ids"])
        answer = model.generate(**whole, **OPTIONS)[:, -4:]
        for own in (encoded, whole):
            assert torch.equal(fast.generate(**own, **OPTIONS)[:, -4:], answer)


@pytest.mark.parametrize("kind", [TILED[0], pytest.param(TILED[1], marks=pytest.mark.slow)])
def test_tiles_of_merged_cells_come_line_by_line(kind: str):
    model = model_of(kind)
    given = inputs_of(model)
    fast = apply_apt(model, (5.0, 4.0), **NORM)
    with torch.no_grad():
        encoded = encode_images(fast, given)
        found = encoded["mm_encoder_outputs"]["image"]
        placed = (encoded["input_ids"] == IMAGE).sum(1).tolist()
        assert placed == [found.image_tokens[0], sum(found.image_tokens[1:])]
        assert all(n < m for n, m in zip(found.image_tokens, found.unmerged_tokens, strict=True))
        alone = encode_images(
            fast,
            {
                **{k: given[k][:1] for k in ("input_ids", "attention_mask", "image_sizes")},
                "pixel_values": given["pixel_values"][:1],
            },
        )
        answer = fast.generate(**encoded, **OPTIONS)[:1, -4:]
        assert torch.equal(fast.generate(**alone, **OPTIONS)[:, -4:], answer)

        # The rows of the first image, by a walk over the places of its tiles.
        cells, at = found.cells, 3
        part = fast.model.vision_tower(
            given["pixel_values"][0, :at], output_hidden_states=True, return_dict=True
        )
        special = 1 if kind == "next" else 0
        layer = model.config.vision_feature_layer
        hidden = part.hidden_states[layer][:, special:][part.attention_mask[:, special:]]
        rows = fast.model.multi_modal_projector(hidden)
        place = owner_grid(cells)[1:at].view(2, GRID, GRID).flatten(0, 1)  # one above the other
        place = unpad_image(place[None], SIZES[0])[0]
        assert place.shape == (16, 6)  # the padding of 53.3 pixels of 64 is one patch a side
        expected = [*rows[cells.rows(0, 1)]]
        seen: set[int] = set()
        for line in place.tolist():
            new = [row for row in dict.fromkeys(line) if row not in seen]
            seen |= set(new)
            expected += [*rows[new], *[fast.model.image_newline] * bool(new)]
        torch.testing.assert_close(found.pooler_output[0], torch.stack(expected))


@pytest.mark.slow
def test_thinning_keeps_a_mean_per_cell():
    model = model_of("onevision", vision_aspect_ratio="anyres_max_1")
    given = inputs_of(model)
    fast = apply_apt(model, (5.0, 4.0), **NORM)
    with torch.no_grad():
        found = encode_images(fast, given)["mm_encoder_outputs"]["image"]
    whole = found.cells.lengths[0]
    assert 0 < found.image_tokens[0] - whole < found.cells.samples(1, 3).count + 2 * GRID
    assert all(x.isfinite().all() for x in found.pooler_output)


@pytest.mark.slow
def test_several_images_of_onevision_have_no_tiles():
    model = model_of("onevision")
    given = inputs_of(model)
    given["pixel_values"] = given["pixel_values"][:, :1]
    given["batch_num_images"] = torch.tensor([3])
    given["input_ids"] = torch.tensor([[6, IMAGE, 9, IMAGE, 4, IMAGE]])
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    fast = apply_apt(model, (-1.0, -1.0), **NORM)
    with torch.no_grad():
        encoded = encode_images(fast, given)
        assert encoded["mm_encoder_outputs"]["image"].image_tokens == (65, 65, 65)
        whole = repeated(given, [65, 65, 65])
        torch.testing.assert_close(
            fast(**encoded).logits, model(**whole).logits, rtol=1e-4, atol=1e-4
        )
        answer = model.generate(**whole, **OPTIONS)[:, -4:]
        assert torch.equal(fast.generate(**whole, **OPTIONS)[:, -4:], answer)


def test_any_aspect_ratio_goes_for_images_without_tiles():
    fast = apply_apt(model_of("onevision", vision_aspect_ratio="square"), (-1.0, -1.0), **NORM)
    given = inputs_of(fast)
    pixels, sizes = given["pixel_values"][:, :1], given["image_sizes"]
    with torch.no_grad():
        found = fast.model.get_image_features(pixels, sizes, batch_num_images=torch.tensor([3]))
    assert found.image_tokens == (65, 65, 65)


@pytest.mark.slow
def test_generation_takes_how_many_tiles_are_kept():
    model = model_of("onevision")
    given, most = inputs_of(model), {"vision_aspect_ratio": "anyres_max_1"}
    fast = apply_apt(model, (-1.0, -1.0), **NORM)
    with torch.no_grad():
        pixels, sizes = given["pixel_values"], given["image_sizes"]
        out = model.model.get_image_features(pixels, sizes, **most, return_dict=True)
        whole = repeated(given, [*map(len, out.pooler_output)])
        answer = model.generate(**whole, **most, **OPTIONS)[:, -4:]
        assert torch.equal(fast.generate(**whole, **most, **OPTIONS)[:, -4:], answer)


def paligemma_inputs(per_image: int) -> dict[str, Tensor]:
    ids = torch.tensor([[*[IMAGE] * per_image, 2, 5, 6], [*[IMAGE] * per_image, 2, 7, 8]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": textured(4)[[1, 3]],
    }


def test_paligemma():
    model = model_of("paligemma")
    given = paligemma_inputs(GRID**2)
    same = apply_apt(model, (-1.0, -1.0), **NORM)
    fast = apply_apt(model, (5.0, 4.0), **NORM)
    with torch.no_grad():
        logits = model(**given).logits
        answer = model.generate(**given, **OPTIONS)[:, -4:]
        for own in (given, encode_images(same, paligemma_inputs(1))):
            torch.testing.assert_close(same(**own).logits, logits, rtol=1e-4, atol=1e-4)
            assert torch.equal(same.generate(**own, **OPTIONS)[:, -4:], answer)
            beams = same.generate(**own, **OPTIONS, num_beams=2, num_return_sequences=2)[:, -4:]
            expected = model.generate(**given, **OPTIONS, num_beams=2, num_return_sequences=2)
            assert torch.equal(beams, expected[:, -4:])
        encoded = encode_images(fast, given)
        counts = encoded["mm_encoder_outputs"]["image"].image_tokens
        assert counts == fast.model.vision_tower.adaptive.last_cells.lengths
        assert (encoded["input_ids"] == IMAGE).sum(1).tolist() == [*counts]
        assert counts[0] != counts[1]
        assert encoded["token_type_ids"].shape == encoded["input_ids"].shape
        fast.generate(**encoded, **OPTIONS)
        again = encode_images(fast.model, given)
        assert torch.equal(again["input_ids"], encoded["input_ids"])
        pooled = encode_images(apply_reducer(model, "tome", r=8), given)
        assert pooled["mm_encoder_outputs"]["image"].image_tokens == (48, 48)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TILED, "paligemma"])
def test_it_trains_and_is_saved(kind: str, tmp_path):
    model = model_of(kind)
    fast = apply_apt(model, (5.0, 4.0), **NORM).train()
    given = paligemma_inputs(1) if kind == "paligemma" else inputs_of(model)
    trained = adaptok.vision.freeze_all_but_new(fast, also=("model.multi_modal_projector",))
    encoded = encode_images(fast, {**given, "labels": given["input_ids"]})
    fast(**encoded).loss.backward()
    assert all(p.grad is not None for p in trained)
    adaptok.save_pretrained(fast, tmp_path)
    again = adaptok.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = fast.eval()(**encode_images(fast, given)).logits
        torch.testing.assert_close(again(**encode_images(again, given)).logits, logits)


def test_refusals():
    model = model_of("next")
    with pytest.raises(ValueError, match="grid of its patches"):
        apply_reducer(model, "tome", r=8)
    fast = apply_apt(model, (5.0, 4.0), **NORM)
    given = inputs_of(model)
    given["input_ids"] = torch.tensor([[IMAGE] * 5])
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    with pytest.raises(ValueError, match=r"5 placeholder\(s\).* for 3 image\(s\), which have"):
        encode_images(fast, given)
    for name in ("pixel_values", "image_sizes"):
        with pytest.raises(ValueError, match=f"inputs without {name}, got: attention_mask"):
            encode_images(fast, {k: v for k, v in given.items() if k != name})
    with pytest.raises(ValueError, match="is no vision-language model; these are: LlavaModel"):
        encode_images(fast.model.vision_tower, given)
    with pytest.raises(ValueError, match="class token"):
        fast.model.get_image_features(
            given["pixel_values"], given["image_sizes"], vision_feature_select_strategy="full"
        )
    siglip = apply_apt(model_of("onevision"), (5.0, 4.0), **NORM)
    given = inputs_of(siglip)
    with pytest.raises(ValueError, match=r"'default' drops the first token.*; set 'full'"):
        siglip.model.get_image_features(
            given["pixel_values"], given["image_sizes"], vision_feature_select_strategy="default"
        )
    video = apply_apt(model_of("onevision"), (5.0, 4.0), **NORM)
    with pytest.raises(ValueError, match="videos"):
        video.model.get_video_features(torch.zeros(1, 2, 3, SIDE, SIDE))
