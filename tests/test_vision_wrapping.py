"""timm models on cells that are saved, traced, hooked, wrapped, compiled or replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from small_vits import EVA, NORM, SMALL, images, shaken, small_vit
from timm.models.vision_transformer import VisionTransformer

import adaptok
from adaptok.vision import apply_apt

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_wrapped_model_is_saved_and_built_again(name, tmp_path):
    model = timm.create_model(name, pretrained=False, num_classes=5, img_size=112)
    fast = adaptok.vision.apply_apt(model, thresholds=(3.0,), resize="area").eval()
    torch.nn.init.normal_(next(p for n, p in fast.named_parameters() if "cell_embed" in n))
    adaptok.save_pretrained(fast, tmp_path / "model")
    again = adaptok.from_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 112, 112)
    assert type(again) is type(fast)
    assert torch.equal(again(images), fast(images))


@pytest.mark.parametrize("trace", ["fake", "export"])
def test_constants_of_a_trace_do_not_outlive_it(trace):
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Restored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            mean = 0.25 if trace == "fake" else 0.375  # no other test has these constants
            self.tiling = apply_apt(small_vit(), mean=[mean] * 3, std=[0.5] * 3).tiling

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tiling.restore(x)

    module, x = Restored(), torch.zeros(1, 3, 64, 64)
    if trace == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            module(mode.from_tensor(x))
    else:
        program = torch.export.export(module, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), module(x))
    assert module(x).unique().item() == round(255 * module.tiling.stats[0][0])


READ = [  # what the model itself shows
    {"drop_path_rate": 0.2},
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"img_size": (96, 128), "in_chans": 3, "num_classes": 7},
    {"global_pool": "avg"},
]

TOLD = [  # what has to be said
    {"num_heads": 4},
    {"act_layer": "quick_gelu"},
    {"global_pool": "avg", "pool_include_prefix": True},
    {"norm_layer": "rmsnorm"},
    {"depth": 2},
    {"patch_size": 32},
    {"reg_tokens": 4},
]

CASES = [
    pytest.param(o, r, marks=[] if (o, r) == (TOLD[0], True) else [pytest.mark.slow])
    for o in (*READ, *TOLD)
    for r in (False, True)
]


@pytest.mark.parametrize(("options", "reduced"), CASES, ids=str)
def test_arguments_of_create_model_are_saved_or_asked_for(options, reduced, tmp_path):
    """What is built again is the same model, or nothing is written."""

    def adapted(**more):
        if reduced:
            return adaptok.vision.apply_reducer(model, "tome", r=2, **more).eval()
        return apply_apt(model, (5.5,), **more).eval()

    model = shaken(timm.create_model("test_vit", **options))
    if options in TOLD:
        with pytest.raises(ValueError, match=r"timm builds another model .* model_args="):
            adaptok.save_pretrained(adapted(), tmp_path / "model")
        assert not (tmp_path / "model").exists()
        fast = adapted(model_args=options)
    else:
        fast = adapted()
    adaptok.save_pretrained(fast, tmp_path / "model")
    again = adaptok.from_pretrained(tmp_path / "model")
    x = images(2, 3, *model.patch_embed.img_size)
    assert torch.equal(again(x), fast(x))
    drops = [getattr(m.blocks[-1].drop_path1, "drop_prob", 0.0) for m in (fast, again)]
    assert drops[0] == pytest.approx(drops[1])
    assert again.dynamic_img_size == fast.dynamic_img_size
    adaptok.save_pretrained(again, tmp_path / "twice")  # what is loaded knows its arguments
    assert (tmp_path / "twice/config.json").read_text() == (
        tmp_path / "model/config.json"
    ).read_text()


@pytest.mark.parametrize("how", ["pruned", "wrapped", "pooled"])
def test_what_was_changed_afterwards_is_not_saved_as_if_it_were_not(how, tmp_path):
    fast = apply_apt(timm.create_model("test_vit"), (5.5,))
    if how == "pruned":
        fast.prune_intermediate_layers([0])
    elif how == "wrapped":
        fast.blocks[0].mlp.fc1 = torch.nn.Sequential(fast.blocks[0].mlp.fc1)
    else:
        fast.blocks[1].norm1.eps = 1e-3
    with pytest.raises(ValueError, match=r"timm builds another model .*blocks\.[01]"):
        adaptok.save_pretrained(fast, tmp_path)


def test_arguments_that_choose_files_are_refused():
    from adaptok.vision.apply import build_vision

    with pytest.raises(ValueError, match="leave out checkpoint_path"):
        apply_apt(timm.create_model("test_vit"), (5.5,), model_args={"checkpoint_path": "a.pth"})
    with pytest.raises(ValueError, match="leave out pretrained_cfg"):
        build_vision("test_vit", {"pretrained_cfg": {"file": "a.pth"}}, {"thresholds": [5.5]})


HOOKED = ("patch_embed", "patch_embed.proj", "blocks.1", "blocks.1.attn", "blocks.1.attn.qkv")

HOOKED = (*HOOKED, "blocks.1.mlp", "norm")


@pytest.mark.parametrize("merging", [False, True])
def test_hooks_fire_and_change_what_they_return(merging):
    model, x = small_vit(), images(1, 3, 64, 64)
    fast = apply_apt(model, (6.0, 6.0) if merging else (-1.0, -1.0), **NORM).eval()
    before = fast(x)
    for name in HOOKED:
        fired = []
        module = fast.get_submodule(name)
        hook = module.register_forward_hook(lambda m, i, out, fired=fired: fired.append(out.shape))
        assert torch.allclose(fast(x), before, rtol=1e-4, atol=1e-5), name
        assert fired, name
        hook.remove()
        hook = module.register_forward_hook(lambda m, i, out: out * 0)
        assert not torch.allclose(fast(x), before), name
        hook.remove()
    reference = copy.deepcopy(model)
    reference.blocks[0].register_forward_hook(lambda m, i, out: out * 2)
    fast = apply_apt(reference, (-1.0,), **NORM).eval()  # hooks of the given model come along
    torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)


class Around(torch.nn.Module):
    """An adapter: what is inside, and a bit of it once more."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x, **more):
        return 1.5 * self.inside(x, **more)


