"""Training timm models on cells: freezing, sharing, state, decay, gradients, precision."""

from __future__ import annotations

import copy

import pytest
import torch
from sampled import sampled
from small_vits import EVA, NORM, SMALL, images, shaken, small_vit
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import mse_loss

from adaptok.vision import apply_apt, blocks, freeze_all_but_new


@pytest.mark.parametrize("kind", ["dinov3", "mixed"])
def test_coordinates_are_augmented_in_training_only(kind):
    """The same seed gives the rescaling that timm draws."""
    from timm.models.eva import Eva

    model = shaken(
        Eva(**SMALL, use_rot_pos_emb=True, num_classes=5, rope_type=kind, rope_rescale_coords=2.0)
    )
    fast = apply_apt(model, (-1.0,), **NORM).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fast(x), fast(x))
    fast.rope.train()
    draws = torch.stack([fast(x) for _ in range(3)])
    assert len(draws.flatten(1).unique(dim=0)) == 3
    torch.manual_seed(1)
    got = fast(x)
    model.rope.train()
    torch.manual_seed(1)
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-4)


def test_freezing_leaves_only_what_is_new():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM)
    trainable = freeze_all_but_new(fast, also=("head",))
    names = {n for n, p in fast.named_parameters() if p.requires_grad}
    assert len(trainable) == len(names)
    assert {name.split(".")[0] for name in names} == {"cell_embed", "head"}
    with pytest.raises(ValueError, match="'heed'"):
        freeze_all_but_new(fast, also=("heed",))


@pytest.mark.parametrize("frozen", [False, True])
def test_freezing_leaves_the_given_model_as_it_was(frozen):
    """Its flags stay, whichever they are; the values are the same ones before and after a step."""
    model = small_vit().requires_grad_(not frozen)
    fast = apply_apt(model, (6.0, 6.0), **NORM).train()
    trainable = freeze_all_but_new(fast, also=("head",))
    assert all(parameter.requires_grad is not frozen for parameter in model.parameters())
    assert [id(p) for p in fast.parameters() if p.requires_grad] == [id(p) for p in trainable]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast(images(2, 3, 64, 64)).square().sum().backward()
    torch.optim.SGD(trainable, 0.1).step()
    after = {name: p.data_ptr() for name, p in fast.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == after[name]
        assert torch.equal(parameter, before[name]) is not name.startswith("head")
    freeze_all_but_new(fast, also=("blocks.1",))
    moving = {n.partition(".")[0] for n, p in fast.named_parameters() if p.requires_grad}
    assert moving == {"blocks", "cell_embed"}
    assert not fast.blocks[0].attn.qkv.weight.requires_grad


def test_tied_parameters_stay_tied_when_they_freeze():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM)
    fast.blocks[1].attn.proj = fast.blocks[0].attn.proj
    fast.blocks[1].mlp.fc1.weight = fast.blocks[0].mlp.fc1.weight
    freeze_all_but_new(fast)
    assert fast.blocks[1].mlp.fc1.weight is fast.blocks[0].mlp.fc1.weight
    assert {n.partition(".")[0] for n, p in fast.named_parameters() if p.requires_grad} == {
        "cell_embed"
    }


def test_parameters_are_shared_and_the_model_stays_as_it_was():
    model = small_vit()
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    fast = apply_apt(model, (6.0, 6.0), **NORM)
    fast.train()
    assert not model.training
    fast.reset_classifier(7)
    assert fast(images(1, 3, 64, 64)).shape == (1, 7)
    assert fast.get_classifier().out_features == 7
    assert torch.equal(model(x), before)
    assert fast.blocks[0].attn.qkv.weight is model.blocks[0].attn.qkv.weight


