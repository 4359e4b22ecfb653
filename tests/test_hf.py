"""Vision models of transformers: theirs where nothing merges, timm's where something does."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

import adaptok

pytest.importorskip("timm")
transformers = pytest.importorskip("transformers", minversion="5.24")

from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: E402

from adaptok.processors.reducers import Reducer  # noqa: E402
from adaptok.vision import VisionTower, apply_apt, apply_reducer, freeze_all_but_new  # noqa: E402
from adaptok.vision.hf import statistics  # noqa: E402

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SIZE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
SIZE |= {"image_size": 64, "patch_size": 8}
WIDE = {**SIZE, "intermediate_size": 48}
TOWERS = {
    "ViTModel": ("ViTConfig", {**WIDE, "layer_norm_eps": 1e-6}),
    "Dinov2Model": ("Dinov2Config", {**SIZE, "mlp_ratio": 2}),
    "Dinov2WithRegistersModel": (
        "Dinov2WithRegistersConfig",
        {**SIZE, "mlp_ratio": 2, "num_register_tokens": 3, "use_swiglu_ffn": True},
    ),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**WIDE, "num_register_tokens": 2}),
    "CLIPVisionModel": ("CLIPVisionConfig", WIDE),
    "SiglipVisionModel": ("SiglipVisionConfig", WIDE),
}
TEXT = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
TEXT |= {"intermediate_size": 48, "max_position_embeddings": 16}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1}
ROOTS = {
    "ViTForImageClassification": ("ViTModel", "vit"),
    "Dinov2ForImageClassification": ("Dinov2Model", "dinov2"),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersModel",
        "dinov2_with_registers",
    ),
    "CLIPVisionModelWithProjection": ("CLIPVisionModel", "vision_model"),
    "CLIPForImageClassification": ("CLIPVisionModel", "vision_model"),
    "SiglipForImageClassification": ("SiglipVisionModel", "vision_model"),
    "CLIPModel": ("CLIPVisionModel", "vision_model"),
    "SiglipModel": ("SiglipVisionModel", "vision_model"),
}


def shaken(model):
    """Random everywhere: initial zeros and ones would hide what is left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tower(name: str, **options):
    torch.manual_seed(0)
    config, own = TOWERS[name]
    config = getattr(transformers, config)(**{**own, **options})
    return shaken(getattr(transformers, name)(config))


def root(name: str):
    torch.manual_seed(0)
    kind, _ = ROOTS[name]
    config, own = TOWERS[kind]
    family = config.replace("VisionConfig", "")
    if family in ("CLIP", "Siglip") and "WithProjection" not in name:
        text = getattr(transformers, f"{family}TextConfig")(**TEXT).to_dict()
        own = {"text_config": text, "vision_config": own, "projection_dim": 12}
        config = f"{family}Config"
    own = own if "Classification" not in name else {**own, "num_labels": 5}
    return shaken(getattr(transformers, name)(getattr(transformers, config)(**own)))


def images(*shape: int) -> torch.Tensor:
    """Flat, but for a corner of noise that is wider from image to image, normalised."""
    x = torch.full(shape, 0.3)
    generator = torch.Generator().manual_seed(0)
    for i, image in enumerate(x):
        side = 16 * (i + 1)
        image[:, :side, :side] = torch.rand(image[:, :side, :side].shape, generator=generator)
    return (x - 0.5) / 0.5


def close(got, expected) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


QUICK = ("CLIPVisionModel", "DINOv3ViTModel")
EVERY = [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in TOWERS]


