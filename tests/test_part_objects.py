"""Parts as classes, factories and modules: built, refused by name, saved and loaded."""

from __future__ import annotations

import functools
import json
import sys

import pytest
import torch
from torch import nn

import adaptok
from adaptok.models.multiphysics import create_multiphysics
from adaptok.models.pretrained import CONFIG, build
from adaptok.registry import INDICATORS, MARKINGS, PROCESSORS
from adaptok.tokenizers.marking import Marks
from adaptok.tree import sum_pyramid

SIZES = {"ndim": 2, "in_channels": 2, "dim": 24, "depth": 1, "heads": 2}


class Energy:
    """Mean square; says nothing of `monotone`."""

    def __init__(self, *, power=1.0):
        self.power, self.config = power, {"power": power}

    def __call__(self, field, tree, *, boundary=None):
        return sum_pyramid(field.square().mean((1, 2))[:, None] ** self.power, tree)[:, 0]


class Mixer(nn.Module):
    def __init__(self, spec, *, depth=1, hidden=8):
        super().__init__()
        self.spec, self.hidden = spec, hidden
        self.mlp = nn.ModuleList(nn.Linear(spec.dim, spec.dim) for _ in range(depth))

    def forward(self, tokens):
        x = tokens.features
        for layer in self.mlp:
            x = x + layer(x)
        return tokens.replace(features=x)


class Windows(adaptok.CellTokenizer):
    """Windows of 8, side by side; takes no ndim."""

    controls = ()

    def __init__(self, in_channels, dim, *, stride=8):
        sizes = ((1, 8, 8),)
        spec = adaptok.TokenizerSpec(2, in_channels, dim, sizes, tiling=False)
        super().__init__(spec, adaptok.EMBEDDINGS.create("boxes", in_channels, dim, sizes))
        self.stride, self.config = stride, {"stride": stride}

    def cells(self, field, *, boundary=None, **control):
        b, t, _, h, w = field.shape
        rows, columns = (range(0, n - 7, self.stride) for n in (h, w))
        corners = [[0, y, x] for y in rows for x in columns]
        lengths, size = [len(corners)] * b, [[1, 8, 8]] * (len(corners) * b)
        known = {"shape": (t, h, w), "sizes": self.spec.sizes, "tiling": False}
        return adaptok.cells_from_boxes(corners * b, size, lengths, **known)


def composed(indicator):
    return {"name": "composed", "indicator": indicator, "marking": {"name": "budget", "budget": 40}}


SPEC = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=24).spec
FIELD = torch.randn(2, 1, 2, 16, 16, generator=torch.Generator().manual_seed(1))

# What is given, and what has to be given again to load it.
SAVED = [
    ({"processor": Mixer}, {"processor": Mixer}),
    ({"processor": {"name": Mixer, "hidden": 4}}, {"processor": Mixer}),
    ({"processor": functools.partial(Mixer, hidden=4)}, {"processor": Mixer}),
    ({"tokenizer": Windows, "decoder": "boxes"}, {"tokenizer": Windows}),
    ({"tokenizer": Windows(2, 24, stride=4), "decoder": "boxes"}, {"tokenizer": Windows}),
    ({"tokenizer": composed(Energy)}, {"tokenizer.indicator": Energy}),
    ({"tokenizer": composed({"name": Energy, "power": 2.0})}, {"tokenizer.indicator": Energy}),
    ({"tokenizer": composed(Energy(power=2.0))}, {"tokenizer.indicator": Energy}),
]


@pytest.mark.parametrize(("own", "parts"), SAVED)
def test_a_model_of_own_parts_comes_back_if_their_classes_are_given(own, parts, tmp_path):
    model = adaptok.create_surrogate(**SIZES, **own).eval()
    adaptok.save_pretrained(model, tmp_path)
    (place,) = parts
    with pytest.raises(ValueError, match=rf'its {place} is .*never imported.*parts={{"{place}": '):
        adaptok.from_pretrained(tmp_path)
    again = adaptok.from_pretrained(tmp_path, parts=parts)
    assert torch.equal(again(FIELD), model(FIELD))
    assert again.config == json.loads(json.dumps(model.config))
    with pytest.raises(ValueError, match="no class to be given for decoder"):
        adaptok.from_pretrained(tmp_path, parts={**parts, "decoder": nn.Identity})