@pytest.mark.parametrize("kind", sampled(["ViT", "Eva"], 2))
def test_setters_of_timm_keep_cells_and_model_together(kind):
    """What a setter leaves is what the same setter, called before, would give."""
    from timm.models.eva import Eva

    options = {**SMALL, **EVA, "num_reg_tokens": 1}
    model = small_vit() if kind == "ViT" else shaken(Eva(**options, num_classes=5))
    fast = apply_apt(copy.deepcopy(model), (6.0, 6.0), **NORM).eval()
    for knobs in ({"patch_size": 4}, {"img_size": 32, "patch_size": (8, 4)}):
        with pytest.raises(ValueError, match="apply_apt to it again"):
            fast.set_input_size(**knobs)
    x = images(2, 3, 96, 72)
    for knobs in ({"img_size": (96, 72)}, {"img_size": (96, 72), "patch_size": 8}):
        fast.set_input_size(**knobs)
        model.set_input_size(**knobs)
        with torch.no_grad():
            expected = apply_apt(model, (6.0, 6.0), **NORM).eval()(x)
            torch.testing.assert_close(fast(x), expected)
            torch.testing.assert_close(fast(x, thresholds=(-1.0, -1.0)), model(x))
    assert fast.patch_embed.img_size == (96, 72)
    model.set_input_size(patch_size=4)
    other = apply_apt(model, (6.0, 6.0), **NORM).eval()
    assert other.tiling.spec.sizes == ((1, 16, 16), (1, 8, 8), (1, 4, 4))
    fast.prune_intermediate_layers([0])
    assert len(fast.blocks) == 1
    assert len(fast.forward_intermediates(x, intermediates_only=True)) == 1


def test_state_travels_from_and_to_timm():
    first, second = small_vit(), small_vit()
    fast = apply_apt(second, (6.0, 6.0), **NORM)
    fast.load_state_dict(first.state_dict())
    other = small_vit()
    other.load_state_dict(fast.timm_state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(x), first(x))
    again = apply_apt(small_vit(), (6.0, 6.0), **NORM)
    again.load_state_dict(fast.state_dict())
    for a, b in zip(again.state_dict().values(), fast.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="Missing key"):
        fast.load_state_dict({k: v for k, v in first.state_dict().items() if k != "pos_embed"})