@pytest.mark.parametrize("name", EVERY)
def test_nothing_merged_is_transformers(name):
    model = tower(name)
    fast = apply_apt(model, (-1.0, -1.0), **NORM)
    assert isinstance(fast, type(model))
    for shape in ((64, 64), (72, 99)):  # other sizes, and what no patch covers
        x = torch.randn(2, 3, *shape)
        asked = shape != (64, 64) and not name.startswith("D")
        more = {"interpolate_pos_encoding": True} if asked else {}
        with torch.no_grad():
            expected = model(x, output_hidden_states=True, **more)
            got = fast(x, output_hidden_states=True, **more)
        assert isinstance(got, BaseModelOutputWithPooling)
        close(got.last_hidden_state, expected.last_hidden_state)
        close(got.pooler_output, expected.pooler_output)
        close(got.hidden_states, expected.hidden_states)
        assert bool(got.attention_mask.all())
    close(fast(x, return_dict=False, **more)[0], got[0])
    some = fast(x, output_hidden_states=-2, **more).hidden_states
    assert [i for i, y in enumerate(some) if y is not None] == [2]


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_equals_its_images_and_dense_layers(name):
    model, x = tower(name), images(3, 3, 64, 64)
    fast = apply_apt(model, (5.0, 4.0), **NORM, weighted=name == "SiglipVisionModel")
    with torch.no_grad():
        out = fast(x, output_hidden_states=True)
        counts = out.attention_mask.sum(1).tolist()
        assert len(set(counts)) == 3
        assert max(counts) < 64
        special = counts[0] - out.cells.lengths[0]
        close(out.weight[:, special:].sum(1), torch.full((3,), 64.0))
        assert not out.last_hidden_state[~out.attention_mask].any()
        together = fast([*x])  # as a list of images
        close(together.last_hidden_state, out.last_hidden_state)
        for i, n in enumerate(counts):
            alone = fast(x[i : i + 1], output_hidden_states=True)
            close(alone.last_hidden_state[0], out.last_hidden_state[i, :n])
            close(alone.pooler_output[0], out.pooler_output[i])
            close(alone.hidden_states[1][0], out.hidden_states[1][i, :n])
        if name in ("DINOv3ViTModel", "SiglipVisionModel"):  # turned by place; weighted
            return
        # The slow reference: transformers' own layers on the tokens of one image.
        rows = alone.hidden_states[0]
        layers = model.layers if name == "ViTModel" else model.encoder
        for layer in getattr(layers, "layers", getattr(layers, "layer", layers)):
            rows = layer(rows, None)
        close(rows, alone.hidden_states[-1])


def test_rotary_positions_stand_at_the_centres_of_cells():
    """The slow reference: angles cell by cell, by the formula of the model's patches."""
    model, x = tower("DINOv3ViTModel"), images(1, 3, 64, 64)
    fast = apply_apt(model, (5.0, 4.0), **NORM)
    with torch.no_grad():
        out = fast(x, output_hidden_states=True)
        cells, angles = out.cells, []
        for i in range(len(cells)):
            y, z = (cells.origin[i, 1:] + cells.size[i, 1:] / 2).tolist()
            at = [2 * (v / 64) - 1 for v in (y, z)]
            own = [2 * torch.pi * v * f for v in at for f in model.rope_embeddings.inv_freq]
            angles.append(torch.stack(own * 2))
        angles = torch.stack(angles)
        rows = out.hidden_states[0]
        for layer in model.model.layer:
            rows = layer(rows, None, (angles.cos(), angles.sin()))
    close(rows, out.hidden_states[-1])


def as_timm(model):
    """The same ViT as a model of timm."""
    from timm.models.vision_transformer import VisionTransformer

    made = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=24, depth=3, num_heads=3, mlp_ratio=2.0, num_classes=0
    )
    state = {"cls_token": model.embeddings.cls_token}
    state["pos_embed"] = model.embeddings.position_embeddings
    pieces = {"patch_embed.proj": model.embeddings.patch_embeddings.projection}
    pieces["norm"] = model.layernorm
    for i, layer in enumerate(model.layers):
        pieces[f"blocks.{i}.norm1"] = layer.layernorm_before
        pieces[f"blocks.{i}.norm2"] = layer.layernorm_after
        pieces[f"blocks.{i}.attn.proj"] = layer.attention.o_proj
        pieces |= {f"blocks.{i}.mlp.fc1": layer.mlp.fc1, f"blocks.{i}.mlp.fc2": layer.mlp.fc2}
        parts = [getattr(layer.attention, f"{letter}_proj") for letter in "qkv"]
        for kind in ("weight", "bias"):
            own = torch.cat([getattr(part, kind) for part in parts])
            state[f"blocks.{i}.attn.qkv.{kind}"] = own
    for name, piece in pieces.items():
        state |= {f"{name}.{key}": value for key, value in piece.state_dict().items()}
    made.load_state_dict(state)
    return made.eval()


