"""timm models with reducers, against timm and against a slow copy of the papers' blocks."""

from __future__ import annotations

import pytest
import torch

import adaptok
from adaptok import REDUCERS

pytest.importorskip("timm")

from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer

from adaptok.vision import apply_reducer

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
MODELS = {
    "class token": (VisionTransformer, {}),
    "mean, four registers": (VisionTransformer, {"global_pool": "avg", "reg_tokens": 4}),
    "no prefix": (VisionTransformer, {"class_token": False, "global_pool": "avgmax"}),
    "attention pooling": (VisionTransformer, {"class_token": False, "global_pool": "map"}),
    "distilled": (VisionTransformerDistilled, {}),
    "eva": (Eva, {"use_rot_pos_emb": True}),
    "post norm": (VisionTransformer, {"block_fn": ResPostBlock}),
}
ACTIVE = {
    "tome": {"r": [5, 3, 0]},
    "pitome": {"keep": 0.8},
    "evit": {"blocks": [1, 2]},
    "dynamicvit": {"blocks": [1, 2]},
    "dtem": {"r": [5, 3, 0]},
    "random": {"r": [5, 3, 0]},
}


def model_of(name: str = "class token", **more):
    torch.manual_seed(0)
    kind, options = MODELS[name]
    model = kind(**{**SMALL, "num_classes": 5, **options, **more})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in ("no prefix", "distilled", "post norm")))
        for n in MODELS
    ],
)
def test_nothing_to_take_away_is_timm(name):
    model, x = model_of(name), images()
    same = apply_reducer(model, "tome", r=0)
    torch.testing.assert_close(same(x), model(x), atol=1e-5, rtol=1e-5)
    features = model.forward_features(x)
    torch.testing.assert_close(same.forward_features(x), features, atol=1e-5, rtol=1e-5)
    rest = features[:, model.num_prefix_tokens :]
    maps = rest.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    torch.testing.assert_close(same.dense_features(x), maps, atol=1e-5, rtol=1e-5)


PAIRS = [(model, reducer) for model in MODELS for reducer in REDUCERS.names()]
QUICK = [("no prefix", "evit"), ("class token", "dynamicvit"), ("distilled", "tome")]
QUICK += [("attention pooling", "dtem"), ("eva", "pitome"), ("post norm", "random")]


@pytest.mark.parametrize(
    ("name", "reducer"),
    [pytest.param(*p, marks=[pytest.mark.slow] * (p not in QUICK)) for p in PAIRS],
)
def test_a_batch_equals_its_images(name, reducer):
    model, x = model_of(name), images()
    fast = apply_reducer(model, reducer, **ACTIVE[reducer])
    alone = [fast(one[None]) for one in x]
    together = fast(x)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    features = fast.forward_features(x)
    assert features.shape[1] < 16 + model.num_prefix_tokens
    torch.testing.assert_close(fast.forward_head(features), together)
    assert fast.unmerge(features).shape == model.forward_features(x).shape
    assert fast.dense_features(x).shape == (2, 24, 4, 4)
    _, between = fast.forward_intermediates(x, norm=True)
    torch.testing.assert_close(between[-1], fast.dense_features(x))
    with pytest.raises(ValueError, match="unmerge takes the features"):
        fast.unmerge(features[:, 1:])
    assert (together - model(x)).abs().max() > 1e-4


def tome_by_hand(block, x, mass, r):
    """One image (n, d) through a pre-norm block, as the paper says it, in loops over tokens."""
    attn, h = block.attn, block.norm1(x)
    q, k, v = attn.qkv(h).unflatten(-1, (3, 3, 8)).permute(1, 2, 0, 3)
    weights = (q @ k.mT / 8**0.5 + mass.log()).softmax(-1)
    x = x + attn.proj((weights @ v).transpose(0, 1).flatten(1))
    if not r:  # not even the order changes
        return x + block.mlp(block.norm2(x)), mass
    metric = torch.nn.functional.normalize(k.mean(0), dim=-1)
    even, odd = [*range(2, len(x), 2)], [*range(1, len(x), 2)]
    score = {i: max((float(metric[i] @ metric[j]), j) for j in odd) for i in even}
    sources = sorted(even, key=lambda i: -score[i][0])[:r]
    groups = {i: [i] for i in [0, *(i for i in even if i not in sources), *odd]}
    for i in sources:
        groups[score[i][1]].append(i)
    x = torch.stack([(x[g] * mass[g, None]).sum(0) / mass[g].sum() for g in groups.values()])
    mass = torch.stack([mass[g].sum() for g in groups.values()])
    return x + block.mlp(block.norm2(x)), mass


def test_blocks_of_tome_against_loops():
    model, x = model_of(), images()
    fast = apply_reducer(model, "tome", r=[5, 3, 0])
    outputs = []
    for block in fast.blocks:
        block.register_forward_hook(lambda module, given, out: outputs.append(out))
    features = fast.forward_features(x)
    for image in range(2):
        rows = model._pos_embed(model.patch_embed(x))[image]
        mass = torch.ones(17)
        for block, r, out in zip(model.blocks, (5, 3, 0), outputs, strict=True):
            rows, mass = tome_by_hand(block, rows, mass, r)
            torch.testing.assert_close(out[image], rows, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features[image], model.norm(rows), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fast.last.mass.view(2, -1)[image], mass)