def test_a_part_that_was_built_by_name_needs_no_class(tmp_path):
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=24, budget=40)
    processor = adaptok.create_processor("vit", tokenizer.spec, depth=1, heads=2)
    decoder = adaptok.create_decoder("auto", tokenizer.spec, 2)
    model = adaptok.Surrogate(tokenizer, processor, decoder).eval()
    assert model.tokenizer is tokenizer
    assert (model.ndim, model.in_channels, model.out_channels) == (2, 2, 2)
    adaptok.save_pretrained(model, tmp_path)
    assert torch.equal(adaptok.from_pretrained(tmp_path)(FIELD), model(FIELD))


def test_a_registered_name_serves_in_place_of_a_class(tmp_path):
    model = adaptok.create_surrogate(**SIZES, processor=Mixer).eval()
    adaptok.save_pretrained(model, tmp_path)
    PROCESSORS.register("mixer")(Mixer)
    again = adaptok.from_pretrained(tmp_path, parts={"processor": "mixer"})
    assert torch.equal(again(FIELD, budget=40), model(FIELD, budget=40))


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (lambda spec: Mixer(spec), "<lambda>: nobody else can name it: define it"),
        (functools.partial(Mixer, SPEC), "arguments without a name: give them by keyword"),
        (Mixer(SPEC), r'Mixer: nothing says with which arguments.*"name": Mixer'),
    ],
)
def test_parts_that_nobody_can_build_again_are_refused_when_saved(processor, reason, tmp_path):
    own = {"processor": processor}
    model = adaptok.create_surrogate(**SIZES, **own)
    assert model(FIELD, budget=40).shape == FIELD.shape
    with pytest.raises(ValueError, match=f"cannot be built again from a file. .*{reason}"):
        adaptok.save_pretrained(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    again = build(model.config, "m", {"processor": Mixer})  # who knows the class can give it
    again.load_state_dict(model.state_dict())


def test_a_file_imports_and_calls_nothing(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    adaptok.save_pretrained(adaptok.create_surrogate(**SIZES, processor=Mixer), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    for bad in ({"class": "evil_module.run"}, {"_target_": "evil_module.run"}, "evil_module.run"):
        for place in ("processor", "tokenizer", "decoder"):
            (tmp_path / CONFIG).write_text(json.dumps(config | {place: bad}))
            with pytest.raises(ValueError, match=r"never imported|a name or a mapping|unknown"):
                adaptok.from_pretrained(
                    tmp_path, parts={} if place == "processor" else {"processor": Mixer}
                )
    assert "evil_module" not in sys.modules


def test_tokenizers_and_models_of_many_systems_too(tmp_path):
    tokenizer = adaptok.create_tokenizer(Windows, ndim=2, in_channels=2, dim=24, stride=4)
    adaptok.save_pretrained(tokenizer, tmp_path / "t")
    again = adaptok.from_pretrained(tmp_path / "t", parts={"tokenizer": Windows})
    assert torch.equal(again(FIELD).features, tokenizer(FIELD).features)
    sizes = {"dim": 24, "depth": 1, "heads": 2, "width": 2}
    model = create_multiphysics(ndim=2, fields=["u", "p"], processor=Mixer, **sizes).eval()
    system = model.system(["u", "p"])
    adaptok.save_pretrained(system, tmp_path / "s")
    again = adaptok.from_pretrained(tmp_path / "s", parts={"processor": Mixer})
    field = torch.randn(1, 1, 2, 32, 32)
    assert torch.equal(again(field), system(field))


def test_a_surrogate_has_the_defaults_of_create_surrogate():
    one = adaptok.Surrogate(ndim=1, in_channels=2, dim=24, depth=1, heads=2)
    two = adaptok.create_surrogate(ndim=1, in_channels=2, dim=24, depth=1, heads=2)
    assert one.options == two.options
    assert one.state_dict().keys() == two.state_dict().keys()
    for name in ("tokenizer", "processor", "decoder"):
        assert type(getattr(one, name)) is type(getattr(two, name))
    iap = adaptok.create_tokenizer("iap", ndim=1, in_channels=7, dim=24)
    folded = adaptok.Surrogate(iap, Mixer, history=3, constant_channels=1)
    assert (folded.in_channels, folded.options.token_channels) == (2, 7)


def test_the_decoder_that_suits_a_tokenizer():
    made = {"ndim": 2, "in_channels": 2, "dim": 24}
    for name, wanted in (("ckm", "ModulatedDecoder"), ("iap", "LinearDecoder")):
        spec = adaptok.create_tokenizer(name, **made).spec
        assert type(adaptok.create_decoder("auto", spec, 2)).__name__ == wanted
        assert type(adaptok.create_decoder({"name": "auto"}, spec, 2)).__name__ == wanted


# ---- what is refused


def test_what_a_part_lacks_is_named():
    with pytest.raises(ValueError, match="Energy is no processor: it lacks parameters"):
        adaptok.create_processor(Energy(), SPEC)
    with pytest.raises(ValueError, match="Identity is no tokenizer: it lacks spec, controls"):
        adaptok.create_surrogate(**SIZES, tokenizer=nn.Identity())
    with pytest.raises(ValueError, match="Energy is no marking: it lacks controls"):
        adaptok.create_tokenizer("composed", ndim=2, in_channels=2, dim=24, marking=Energy)
    with pytest.raises(ValueError, match="object is no indicator: it lacks __call__"):
        INDICATORS.build(lambda: object())
    with pytest.raises(ValueError, match=r"'<lambda>' is called.*tokens.*filled in: spec"):
        adaptok.create_processor(lambda tokens: tokens, SPEC)
    with pytest.raises(ValueError, match=r"processor 'Mixer' has no knob 'hiden'.*'hidden'"):
        adaptok.create_processor(Mixer, SPEC, hiden=3)
    with pytest.raises(ValueError, match="ready and takes no knobs"):
        adaptok.create_processor(Mixer(SPEC), SPEC, hidden=3)
    with pytest.raises(ValueError, match=r"Windows is for 3 channel\(s\) in 2 .* gets 2 in 2"):
        adaptok.create_surrogate(**SIZES, tokenizer=Windows(3, 24))


@pytest.mark.parametrize("name", ["vit", "axial", "spacetime"])
def test_a_processor_called_directly_names_what_it_does_not_know(name):
    with pytest.raises(ValueError, match=r"no knob 'recipe' \(it is called 'norm_placement' now\)"):
        PROCESSORS.get(name)(SPEC, recipe="matey")


class Wrong(Energy):
    def __init__(self, change, monotone=False):
        super().__init__()
        self.change, self.monotone = change, monotone

    def __call__(self, field, tree, *, boundary=None):
        return self.change(super().__call__(field, tree))


class Marked:
    controls = ()

    def __init__(self, change):
        self.change = change

    def __call__(self, scores, tree, *, monotone=False, shared=1):
        assert monotone is False  # the indicator says nothing
        return self.change(MARKINGS.create("budget", budget=40)(scores, tree))


def into_nan(scores):
    return scores.masked_fill(torch.arange(scores.shape[1]) == 3, torch.nan)


@pytest.mark.parametrize(
    ("indicator", "marking", "said"),
    [
        (Wrong(into_nan), "budget", "indicator Wrong gives the score nan for node 3"),
        (
            Wrong(lambda s: s[:, 1:]),
            "budget",
            r"Wrong gives scores \(2, 84\), .*\(2, 85\)",
        ),
        (Wrong(lambda s: None), "budget", "indicator Wrong gives scores NoneType"),
        (
            Wrong(lambda s: -s, True),
            {"name": "budget", "budget": 40},
            "`monotone = True` is not so",
        ),
        (
            Energy(),
            Marked(lambda m: Marks(m.split.float(), None)),
            "Marked gives .*float32",
        ),
        (Energy(), Marked(lambda m: Marks(m.split[..., 1:], None)), r"Marked .*bool \(2, 1, 85\)"),
        (Energy(), Marked(lambda m: Marks(m.split, (40, 39))), "Marked tells 79 leaves, .* 80"),
    ],
)
def test_eager_calls_name_the_part_that_gave_a_wrong_value(indicator, marking, said):
    knobs = {"indicator": indicator, "marking": marking, "min_size": 1}
    tokenizer = adaptok.create_tokenizer("composed", ndim=2, in_channels=2, dim=24, **knobs)
    with pytest.raises(ValueError, match=said):
        tokenizer(FIELD)
    good = adaptok.create_tokenizer(composed(Energy()), ndim=2, in_channels=2, dim=24)
    assert len(good(FIELD)) == 80


def test_a_wrapped_vit_with_an_own_indicator_is_saved_and_loaded(tmp_path):
    timm = pytest.importorskip("timm")
    vision = pytest.importorskip("adaptok.vision")
    torch.manual_seed(0)
    fast = vision.apply_apt(
        timm.create_model("test_vit", num_classes=3).eval(),
        (900.0,),
        indicator={"name": Energy, "power": 0.5},
    )
    images = torch.randn(2, 3, 160, 160).cumsum(-1)
    adaptok.save_pretrained(fast, tmp_path)
    with pytest.raises(ValueError, match=r"its indicator is .*Energy, which is never imported"):
        adaptok.from_pretrained(tmp_path)
    again = adaptok.from_pretrained(tmp_path, parts={"indicator": Energy})
    assert again.options["indicator"]["power"] == 0.5
    torch.testing.assert_close(again(images), fast(images))


# ---- parts that return or ignore what they should not


class Bare(nn.Module):
    """Forgets the cells."""

    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.dim, spec.dim)

    def forward(self, tokens):
        return self.layer(tokens.features)


class Unpainted(nn.Module):
    def __init__(self, spec, out_channels):
        super().__init__()

    def forward(self, tokens):
        return tokens


@pytest.mark.parametrize("lookahead", [None, 0.5])
def test_a_processor_that_returns_no_tokens_is_named(lookahead):
    x = torch.randn(2, 1, 2, 16, 16)
    small = {"ndim": 2, "in_channels": 2, "dim": 24, "lookahead": lookahead}
    model = adaptok.create_surrogate(**small, processor=Bare)
    with pytest.raises(ValueError, match=r"processor Bare must return a TokenSet, .*got a torch"):
        model(x)
    if lookahead is None:
        with pytest.raises(ValueError, match="processor Bare must return a TokenSet"):
            model(list(x))


def test_a_decoder_that_returns_no_field_is_named():
    model = adaptok.create_surrogate(**SIZES, decoder=Unpainted)
    with pytest.raises(ValueError, match="decoder Unpainted must return a field"):
        model(torch.randn(2, 1, 2, 16, 16))


def test_sizes_that_no_part_reads_are_named(recwarn):
    small = {"ndim": 2, "in_channels": 2, "dim": 24}
    adaptok.create_surrogate(**small, processor=Bare)
    adaptok.create_surrogate(**small, depth=3, processor=Mixer, heads=6)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="depth=3 changes nothing") as said:
        adaptok.create_surrogate(**small, depth=3, heads=5, processor=Bare)
    assert [str(one.message).partition(" ")[0] for one in said] == ["depth=3", "heads=5"]


def test_sizes_go_to_parameters_without_a_default():
    class Deep(nn.Module):
        def __init__(self, spec, depth):
            super().__init__()
            self.depth = depth

        def forward(self, tokens):
            return tokens

    model = adaptok.create_surrogate(ndim=2, in_channels=2, dim=24, depth=3, processor=Deep)
    assert model.processor.depth == 3