def test_merged_cells_and_reducers_equal_those_of_timm():
    model = tower("ViTModel")
    same, x = as_timm(model), images(2, 3, 64, 64)
    options = {**NORM, "weighted": True, "window": 32, "global_blocks": (1,)}
    ours, theirs = (apply_apt(m, (5.0, 4.0), **options) for m in (model, same))
    with torch.no_grad():
        shaken(theirs.cell_embed)  # a branch that does something
        ours.adaptive.cell_embed.load_state_dict(theirs.cell_embed.state_dict())
        expected, mask = theirs.forward_features(x).padded()
        out = ours(x)
        close(out.last_hidden_state, expected)
        assert torch.equal(out.attention_mask, mask)
        tokens, boxes = VisionTower(ours)(x), VisionTower(theirs)(x)
        close(tuple(tokens), tuple(boxes))
        x = torch.randn(2, 3, 64, 64)
        for name, knobs in (("tome", {"r": [20, 7, 0]}), ("evit", {"blocks": [1, 2]})):
            ours2, theirs2 = (apply_reducer(m, name, **knobs) for m in (model, same))
            close(ours2(x).last_hidden_state, theirs2.forward_features(x))
            close(ours2(x).weight, theirs2.last.mass.view(2, -1))


PAIRS = [(tower, name) for tower in TOWERS for name in adaptok.REDUCERS.names()]
ACTIVE = {"pitome": {"keep": 0.8}, "evit": {"blocks": [1, 2]}, "dynamicvit": {"blocks": [1, 2]}}


@pytest.mark.parametrize(
    ("name", "reducer"),
    [
        pytest.param(*p, marks=[pytest.mark.slow] * (p != ("SiglipVisionModel", "tome")))
        for p in PAIRS
    ],
)
def test_reduced_batches_equal_their_images(name, reducer):
    model, x = tower(name), torch.randn(2, 3, 64, 64)
    fast = apply_reducer(model, reducer, **ACTIVE.get(reducer, {"r": [9, 5, 0]}))
    with torch.no_grad():
        whole = model(x)
        out = fast(x, output_hidden_states=True)
        assert out.last_hidden_state.shape[1] < whole.last_hidden_state.shape[1]
        assert isinstance(out, BaseModelOutputWithPooling)
        for i in range(2):
            alone = fast(x[i : i + 1])
            close(alone.last_hidden_state[0], out.last_hidden_state[i])
            close(alone.pooler_output[0], out.pooler_output[i])
        if reducer == "tome":
            close(fast.adaptive.last.mass.view(1, -1).sum(), torch.tensor(whole[0].shape[1] * 1.0))
            nothing = apply_reducer(model, "tome", r=0)(x, output_hidden_states=True)
            close(nothing.last_hidden_state, whole.last_hidden_state)
            close(nothing.pooler_output, whole.pooler_output)
            close(nothing.hidden_states, model(x, output_hidden_states=True).hidden_states)


def test_what_is_out_in_training_is_not_pooled():
    fast = apply_reducer(tower("SiglipVisionModel"), "dynamicvit", blocks=[1]).train()
    out = fast(torch.randn(1, 3, 64, 64))
    inside = fast.adaptive.last.gate > 0
    assert 0 < inside.sum() < 64
    assert torch.equal(out.weight[0] > 0, inside)  # what classifiers take their means by
    alone = fast.head(out.last_hidden_state[:, inside])
    torch.testing.assert_close(out.pooler_output, alone, atol=1e-3, rtol=1e-3)


