"""One model for many systems: fields by name, mixed batches, lead times, new fields."""

from __future__ import annotations

import pytest
import torch

import adaptok
from adaptok import PROCESSORS, create_multiphysics, from_pretrained, save_pretrained
from adaptok.layers.blocks import conditioned
from adaptok.models.fields import FieldEmbedding, FieldHeads
from adaptok.tokens import TokenSet

TOKENIZERS = [
    {"name": "matey", "sizes": (2, 8)},
    {"name": "matey", "sizes": (2, 8), "mode": "add"},
    {"name": "iap", "budget": 40, "max_size": 8},
    {"name": "uniform", "size": 4},
]


def build(**changes) -> adaptok.Multiphysics:
    make = {
        "ndim": 2,
        "fields": ["a", "b", "c"],
        "constants": ["k"],
        "history": 2,
        "history_mode": "frames",
        "tokenizer": TOKENIZERS[0],
        "dim": 24,
        "depth": 1,
        "heads": 2,
        "width": 5,
    }
    model = create_multiphysics(**(make | changes)).eval()
    for weight in model.heads.parameters():
        torch.nn.init.normal_(weight)  # fresh ones are zero
    return model


def draw(channels: int, *, batch: int | None = None, side: int = 16) -> torch.Tensor:
    lead = () if batch is None else (batch,)
    return torch.randn(*lead, 2, channels, side, side).cumsum(-1)


# ---- maps from and to fields


def test_the_embedding_by_hand():
    embedding = FieldEmbedding(["a", "b", "c"], 4)
    torch.nn.init.normal_(embedding.bias)
    x = torch.randn(2, 3, 2, 5, 6)
    out = embedding(x, torch.tensor([[2, 0]]))
    w = embedding.weight
    value = w["c"] * x[1, 2, 0, 4, 3] + w["a"] * x[1, 2, 1, 4, 3] + embedding.bias
    torch.testing.assert_close(out[1, 2, :, 4, 3], value / 2**0.5)


def test_its_spread_does_not_depend_on_the_number_of_fields():
    embedding = FieldEmbedding([f"u{i}" for i in range(64)], 400)
    x = torch.randn(1, 1, 64, 50)
    for count in (1, 8, 64):
        out = embedding(x[:, :, :count], torch.arange(count)[None])
        assert 0.85 < out.std() < 1.15


def test_the_heads_by_hand():
    heads = FieldHeads(["a", "b"], 4)
    assert not any(weight.any() for weight in heads.parameters())
    for weight in heads.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(2, 1, 4, 3, 3)
    out = heads(x, torch.tensor([[1, -1], [0, 1]]))
    b = heads.weight["b"]
    torch.testing.assert_close(out[0, 0, 0, 2, 1], x[0, 0, :, 2, 1] @ b[:-1] + b[-1])
    torch.testing.assert_close(out[1, 0, 1, 2, 1], x[1, 0, :, 2, 1] @ b[:-1] + b[-1])
    assert not out[0, 0, 1].any()


def test_names_that_make_no_sense():
    with pytest.raises(ValueError, match=r"a word without dots, got 'a\.b'"):
        FieldEmbedding(["a.b"], 4)
    with pytest.raises(ValueError, match="'a' is known already"):
        FieldEmbedding(["a", "a"], 4)
    embedding = FieldEmbedding(["pressure", "density"], 4)
    known = r"unknown field 'presure' \(did you mean 'pressure'\?\); known: pressure, density"
    with pytest.raises(ValueError, match=known):
        embedding.numbers(["presure"])
    with pytest.raises(ValueError, match="may come once"):
        embedding.numbers(["density", "density"])


# ---- batches of different fields


