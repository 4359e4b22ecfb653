"""Hostile values for every knob and argument: a right result, or an error that names the argument.

How the places were found: every knob of every registry by its signature, every argument of the
functions in ``adaptok.__all__`` and of the calls of tokenizers, models, processors and decoders.
The values are those that Python, NumPy and torch users pass by mistake, see `hostile.VALUES`.
"""

from __future__ import annotations

import zlib

import hostile
import pytest
import torch
from hostile import VALUES, Case, outcome, wrong_result

import adaptok
from adaptok.cli.listing import REGISTRIES
from adaptok.data.synthetic.solver import SOLVERS
from adaptok.tokens import TokenSet
from adaptok.utils.arguments import accepts

NAN = float("nan")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(hostile.all_cases())


def report(cases: list[Case], every: int) -> list[str]:
    """What went wrong with each value of each case, or with one of `every` by a hash."""
    wrong = []
    with hostile.little_memory():
        for case in cases:
            for name, make in VALUES.items():
                key = f"{case.where} {case.argument} {name}"
                if zlib.crc32(key.encode()) % every == 0 and (said := outcome(case, make())):
                    wrong.append(f"{key}: {said}")
    return wrong


def test_a_sample_of_hostile_calls(cases):
    assert report(cases, every=40) == []


@pytest.mark.slow
def test_a_third_of_all_hostile_calls(cases):
    """`experiments/reliability/run.py arguments` makes every one."""
    assert len(cases) * len(VALUES) > 20_000
    assert report(cases, every=3) == []


@pytest.mark.parametrize("registry", [*REGISTRIES, SOLVERS], ids=lambda registry: registry.kind)
def test_every_knob_says_what_it_accepts(registry):
    for name in registry.names():
        hints = registry.hints(name)
        for knob, default in registry.knobs(name).items():
            assert knob in hints, f"{registry.kind} {name}: {knob} has no annotation"
            assert accepts(hints[knob], default), f"{registry.kind} {name}: {knob}={default!r}"
            assert not accepts(hints[knob], object()), f"{registry.kind} {name}: {knob}"
            assert not accepts(hints[knob], NAN), f"{registry.kind} {name}: {knob}"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda value: value, "ValueError: wrong"),
        (lambda value: torch.tensor([1.0, NAN]), "silently not finite"),
        (lambda value: [][1], "IndexError"),
    ],
)
def test_what_is_wrong_is_found(call, says):
    def run(value):
        if says.startswith("ValueError"):
            raise ValueError("wrong")
        return call(value)

    said = outcome(Case("a call", "argument", run), None)
    assert said is not None
    assert says.removeprefix("ValueError: ") in said


def test_cells_that_are_none_are_found():
    tokens = adaptok.create_tokenizer("uniform", ndim=2, in_channels=2, dim=4)(hostile.field())
    assert wrong_result(tokens) is None
    cells = tokens.cells.replace(origin=tokens.cells.origin + 1)
    assert "silently invalid" in str(wrong_result(TokenSet(tokens.features, cells)))


@pytest.mark.parametrize("knobs", [{"rope_base": 0}, {"rope_base": -1.0}, {"rope_base": NAN}])
def test_senseless_knobs_of_processors(knobs):
    with pytest.raises(ValueError, match="rope_base must be a number above 0"):
        _vit(**knobs)


@pytest.mark.parametrize(
    "knobs",
    [
        {"layer_scale": NAN},
        {"layer_scale": float("inf")},
        {"drop_path": -1},
        {"qk_norm": "no"},
        {"depth": 10**30},
        {"mlp_ratio": 10**30},
        {"heads": True},
    ],
)
def test_other_senseless_knobs_of_processors(knobs):
    with pytest.raises(ValueError, match=f"{next(iter(knobs))} must be"):
        _vit(**knobs)


def _vit(**knobs):
    spec = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=16).spec
    return adaptok.create_processor("vit", spec, **{"depth": 1, "heads": 2} | knobs)


def test_a_budget_holds_with_one_level_too():
    one = {"min_size": 4, "max_size": 4, "thresholds": ()}
    make = {"ndim": 2, "in_channels": 2, "dim": 16, **one}
    with pytest.raises(ValueError, match="budget 3 is below the 16 cells"):
        adaptok.create_tokenizer("apt", **make, budget=3).cells(hostile.field())
    assert len(adaptok.create_tokenizer("apt", **make, budget=16).cells(hostile.field())) == 32


@pytest.mark.parametrize("name", ["iap", "apt", "matey", "ckm", "csm", "uniform", "composed"])
@pytest.mark.parametrize(
    "codes", [torch.full((2, 2), 9), torch.full((2, 2), NAN), torch.ones(2, 2) > 0, "abc"]
)
def test_boundary_codes_that_are_none(name, codes):
    knobs = {"max_size": 8} if name == "iap" else {}
    tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=16, **knobs)
    x = torch.rand(2, 1, 2, 32, 32)
    for call in (tokenizer, tokenizer.cells):
        with pytest.raises(ValueError, match="boundary"):
            call(x, boundary=codes)


def test_fields_and_cells_of_others():
    iap = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=16, max_size=8)
    ckm = adaptok.create_tokenizer("ckm", ndim=2, in_channels=2, dim=16)
    x = hostile.field()
    with pytest.raises(ValueError, match=r"the field is torch.float64, the weights"):
        iap(x.double())
    with pytest.raises(ValueError, match=r"cells of sizes .* these have"):
        iap.embed(x, ckm.cells(x))
    with pytest.raises(ValueError, match="another tokenizer"):
        ckm.embed(x, iap.cells(x))
    assert iap.double()(x.double()).features.dtype == torch.float64
