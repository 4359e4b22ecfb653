"""CKM, CSM, their block and their rollouts against arrays computed by the authors' code."""

from __future__ import annotations

import pytest
import torch

import adaptok
from adaptok import create_decoder, create_processor, create_surrogate, create_tokenizer
from adaptok.layers.boundary import boundary_codes
from adaptok.layers.two_stage import pad_and_mark
from adaptok.training import SurrogateModule
from adaptok.training.optim import Optim


def tensors(arrays: dict) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def close(out: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def theirs(x: torch.Tensor, ndim: int = 2) -> torch.Tensor:
    """Their (t, b, c, h, w, d) as our (b, t, c, *space)."""
    for _ in range(3 - ndim):
        x = x.squeeze(-1)
    return x.transpose(0, 1)


def packed(tokens: torch.Tensor) -> torch.Tensor:
    """Their tokens (t, b, d, h, w, 1) as our rows."""
    return theirs(tokens).movedim(2, -1).flatten(0, -2)


def load_stem(stem, arrays: dict, prefix: str = "enc.", lift=None) -> None:
    """Their stem takes a lifted field; here the lift is the identity unless (weight, bias) are
    given.
    """
    names = {
        "conv1.weight": "proj1.weight",
        "norm1.weight": "norm1.weight",
        "norm1.bias": "norm1.bias",
        "conv2.weight": "proj2.weight",
        "norm2.weight": "norm2.weight",
        "norm2.bias": "norm2.bias",
    }
    state = {ours: arrays[prefix + name] for ours, name in names.items()}
    hidden = state["conv1.weight"].shape[0]
    state["lift.weight"], state["lift.bias"] = lift or (torch.eye(hidden), torch.zeros(hidden))
    tokens = arrays.get("pad.padding_tokens", arrays.get("w.patch_jitterer.padding_tokens"))
    state["padding"] = torch.zeros(2, hidden) if tokens is None else tokens.flatten(1)
    stem.load_state_dict(state)


def load_decoder(decoder, arrays: dict, labels: torch.Tensor, prefix: str = "dec.") -> None:
    state = {
        "conv1.weight": arrays[prefix + "proj1.weight"],
        "norm1.weight": arrays[prefix + "norm1.weight"],
        "norm1.bias": arrays[prefix + "norm1.bias"],
        "conv2.weight": arrays[prefix + "proj2.weight"][:, labels],
        "conv2.bias": arrays[prefix + "proj2.bias"][labels],
    }
    decoder.load_state_dict(state)


def load_processor(processor, arrays: dict, prefix: str = "w.blocks.{}.") -> None:
    names = {
        "time.{}.norm.weight": "time_mixing.norm1.weight",
        "time.{}.norm.bias": "time_mixing.norm1.bias",
        "time.{}.qkv.weight": "time_mixing.input_head.weight",
        "time.{}.qkv.bias": "time_mixing.input_head.bias",
        "time.{}.norm_q.weight": "time_mixing.qnorm.weight",
        "time.{}.norm_q.bias": "time_mixing.qnorm.bias",
        "time.{}.norm_k.weight": "time_mixing.knorm.weight",
        "time.{}.norm_k.bias": "time_mixing.knorm.bias",
        "time.{}.bias.table.weight": "time_mixing.rel_pos_bias.relative_attention_bias.weight",
        "time.{}.out.weight": "time_mixing.output_head.weight",
        "time.{}.out.bias": "time_mixing.output_head.bias",
        "time.{}.scale": "time_mixing.gamma",
        "space.{}.norm.weight": "space_mixing.norm1.weight",
        "space.{}.norm.bias": "space_mixing.norm1.bias",
        "space.{}.mlp_qkv.weight": "space_mixing.fused_ff_qkv.weight",
        "space.{}.mlp_qkv.bias": "space_mixing.fused_ff_qkv.bias",
        "space.{}.norm_q.weight": "space_mixing.q_norm.weight",
        "space.{}.norm_q.bias": "space_mixing.q_norm.bias",
        "space.{}.norm_k.weight": "space_mixing.k_norm.weight",
        "space.{}.norm_k.bias": "space_mixing.k_norm.bias",
        "space.{}.out.weight": "space_mixing.attn_out.weight",
        "space.{}.down.weight": "space_mixing.ff_out.1.weight",
        "space.{}.down.bias": "space_mixing.ff_out.1.bias",
        "space.{}.scale": "space_mixing.gamma_att",
    }
    state = {}
    for i in range(len(processor.time)):
        for ours, name in names.items():
            array = arrays[prefix.format(i) + name]
            state[ours.format(i)] = array.flatten(1) if "_head.weight" in name else array
    processor.load_state_dict(state)


ENCDEC = {"ndim": 2, "in_channels": 4, "dim": 16, "groups": 2}
SIZES = {"p4": 4, "p8": 8, "p16": 16, "p4x16": (4, 16)}


@pytest.mark.parametrize("variant", ["p4", "p8", "p16", "p4x16"])
def test_ckm_stem_and_decoder(golden, variant):
    arrays = tensors(golden("ckm_encdec_2d"))
    tokenizer = create_tokenizer("ckm", **ENCDEC)
    load_stem(tokenizer.embedding, arrays)
    decoder = create_decoder("modulated", tokenizer.spec, 3, resize="pinv", groups=2)
    load_decoder(decoder, arrays, arrays["state_labels"])
    tokens = tokenizer(theirs(arrays["x"]), patch_size=SIZES[variant])
    close(tokens.features, packed(arrays[f"{variant}.tokens"]))
    kernels = arrays[f"{variant}.random_kernel"].T
    assert kernels.tolist() == list(map(list, zip(*tokens.cells.layout.kernels, strict=True)))
    for weight, resize, size, name in (
        (tokenizer.embedding.conv1.weight, tokenizer.embedding.resize1, kernels[0], "enc.w1"),
        (tokenizer.embedding.conv2.weight, tokenizer.embedding.resize2, kernels[1], "enc.w2"),
        (decoder.conv1.weight, decoder.resize1, kernels[1], "dec.w1"),
    ):
        close(resize(weight, tuple(size.tolist())), arrays[f"{variant}.{name}"])
    close(decoder(tokens), theirs(arrays[f"{variant}.out"]))


def csm(arrays: dict, **knobs):
    tokenizer = create_tokenizer("csm", **ENCDEC, **knobs)
    load_stem(tokenizer.embedding, arrays)
    decoder = create_decoder("modulated", tokenizer.spec, 3, groups=2)
    load_decoder(decoder, arrays, arrays["state_labels"])
    return tokenizer, decoder


@pytest.mark.parametrize("boundary", ["periodic", "wallopen", "mixed"])
@pytest.mark.parametrize("patch", [4, 8, 16])
def test_csm_stem_and_decoder(golden, patch, boundary):
    arrays = tensors(golden("csm_encdec_2d"))
    tokenizer, decoder = csm(arrays, whole_field_tokens=True)
    key = f"p{patch}.{boundary}"
    codes = arrays[f"{key}.bcs"]
    tokens = tokenizer(theirs(arrays["x"]), patch_size=patch, boundary=codes)
    close(tokens.features, packed(arrays[f"{key}.tokens"]))
    close(decoder(tokens), theirs(arrays[f"{key}.out"]))
    pads = [v for pair in reversed(tokens.cells.layout.padding) for v in pair]
    assert arrays[f"{key}.paddings"].tolist() == [0, 0, *pads]


@pytest.mark.parametrize("boundary", ["periodic", "wallopen", "mixed"])
def test_csm_padding(golden, boundary):
    arrays = tensors(golden("csm_encdec_2d"))
    tokenizer, _ = csm(arrays)
    x = theirs(arrays["x"])
    layout = tokenizer.cells(x, patch_size=4).layout
    codes = boundary_codes(arrays[f"p4.{boundary}.bcs"], 2, 2, x.device)
    marked = pad_and_mark(x, layout.padding, codes)
    stem = tokenizer.embedding
    lift = torch.cat([stem.lift.weight, stem.lift.bias[:, None], stem.padding.mT], 1)
    lifted = torch.einsum("oc,btchw->btohw", lift, marked)
    close(lifted, theirs(arrays[f"p4.{boundary}.x_padded"]))


@pytest.mark.parametrize("boundary", ["wallopen", "mixed"])
@pytest.mark.parametrize("patch", [8, 16])
def test_where_nothing_is_padded_the_boundary_has_no_effect(golden, patch, boundary):
    """The authors add a token to the whole field there; their periodic arrays are without it."""
    arrays = tensors(golden("csm_encdec_2d"))
    tokenizer, decoder = csm(arrays)
    codes = arrays[f"p{patch}.{boundary}.bcs"]
    tokens = tokenizer(theirs(arrays["x"]), patch_size=patch, boundary=codes)
    close(tokens.features, packed(arrays[f"p{patch}.periodic.tokens"]))
    close(decoder(tokens), theirs(arrays[f"p{patch}.periodic.out"]))
    assert not torch.allclose(tokens.features, packed(arrays[f"p{patch}.{boundary}.tokens"]))


@pytest.mark.parametrize("patch", [4, 16])
def test_fixed_patches_are_csm_of_one_patch_size(golden, patch):
    arrays = tensors(golden("ckm_hmlp_2d"))
    renamed = dict(arrays)
    for ours, name in (("proj1", "0.0"), ("norm1", "0.1"), ("proj2", "1.0"), ("norm2", "1.1")):
        for kind in ("weight", "bias"):
            source = f"p{patch}.enc.spatial_projs.{name}.{kind}"
            if source in arrays:
                renamed[f"enc.{ours}.{kind}"] = arrays[source]
    for ours, name in (("proj1", "out_proj.0.0"), ("norm1", "out_proj.0.1")):
        for kind in ("weight", "bias"):
            if (source := f"p{patch}.dec.{name}.{kind}") in arrays:
                renamed[f"dec.{ours}.{kind}"] = arrays[source]
    renamed["dec.proj2.weight"] = arrays[f"p{patch}.dec.out_kernel"]
    renamed["dec.proj2.bias"] = arrays[f"p{patch}.dec.out_bias"]
    tokenizer, decoder = csm(renamed, patch_sizes=[patch])
    tokens = tokenizer(theirs(arrays["x"]))
    close(tokens.features, packed(arrays[f"p{patch}.tokens"]))
    close(decoder(tokens), theirs(arrays[f"p{patch}.out"]))


@pytest.mark.parametrize("shape", ["2d", "3d"])
def test_space_time_block(golden, shape):
    arrays = tensors(golden("ckm_block_full_causal"))
    ndim = int(shape[0])
    x = theirs(arrays[f"{shape}.x"], ndim)  # (b, t, d, *grid)
    tokenizer = create_tokenizer("ckm", ndim=ndim, in_channels=1, dim=32)
    b, t, _, *grid = x.shape
    cells = tokenizer.cells(torch.zeros(b, t, 1, *(4 * n for n in grid)), patch_size=4)
    block = create_processor(
        "spacetime_parallel", tokenizer.spec, depth=1, heads=2, causal=True, rope="endpoint"
    )
    load_processor(block, arrays, "w.")
    rows = x.movedim(2, -1).flatten(0, -2)
    after_time = block.time[0](rows, block.context(cells))
    expected = theirs(arrays[f"{shape}.after_time"], ndim).movedim(2, -1).flatten(0, -2)
    close(after_time, expected)
    out = block(adaptok.TokenSet(rows, cells)).features
    close(out, theirs(arrays[f"{shape}.out"], ndim).movedim(2, -1).flatten(0, -2))


def whole_model(arrays: dict, **changes):
    """Their model; the lift of all known fields becomes the lift of the fields at hand."""
    labels = arrays["state_labels"][0]
    parts = {
        "tokenizer": {"name": "ckm", "groups": 4},
        "processor": {"name": "spacetime_parallel", "causal": True, "rope": "endpoint"},
        "decoder": {"name": "modulated", "groups": 4, "resize": "pinv"},
    }
    make = {"ndim": 2, "in_channels": 4, "dim": 32, "depth": 2, "heads": 2, "history": 6}
    model = create_surrogate(**make, history_mode="frames", **parts, **changes)
    weight, bias = arrays["w.space_bag.linear.weight"], arrays["w.space_bag.linear.bias"]
    scale = (weight.shape[1] / len(labels)) ** 0.5  # theirs for 4 fields of 6
    lift = (weight[:, labels] * scale, bias * scale)
    load_stem(model.tokenizer.embedding, arrays, "w.embed.", lift)
    load_decoder(model.decoder, arrays, labels, "w.debed.")
    load_processor(model.processor, arrays)
    return model.eval()


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_whole_model(golden, patch):
    arrays = tensors(golden("ckm_model_full_2d"))
    model = whole_model(arrays, normalise="none", predict="state")
    tokens = model.tokenizer(arrays["x"].transpose(0, 1), patch_size=patch)
    out = model.decoder(model.processor(tokens))  # all six frames
    close(out, arrays[f"periodic.p{patch}.out"].transpose(0, 1))


CYCLE = [{"patch_size": 4}, {"patch_size": 8}, {"patch_size": 16}]


@pytest.mark.parametrize(
    ("key", "predict"),
    [
        ("fixed.delta", "delta"),
        ("alternating.delta", "delta"),
        ("alternating.full", "state"),
        ("random.delta", "delta"),
    ],
)
def test_rollouts(golden, key, predict):
    arrays = tensors(golden("ckm_model_full_2d")) | tensors(golden("ckm_rollout_2d"))
    model = whole_model(arrays, normalise="context_absolute", predict=predict)
    settings = {"name": "cyclic", "settings": CYCLE}
    if key.startswith("fixed"):
        settings = {"name": "fixed", "settings": CYCLE[1:2]}
    if key.startswith("random"):
        drawn = [CYCLE[i] for i in arrays["random_index"].tolist()]
        settings = {"name": "cyclic", "settings": drawn}
    field = arrays["input_fields"].movedim(-1, 2)  # (b, t, c, h, w)
    out = model.rollout(field, 4, settings=adaptok.create_schedule(settings))
    close(out, arrays[f"{key}.y_pred"].movedim(-1, 2))


@pytest.mark.parametrize(("key", "predict"), [("delta", "delta"), ("full", "state")])
def test_the_training_loss(golden, key, predict):
    """Mean squared error of all six outputs against their normalised targets."""
    arrays = tensors(golden("ckm_model_full_2d")) | tensors(golden("ckm_rollout_2d"))
    truth = tensors(golden("ckm_train_2d"))
    model = whole_model(arrays, normalise="context_absolute", predict=predict)
    optim = Optim(loss_frames="all", loss_unit="prediction")
    settings = {"name": "fixed", "settings": [CYCLE[int(truth["kernel_index"])]]}
    module = SurrogateModule(model, optim, adaptok.create_schedule(settings))
    batch = {
        "input": arrays["input_fields"].movedim(-1, 2),
        "target": truth["output_field"].movedim(-1, 2),
        "boundary": torch.full((1, 2, 2), 2),
    }
    torch.testing.assert_close(module.loss(batch, 0), truth[f"{key}.loss"], rtol=1e-4, atol=0)