@pytest.mark.parametrize("score_on", ["raw", "normalised"])
@pytest.mark.parametrize("history_mode", ["fold", "frames"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=str)
def test_a_mixed_batch_equals_its_samples(tokenizer, history_mode, score_on):
    model = build(tokenizer=tokenizer, history_mode=history_mode, score_on=score_on, max_lead=4)
    samples = [draw(3), draw(1) * 5, draw(2)]
    fields = [["c", "a", "k"], ["b"], ["a", "b"]]
    leads = torch.tensor([1, 4, 2])
    together = model.predict_mixed(samples, fields, lead_time=leads)
    assert [out.shape[1] for out in together] == [2, 1, 2]
    for i, out in enumerate(together):
        (alone,) = model.predict_mixed(
            samples[i : i + 1], fields[i : i + 1], lead_time=int(leads[i])
        )
        torch.testing.assert_close(out, alone, rtol=1e-4, atol=1e-5)


def test_what_stands_in_channels_that_a_sample_lacks_does_not_matter():
    model = build(tokenizer=TOKENIZERS[-1])
    x, inputs = draw(2, batch=1), torch.tensor([[1, -1]])
    other = x.clone()
    other[:, :, 1] = 100
    assert torch.equal(model(x, inputs, inputs), model(other, inputs, inputs))


def test_the_order_of_the_fields_does_not_matter():
    model = build()
    x = draw(3)
    (first,) = model.predict_mixed([x], [["a", "b", "k"]])
    (second,) = model.predict_mixed([x[:, [2, 1, 0]]], [["k", "b", "a"]])
    torch.testing.assert_close(first, second[:, [1, 0]], rtol=1e-4, atol=1e-5)


def test_one_frame_of_history_is_the_default():
    model = adaptok.create_multiphysics(
        ndim=1, fields=["a"], dim=8, depth=1, heads=1, tokenizer="iap"
    )
    assert model.system(["a"])(torch.randn(2, 1, 1, 32)).shape == (2, 1, 1, 32)


def test_mixed_batches_that_make_no_sense():
    model = build()
    with pytest.raises(ValueError, match=r"share history and grid.*one batch per resolution"):
        model.predict_mixed([draw(1), draw(1, side=32)], [["a"], ["b"]])
    with pytest.raises(ValueError, match="1 channels are named a, b"):
        model.predict_mixed([draw(1)], [["a", "b"]])
    with pytest.raises(ValueError, match="unknown field 'd'; known: a, b, c, k"):
        model.predict_mixed([draw(1)], [["d"]])


# ---- one set of fields, in physical units


@pytest.mark.parametrize("predict", ["delta", "state"])
@pytest.mark.parametrize("history_mode", ["fold", "frames"])
def test_a_system_is_the_model_between_normalisations(history_mode, predict):
    model = build(history_mode=history_mode, predict=predict)
    system = model.system(["b", "a"], ["k"])
    std = torch.tensor([2.0, 3.0])
    system.set_statistics(torch.zeros(2), std, std * torch.tensor([0.5, 0.1]))
    field, constants = draw(2, batch=2) * 3 + 7, torch.randn(2, 1, 16, 16)
    mean = field.mean((1, 3, 4), keepdim=True)
    spread = field.std((1, 3, 4), correction=0, keepdim=True)
    still = (constants - constants.mean((2, 3), keepdim=True)) / constants.std(
        (2, 3), correction=0, keepdim=True
    )
    x = torch.cat([(field - mean) / spread, still[:, None].expand(-1, 2, -1, -1, -1)], 2)
    out = torch.stack(model.predict_mixed(list(x), [["b", "a", "k"]] * 2))[:, -1:]
    if predict == "delta":
        scale = torch.tensor([0.5, 0.1]).view(2, 1, 1)
        expected = field[:, -1:] + spread * scale * out
    else:
        expected = mean + spread * out
    torch.testing.assert_close(system(field, constants=constants), expected, rtol=1e-3, atol=1e-3)
    cells = system.cells(field, constants=constants)
    assert len(cells) == len(model.cells(x))


def test_a_system_of_unknown_fields_says_what_is_new_and_what_is_missing():
    with pytest.raises(ValueError, match=r"not predict or read: d, k; it knows a, b, c, k, of"):
        build().system(["a", "d", "k"])
    with pytest.raises(ValueError, match="of which b, c, k are missing here"):
        build().system(["a", "d"])
    assert build().compare_fields(["a", "d"], ["k", "l"]) == (["d", "l"], ["b", "c"])


def test_rollouts_and_saved_systems(tmp_path):
    system = build(max_lead=3).system(["b", "a"], ["k"])
    system.set_statistics(torch.zeros(2), torch.full((2,), 2.0), torch.full((2,), 0.1))
    field, constants = draw(2, batch=2), torch.randn(2, 1, 16, 16)
    out = system.rollout(field, 3, constants=constants)
    assert out.shape == (2, 3, 2, 16, 16)
    again = from_pretrained(save_pretrained(system, tmp_path / "system"))
    assert torch.equal(again.rollout(field, 3, constants=constants), out)
    assert "matey" in (tmp_path / "system" / "README.md").read_text()
    whole = from_pretrained(save_pretrained(system.core, tmp_path / "model"))
    assert whole.fields == ("a", "b", "c")
    assert whole.constants == ("k",)
    samples, fields = [draw(1)], [["c"]]
    assert torch.equal(
        whole.predict_mixed(samples, fields)[0], system.core.predict_mixed(samples, fields)[0]
    )


# ---- new fields, and what is trained


def test_new_fields_do_not_touch_old_weights(tmp_path):
    model = build()
    sample = draw(3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (out,) = model.predict_mixed([sample], [["a", "c", "k"]])
    model.add_fields(["a", "d"], ["k", "l"])
    assert model.fields == ("a", "b", "c", "d")
    assert model.constants == ("k", "l")
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(model.predict_mixed([sample], [["a", "c", "k"]])[0], out)
    system, field = model.system(["d", "a"], ["l"]), draw(2, batch=1)
    frame = system(field, constants=torch.randn(1, 1, 16, 16))
    assert torch.equal(frame[:, :, 0], field[:, -1:, 0])  # a new field starts from no change
    assert not torch.equal(frame[:, :, 1], field[:, -1:, 1])
    again = from_pretrained(save_pretrained(model, tmp_path))
    assert {*again.state_dict()} == {*after}


@pytest.mark.parametrize("mode", ["all", "prepost"])
def test_what_a_mode_trains(mode):
    model = build()
    model.train_only(mode, ["a", "b"], ["k"])
    system = model.system(["a", "b"], ["k"])
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
    field, constants = draw(2, batch=2), torch.randn(2, 1, 16, 16)
    system(field, constants=constants).square().mean().backward()
    optimizer.step()
    moved = {k for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    maps = {f"embedding.weight.{n}" for n in "abk"} | {"embedding.bias"}
    maps |= {f"heads.weight.{n}" for n in "ab"}
    if mode == "prepost":
        assert moved == maps
    else:
        assert moved > maps
        assert not moved & {"embedding.weight.c", "heads.weight.c"}
        assert any(name.startswith("processor.") for name in moved)


def test_modes_that_do_not_exist():
    with pytest.raises(ValueError, match="mode must be one of all, prepost, got 'pre'"):
        build().train_only("pre", ["a"])


# ---- lead times


@pytest.mark.parametrize("processor", PROCESSORS.names())
def test_every_processor_knows_the_lead_time(processor):
    model = build(processor=processor, max_lead=4)
    sample, fields = [draw(2)], [["a", "b"]]
    (default,) = model.predict_mixed(sample, fields)
    (one,) = model.predict_mixed(sample, fields, lead_time=1)
    (four,) = model.predict_mixed(sample, fields, lead_time=torch.tensor([4]))
    assert torch.equal(default, one)
    assert not torch.allclose(one, four)


@pytest.mark.parametrize("lead", [0, 5])
def test_lead_times_out_of_range(lead):
    with pytest.raises(ValueError, match=rf"the lead time must be 1 to 4 steps, got {lead} to"):
        build(max_lead=4).predict_mixed([draw(1)], [["a"]], lead_time=lead)
    with pytest.raises(ValueError, match=r"built for a lead time of 1 step .* got"):
        build().predict_mixed([draw(1)], [["a"]], lead_time=lead)


def test_conditioning_is_added_to_the_tokens_of_its_sample():
    tokenizer = adaptok.create_tokenizer("matey", ndim=2, in_channels=1, dim=6, sizes=(2, 8))
    tokens = tokenizer(torch.randn(3, 1, 16, 16).cumsum(-1))
    assert conditioned(tokens) is tokens.features
    cond = torch.randn(3, 6)
    out = TokenSet(conditioned(tokens.replace(cond=cond)), tokens.cells).split()
    for got, plain, own in zip(out, tokens.split(), cond, strict=True):
        torch.testing.assert_close(got, plain + own)
    with pytest.raises(ValueError, match="the conditioning is 5 wide, the tokens are 6"):
        conditioned(tokens.replace(cond=torch.randn(3, 5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": []}, "fields must be a list"),
        ({"width": 0}, "width must be a whole number of at least 1"),
        ({"max_lead": 0}, "max_lead must be a whole number of at least 1"),
        ({"predict": "change"}, "predict must be one of"),
        ({"history_mode": "fold", "processor": "axial"}, "'axial' attends over frames"),
        ({"tokenizer": "matei"}, "did you mean 'matey'"),
    ],
)
def test_models_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize("lead", [2.5, "2", True, torch.tensor([1, 3, 2]), torch.tensor([1.0])])
@pytest.mark.parametrize("most", [1, 4])
def test_lead_times_that_are_none(lead, most):
    with pytest.raises(ValueError, match=r"lead_time (must be|is) a whole number"):
        build(max_lead=most).predict_mixed([draw(1)], [["a"]], lead_time=lead)


def test_samples_without_names():
    with pytest.raises(ValueError, match=r"1 lists of names for 2 sample\(s\)"):
        build().predict_mixed([draw(1), draw(1)], [["a"]])