WRAPPED = ["blocks.1", "blocks.1.attn", "blocks.1.attn.qkv", "blocks.0.mlp", "patch_embed.proj"]


@pytest.mark.parametrize("kind", ["ViT", "Eva"])
@pytest.mark.parametrize("name", WRAPPED)
def test_modules_around_modules_act_as_in_timm(name, kind):
    """Put around before (where the convolution or attention stays in sight) or afterwards."""
    from timm.models.eva import Eva

    options = {**SMALL, **EVA, "num_classes": 5, "scale_mlp": True}
    model, x = small_vit() if kind == "ViT" else shaken(Eva(**options)), images(2, 3, 64, 64)
    plain = copy.deepcopy(model)
    parent, _, last = name.rpartition(".")

    def put_around(one) -> None:
        setattr(one.get_submodule(parent), last, Around(one.get_submodule(name)))

    put_around(model)
    fast = apply_apt(plain, (-1.0, -1.0), **NORM).eval()
    put_around(fast)
    made = [fast]
    if name != "blocks.1":
        made.append(apply_apt(model, (-1.0, -1.0), **NORM).eval())
    for one in made:
        if kind == "Eva" and name.endswith("qkv"):  # timm's Eva reads its weight
            return
        torch.testing.assert_close(one(x), model(x), rtol=1e-4, atol=1e-5)
    if name in ("blocks.1.attn", "blocks.0.mlp"):
        reduced = adaptok.vision.apply_reducer(plain, "tome", r=0).eval()
        put_around(reduced)
        torch.testing.assert_close(reduced(x), model(x), rtol=1e-4, atol=1e-5)


def test_checkpointed_blocks_run():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    fast, x = apply_apt(small_vit(drop_path_rate=0.5), (6.0, 6.0), **NORM), images(2, 3, 64, 64)
    grads = []
    for wrap in (False, True):
        one = copy.deepcopy(fast).train()
        for i in range(2 * wrap):
            one.blocks[i] = checkpoint_wrapper(one.blocks[i])
        torch.manual_seed(0)
        one(x).square().sum().backward()
        grads.append([p.grad for p in one.parameters() if p.grad is not None])
    torch.testing.assert_close(*grads)


@pytest.mark.slow
def test_compiled_blocks_run_and_compiled_models_say_what_to_give():
    model, x = small_vit(), images(2, 3, 64, 64)
    fast, graphs = apply_apt(model, (6.0, 6.0), **NORM).eval(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    expected = fast(x)
    for block in fast.blocks:
        block.compile(backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), expected)
    assert graphs
    with pytest.raises(ValueError, match="it is compiled"):
        apply_apt(torch.compile(model), **NORM)


def test_a_replaced_forward_is_refused_and_a_lost_packing_said():
    model, x = small_vit(), images(1, 3, 64, 64)
    fast = apply_apt(model, (6.0,), **NORM)
    old = model.blocks[0].forward
    model.blocks[0].forward = lambda x: old(x) * 1.5
    for adapt in (
        lambda: apply_apt(model, **NORM),
        lambda: adaptok.vision.apply_reducer(model, "tome", r=1),
    ):
        with pytest.raises(ValueError, match=r"the forward pass of its blocks\.0 was replaced"):
            adapt()
    fast.blocks[0] = torch.nn.Sequential(fast.blocks[0])
    with pytest.raises((ValueError, TypeError), match="attn_mask"):
        fast(x)


class _Own(VisionTransformer): ...


def test_modules_that_hide_a_model_say_what_to_give():
    from timm.models._features import FeatureGetterNet

    model = small_vit()
    hiding = {
        "it is adapted already": apply_apt(model, **NORM),
        r"give its \.module": torch.nn.DataParallel(model),
        r"give its \.model": FeatureGetterNet(small_vit(), [0]),
        "subclass": _Own(**SMALL),
        "not a plain": torch.nn.Linear(2, 2),
    }
    hiding["adapted"] = adaptok.vision.apply_reducer(model, "tome", r=1)
    for reason, hidden in hiding.items():
        with pytest.raises(ValueError, match=reason):
            apply_apt(hidden, **NORM)
        with pytest.raises(ValueError, match=reason):
            adaptok.vision.apply_reducer(hidden, "tome", r=1)