class Looks(Reducer):
    """Reduces nothing, and keeps what it sees."""

    def __init__(self, depth: int):
        super().__init__(depth)
        self.seen = []

    def acts(self, block: int) -> bool:
        return True

    def forward(self, seen):
        self.seen.append(seen)


@pytest.mark.slow
def test_reducers_see_queries_and_keys_before_rotation():
    model = tower("DINOv3ViTModel")
    fast = apply_reducer(model, {"name": Looks})
    fast(torch.randn(2, 3, 64, 64))
    for layer, seen in zip(model.model.layer, fast.adaptive.reducer.seen, strict=True):
        close(seen.k.flatten(1), layer.attention.k_proj(seen.normed))
        close(seen.q.flatten(1), layer.attention.q_proj(seen.normed))
        assert not torch.allclose(seen.rotate(seen.k), seen.k)


def inputs_of(model, x: torch.Tensor) -> dict:
    text = {"input_ids": torch.tensor([[3, 4, 5, 2]])} if hasattr(model, "text_model") else {}
    return {"pixel_values": x, **text}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n != "Dinov2ForImageClassification"))
        for n in ROOTS
    ],
)
def test_models_around_a_tower(name):
    model, x = root(name), images(2, 3, 64, 64)
    fast = apply_apt(model, (-1.0, -1.0), **NORM)
    given = inputs_of(model, x)
    given |= {"labels": torch.tensor([1, 4])} if "Classification" in name else {}
    with torch.no_grad():
        expected, got = model(**given), fast(**given)
        assert list(got.keys()) == list(expected.keys())
        for key in ("loss", "logits", "image_embeds", "logits_per_image"):
            if key in expected:
                close(got[key], expected[key])
        merged = fast(**given, thresholds=(5.0, 4.0))
        alone = fast(**inputs_of(model, x[1:]), thresholds=(5.0, 4.0))
        key = "logits" if "logits" in expected else "image_embeds"
        close(merged[key][1:], alone[key])
        assert not torch.allclose(merged[key], expected[key], atol=1e-3)


@pytest.mark.slow
def test_a_mean_counts_tokens_by_their_patches():
    model, x = root("CLIPForImageClassification"), images(2, 3, 64, 64)
    fast = apply_apt(model, (5.0, 4.0), **NORM)
    with torch.no_grad():
        out = fast.vision_model(x)
        rows = [
            torch.cat([row.expand(int(n), -1) for row, n in zip(y[1:], w[1:], strict=True)])
            for y, w in zip(out.last_hidden_state, out.weight, strict=True)
        ]
        expected = model.classifier(torch.stack([own.mean(0) for own in rows]))
        close(fast(x).logits, expected)
        plain = apply_apt(model, (5.0, 4.0), **NORM, pooling="plain")
        y = out.last_hidden_state[0, 1 : int(out.attention_mask[0].sum())].mean(0)
        close(plain(x).logits[0], model.classifier(y))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: tower("DINOv3ViTModel"),
        lambda: root("CLIPModel"),
        lambda: root("ViTForImageClassification"),
        lambda: transformers.ViTModel(
            transformers.ViTConfig(**TOWERS["ViTModel"][1]), add_pooling_layer=False
        ).eval(),
    ],
)
@pytest.mark.parametrize("reduce", [False, True])
def test_saved_and_loaded(make, reduce, tmp_path):
    model, x = make(), images(2, 3, 64, 64)
    fast = apply_reducer(model, "tome", r=5) if reduce else apply_apt(model, (5.0, 4.0), **NORM)
    if not reduce:
        shaken(fast.get_submodule(ROOTS.get(type(model).__name__, ("", ""))[1]).adaptive)
    adaptok.save_pretrained(fast, tmp_path / "own")
    again = adaptok.from_pretrained(tmp_path / "own")
    assert type(again) is type(fast)
    fast.save_pretrained(tmp_path / "theirs")  # transformers' own file is that of its model
    plain = type(model).from_pretrained(tmp_path / "theirs").eval()
    given = inputs_of(model, x)
    with torch.no_grad():
        for key, value in fast(**given).items():
            if isinstance(value, torch.Tensor):
                close(again(**given)[key], value)
        if type(model).__name__ != "ViTModel" or model.pooler is not None:
            for key, value in model(**given).items():
                if isinstance(value, torch.Tensor):
                    close(plain(**given)[key], value)