@pytest.mark.parametrize("kind", ["ViT", "Eva", "distilled"])
def test_layer_decay_gives_the_new_parameters_the_rate_of_the_head(kind):
    """They start at zero and learn the most; the other rates are those of timm's model."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.optim import param_groups_layer_decay

    cls = {"ViT": VisionTransformer, "Eva": Eva, "distilled": VisionTransformerDistilled}[kind]
    model = cls(**SMALL, num_classes=5)
    fast = apply_apt(model, (6.0, 6.0), **NORM)
    rates = []
    for one in (model, fast):
        groups = param_groups_layer_decay(
            one, layer_decay=0.5, no_weight_decay_list=one.no_weight_decay()
        )
        scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
        rates.append({name: scale[id(p)] for name, p in one.named_parameters()})
    new = {name: rate for name, rate in rates[1].items() if name not in rates[0]}
    assert new.keys() == {name for name in rates[1] if name.startswith("cell_embed.")}
    assert set(new.values()) == {rates[1]["head.weight"]} == {1.0}
    assert {name: rates[1][name] for name in rates[0]} == rates[0]
    assert rates[0]["patch_embed.proj.weight"] == 0.5**3


def test_gradient_checkpointing_changes_nothing():
    model = small_vit()
    x = images(2, 3, 64, 64)
    grads = []
    for enable in (False, True):
        fast = apply_apt(copy.deepcopy(model), (6.0, 6.0), **NORM).train()
        fast.set_grad_checkpointing(enable)
        fast(x).square().sum().backward()
        grads.append(fast.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*grads)


def test_stochastic_depth_is_drawn_per_image():
    fast = apply_apt(small_vit(drop_path_rate=0.9, depth=2), (6.0, 6.0), **NORM).train()
    x = images(1, 3, 64, 64).repeat(16, 1, 1, 1)
    logits = fast(x)
    assert 2 <= len(logits.unique(dim=0)) <= 4  # dropped or not in the second block, two branches
    never = apply_apt(small_vit(drop_path_rate=1.0, depth=2), (6.0, 6.0), **NORM).train()
    mixed = torch.cat([images(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)])
    assert never(mixed).isfinite().all()


def test_positions_are_dropped_where_timm_drops_them():
    model = small_vit(pos_embed="none", pos_drop_rate=0.9).train()
    x = images(2, 3, 64, 64)
    torch.testing.assert_close(apply_apt(model, (-1.0, -1.0), **NORM)(x), model(x))


def test_gradients_reach_everything():
    fast = apply_apt(small_vit(init_values=0.1), (6.0, 6.0), **NORM).train()
    with torch.no_grad():
        fast.cell_embed.zero.weight.normal_(std=0.1)
    mse_loss(fast(images(2, 3, 64, 64)), torch.ones(2, 5)).backward()
    assert not [n for n, p in fast.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    fast = apply_apt(small_vit(qk_norm=True).to(dtype), (6.0, 6.0), **NORM).eval()
    out = fast(images(2, 3, 64, 64).to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_autocast_is_near_single_precision():
    fast = apply_apt(small_vit(qk_norm=True), (6.0, 6.0), **NORM).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        exact = fast(x)
        with torch.autocast("cpu", torch.bfloat16):
            out = fast(x)
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)


def test_autocast_keeps_attention_in_half_precision_and_the_residual_in_single(monkeypatch):
    """As timm: fused kernels need the one, and the other is the sum of all blocks."""
    from timm.models.eva import Eva

    model = shaken(Eva(**SMALL, **EVA, use_abs_pos_emb=False, num_classes=5))
    fast, attended, residual = apply_apt(model, (6.0, 6.0), **NORM), [], []
    attend = blocks.attend
    monkeypatch.setattr(
        blocks, "attend", lambda *x, **more: attended.append(x[2].dtype) or attend(*x, **more)
    )
    fast.blocks[0].register_forward_pre_hook(lambda _, x: residual.append(x[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast(images(2, 3, 64, 64))
    assert set(attended) == {torch.bfloat16}
    assert residual == [torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("marking", [None, {"name": "budget", "budget": 22}])
def test_static_shapes_compile_in_one_graph(marking):
    thresholds = (-1.0, -1.0) if marking is None else (6.0, 6.0)
    fast = apply_apt(small_vit(), thresholds, marking=marking, **NORM).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = fast(x)
        compiled = torch.compile(fast, fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


def test_a_copy_uses_its_own_weights():
    fast = apply_apt(small_vit(), (6.0, 6.0), **NORM).eval()
    twin = copy.deepcopy(fast)
    x = images(1, 3, 64, 64)
    before = fast(x)
    with torch.no_grad():
        twin.patch_embed.proj.weight.zero_()
        twin.pos_embed.add_(1)
    assert torch.equal(fast(x), before)
    assert not torch.equal(twin(x), before)


@pytest.mark.parametrize(
    ("indicator", "bits"),
    [
        ("entropy", True),
        ({"name": "entropy", "color": "channels"}, True),
        ("laplacian", False),
        ({"name": "variance", "by_area": True}, False),
        ("resampling", False),
        ("gradient", False),
    ],
)
def test_thresholds_without_a_unit_are_asked_for(indicator, bits):
    """The default is in bits; a fixed budget compares no threshold at all."""
    from adaptok.vision import IMAGE_TOKENIZERS

    made = {name: {"indicator": indicator} for name in ("apt", "resize", "random")}
    made |= {"capped": {"indicator": indicator, "budget": 30}}
    budget = {"name": "budget", "budget": 30}
    apply_apt(small_vit(), indicator=indicator, marking=budget, **NORM)
    builders = [lambda: apply_apt(small_vit(), indicator=indicator, **NORM)]
    for name, knobs in made.items():
        own = {"name": name.replace("capped", "apt"), **knobs}
        builders.append(lambda own=own: IMAGE_TOKENIZERS.build(own, model=small_vit(), **NORM))
    for build in builders:
        if bits:
            bars = build().options["thresholds"]
            assert bars == [5.5, 4.0]
        else:
            with pytest.raises(ValueError, match="are not bits, so thresholds have no"):
                build()