def test_means_count_the_patches_that_tokens_stand_for():
    fast = apply_reducer(model_of("mean, four registers"), "tome", r=3)
    x = images()
    dense = fast.dense_features(x).flatten(2).mean(2)
    pooled = fast.forward_head(fast.forward_features(x), pre_logits=True)
    torch.testing.assert_close(pooled, fast.fc_norm(dense), atol=1e-5, rtol=1e-5)


def test_the_state_of_a_pass_is_for_its_batch_alone():
    model = model_of("mean, four registers")
    fast = apply_reducer(model, "tome", r=3)
    features = fast.forward_features(images())
    other = features.flatten(0, 1)[None]  # as many rows, of one image
    torch.testing.assert_close(fast.forward_head(other), model.forward_head(other))
    with pytest.raises(ValueError, match=r"last forward pass \(2 x 12 tokens\), got \(1, 24, 24\)"):
        fast.unmerge(other)


@pytest.mark.parametrize(
    "reducer",
    [
        pytest.param(r, marks=[pytest.mark.slow] * (r not in ("dtem", "dynamicvit")))
        for r in REDUCERS.names()
    ],
)
def test_it_trains_with_checkpoints_and_shares_the_parameters(reducer):
    model, x = model_of(drop_path_rate=0.2), images()
    fast = apply_reducer(model, reducer, **ACTIVE[reducer]).train()
    assert {id(p) for p in model.parameters()} <= {id(p) for p in fast.parameters()}
    gradients = []
    for checkpointing in (False, True):
        fast.set_grad_checkpointing(checkpointing)
        fast.zero_grad()
        torch.manual_seed(3)
        fast(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in fast.parameters() if p.grad is not None])
    assert len(gradients[0]) >= len([*model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_it_trains_in_half_precision():
    fast = apply_reducer(model_of().bfloat16(), "dynamicvit", blocks=[1, 2]).train()
    assert fast(images().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("pool", ["avg", "avgmax", "max", "map"])
def test_what_is_out_in_training_is_pooled_as_if_it_were_gone(pool):
    model = model_of(class_token=False, global_pool=pool)
    fast = apply_reducer(model, "dynamicvit", blocks=[1]).train()
    torch.manual_seed(0)
    features, flow, _ = fast._run(images(1))
    inside = flow.gate > 0
    assert 0 < inside.sum() < 16
    got, alone = fast.forward_head(features, flow=flow), model.forward_head(features[:, inside])
    torch.testing.assert_close(got, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast.forward_head(features), got)
    if pool != "max":  # whose gradient reaches the gate by the blocks alone
        (slope,) = torch.autograd.grad(got.square().sum(), flow.gate)
        assert slope.isfinite().all()
        assert slope[~inside].any()


def test_pooling_is_finite_where_all_are_out():
    for pool in ("avg", "avgmax", "map"):
        fast = apply_reducer(model_of(class_token=False, global_pool=pool), "tome", r=3)
        features = fast.forward_features(images(1))
        gone = fast.last._replace(gate=torch.zeros(features.shape[1]))
        none = fast.last._replace(mass=torch.zeros(features.shape[1]))
        for flow in (gone, none):
            assert fast.forward_head(features, flow=flow).isfinite().all()


def test_it_is_saved(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=3)
    fast = apply_reducer(model, "dtem", r=[3, 2]).eval()
    adaptok.save_pretrained(fast, tmp_path)
    again, x = adaptok.from_pretrained(tmp_path), torch.randn(1, 3, *model.patch_embed.img_size)
    assert torch.equal(again(x), fast(x))


@pytest.mark.slow
@pytest.mark.parametrize("reducer", REDUCERS.names())
def test_it_is_exported_for_any_batch(reducer):
    fast, x = apply_reducer(model_of(depth=3), reducer, **ACTIVE[reducer]), images(3)
    batch = torch.export.Dim("b", min=2, max=64)
    program = torch.export.export(fast, (x,), dynamic_shapes={"x": {0: batch}}, strict=False)
    torch.testing.assert_close(program.module()(images(5)), fast(images(5)))


def test_models_that_cannot_are_refused():
    with pytest.raises(ValueError, match="not a plain vision transformer"):
        apply_reducer(torch.nn.Linear(2, 2), "tome")
    with pytest.raises(ValueError, match="its blocks are of type ParallelScalingBlock"):
        apply_reducer(model_of(block_fn=ParallelScalingBlock), "tome")
    with pytest.raises(ValueError, match="it drops attention weights"):
        apply_reducer(model_of(attn_drop_rate=0.1), "tome")
    with pytest.raises(ValueError, match="has no knob 'rr'"):
        apply_reducer(model_of(), "tome", rr=3)
    assert adaptok.reducers.REDUCERS is REDUCERS