def test_labels_may_have_any_names(tmp_path):
    names = {0: "class", 1: "not recorded"}
    model = tower("ViTModel", id2label=names, label2id={v: k for k, v in names.items()})
    adaptok.save_pretrained(apply_apt(model, (5.0, 4.0), **NORM), tmp_path)
    again = adaptok.from_pretrained(tmp_path)
    assert again.config.label2id == model.config.label2id


def test_training_moves_what_is_asked_for():
    model = root("CLIPForImageClassification")
    before = copy.deepcopy(model.state_dict())
    fast = apply_apt(model, (5.0, 4.0), **NORM).train()
    trained = freeze_all_but_new(fast, also=("classifier",))
    names = {n for n, p in fast.named_parameters() if p.requires_grad}
    assert all(".cell_embed." in n or n.startswith("classifier") for n in names)
    assert len(trained) == len(names) == 6
    x, labels = images(2, 3, 64, 64), torch.tensor([0, 1])
    step = torch.optim.SGD(trained, lr=0.1)
    fast(x, labels=labels).loss.backward()
    assert {n for n, p in fast.named_parameters() if p.grad is not None} == names
    step.step()
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("reduce", [False, True])
def test_checkpoints_precision_and_copies(name, reduce):
    model, x = tower(name), images(2, 3, 64, 64)

    def made(m):
        return apply_reducer(m, "tome", r=5) if reduce else apply_apt(m, (5.0, 4.0), **NORM)

    fast = made(model).train()
    if name == "DINOv3ViTModel":
        fast.config.pos_embed_rescale = None  # drawn anew in each pass
    grads = []
    for on in (False, True):
        if on:
            fast.gradient_checkpointing_enable()
        fast.zero_grad()
        fast(x).last_hidden_state.square().sum().backward()
        grads.append([p.grad for p in fast.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    fast.eval()
    with torch.no_grad():
        expected = fast(x)
        close(copy.deepcopy(fast)(x).last_hidden_state, expected.last_hidden_state)
        for dtype, error in ((torch.float64, 1e-4), (torch.bfloat16, 0.3)):
            other = made(copy.deepcopy(model).to(dtype))(x)
            assert other.last_hidden_state.dtype == dtype
            if not reduce:  # another order of what merges
                assert torch.equal(other.attention_mask, expected.attention_mask)
                gap = other.last_hidden_state.float() - expected.last_hidden_state
                assert gap.abs().mean() < error
        with torch.autocast("cpu", torch.bfloat16):
            assert fast(x).pooler_output.isfinite().all()


@pytest.mark.slow
def test_stochastic_depth_is_drawn_per_image():
    model = tower("Dinov2Model", drop_path_rate=0.5)
    fast = apply_apt(model, (5.0, 4.0), **NORM).train()
    x = images(1, 3, 64, 64).expand(16, -1, -1, -1)
    torch.manual_seed(0)
    out = fast(x).pooler_output
    assert len({tuple(row.tolist()) for row in out.detach()}) > 4
    close(fast.eval()(x[:1]).pooler_output, apply_apt(model, (5.0, 4.0), **NORM)(x[:1])[1])


COMPILED = """
import sys

import torch
import transformers
from adaptok.vision import apply_apt

sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2}
sizes |= {"num_attention_heads": 2}
norm = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
x = torch.rand(2, 3, 32, 32) * 2 - 1
for words in sys.argv[1:]:
    name, config = words.split(":")
    torch.manual_seed(0)
    config = getattr(transformers, config)(**sizes)
    model = getattr(transformers, name)(config).eval()
    fast = apply_apt(model, (5.0,), marking={"name": "budget", "budget": 10}, **norm)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    expected, got = fast(x), compiled(x)
    assert expected.cells.lengths == (10, 10)
    weights = [p for p in fast.parameters() if p.requires_grad]
    for one, other in zip(expected[:2], got[:2]):
        torch.testing.assert_close(other, one)
    slopes = [
        torch.autograd.grad(out[0].square().sum(), weights, materialize_grads=True)
        for out in (expected, got)
    ]
    assert sum(bool(slope.any()) for slope in slopes[0]) > 20
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_a_fixed_number_of_tokens_compiles():
    """In a process of its own: the checks of types here stand in the way of a whole graph."""
    words = [f"{name}:{config}" for name, (config, _) in TOWERS.items()]
    run = subprocess.run([sys.executable, "-c", COMPILED, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_normalisation_is_that_of_the_processor():
    processor = transformers.CLIPImageProcessor()
    mean, std = statistics(processor)
    assert mean == pytest.approx(processor.image_mean)
    assert std == pytest.approx(processor.image_std)
    raw = transformers.CLIPImageProcessor(do_normalize=False, do_rescale=False)
    assert statistics(raw) == ((0.0,) * 3, (1 / 255,) * 3)
    model = tower("CLIPVisionModel")
    fast = apply_apt(model, (5.0, 4.0), processor=processor)
    assert fast.adaptive.tiling.stats == (mean, std)
    with pytest.warns(UserWarning, match="cells of images of this processor"):
        apply_apt(model, (5.0, 4.0), processor=processor, **NORM)


def test_one_number_normalises_all_channels():
    fast = apply_apt(tower("CLIPVisionModel"), (5.0, 4.0), mean=0.5, std=0.25)
    assert fast.adaptive.tiling.stats == ((0.5,) * 3, (0.25,) * 3)


def test_what_is_refused():
    model = tower("CLIPVisionModel")
    with pytest.raises(ValueError, match="give processor="):
        apply_apt(model, (5.0, 4.0))
    fast = apply_apt(model, (5.0, 4.0), **NORM)
    with pytest.raises(ValueError, match="adapted already"):
        apply_apt(fast, (5.0, 4.0), **NORM)
    with pytest.raises(ValueError, match="interpolate_pos_encoding"):
        fast(torch.rand(1, 3, 96, 96))
    with pytest.raises(ValueError, match="smaller than the coarsest cell"):
        fast(torch.rand(1, 3, 24, 24), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="attention weights"):
        fast(torch.rand(1, 3, 64, 64), output_attentions=True)
    with pytest.raises(ValueError, match="because its tokens are not patches"):
        fast(torch.rand(1, 3, 64, 64), attention_mask=torch.ones(1, 65))
    with pytest.raises(ValueError, match="class token sees no patch: give global_blocks"):
        apply_apt(model, (5.0, 4.0), **NORM, window=32)
    with pytest.raises(ValueError, match="attention_dropout"):
        apply_apt(tower("CLIPVisionModel", attention_dropout=0.1), (5.0,), **NORM)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
    with pytest.raises(ValueError, match=r"CLIPTextModel.*Supported: .*ViTModel"):
        apply_apt(text, (5.0,), **NORM)
    with pytest.raises(ValueError, match="vision model in it"):
        VisionTower(root("CLIPVisionModelWithProjection"))
    fast.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="was set to 'sdpa'"):
        fast(torch.rand(1, 3, 64, 64))
