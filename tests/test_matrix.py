"""Every registered part with every other: runs forward and backward, or refuses at construction.

The names come from the registries, so a new part is covered the day it is registered.
"""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from covering import covering, pairs_of
from sampled import sampled
from torch._subclasses.fake_tensor import FakeTensorMode

import adaptok
from adaptok import (
    DECODERS,
    INDICATORS,
    MARKINGS,
    PROCESSORS,
    TOKENIZERS,
    create_multiphysics,
    create_surrogate,
)

SHAPES = {2: (48, 40), 3: (16, 24, 16)}  # the second axes divide by no size of 16 or more
PAIRS = list(itertools.product(TOKENIZERS.names(), DECODERS.names()))
DIM = 36  # 2 or 3 heads, each wide enough for three axes


def build(**changes) -> adaptok.Surrogate:
    make = {"in_channels": 2, "dim": DIM, "depth": 1, "heads": 2, "normalise": "none"}
    return create_surrogate(**(make | changes))


def build_or_refuse(create=build, **changes):
    """None where the parts do not go together; then the reason is given."""
    try:
        return create(**changes)
    except ValueError as error:
        reason = str(error)
    assert len(reason) > 20, "a refusal says why"
    return None


def in_words(row: dict) -> str:
    return "-".join(map(str, row.values()))


def draw(ndim: int, t: int = 1) -> torch.Tensor:
    return torch.randn(2, t, 2, *SHAPES[ndim]).cumsum(-1)


def check_forward_and_backward(model: adaptok.Surrogate, field: torch.Tensor) -> None:
    out = model(field)
    assert out.shape == (field.shape[0], 1, 2, *field.shape[3:])
    assert torch.isfinite(out).all()
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        learns_alone = name.startswith("tokenizer.indicator")  # or by its own loss
        if parameter.numel() and not learns_alone:
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert torch.isfinite(parameter.grad).all(), name
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert any(g.any() for g in gradients)


PARTS = {
    "tokenizer": TOKENIZERS.names(),
    "decoder": DECODERS.names(),
    "processor": PROCESSORS.names(),
    "history_mode": ["fold", "frames"],
    "ndim": [2, 3],
}


@pytest.mark.parametrize("row", sampled(covering(PARTS), 5), ids=in_words)
def test_every_two_parts(row):
    model = build_or_refuse(**row, history=2)
    if model is None:  # the two that this row is there for may still go together
        row = {key: row[key] for key in ("tokenizer", "decoder", "ndim")}
        model = build_or_refuse(**row, history=2)
    if model is not None:
        check_forward_and_backward(model, draw(row["ndim"], t=2))


def test_rows_cover_every_two_choices():
    """A reference by counting, on factors of several sizes."""
    for factors in (PARTS, {"a": "xyz", "b": "uv", "c": "pq", "d": "rstu"}):
        rows = covering(factors)
        met = set().union(*map(pairs_of, rows))
        for (one, first), (other, second) in itertools.combinations(factors.items(), 2):
            for a, b in itertools.product(first, second):
                assert pairs_of({one: a, other: b}) <= met
        sizes = sorted(map(len, factors.values()))
        assert len(rows) <= 1.5 * sizes[-1] * sizes[-2]


EACH = [(kind, name) for kind in ("tokenizer", "decoder", "processor") for name in PARTS[kind]]


def with_part(kind: str, name: str, **changes) -> adaptok.Surrogate:
    """A surrogate with the part and the first partner that it goes together with."""
    partners = PARTS["tokenizer"] if kind == "decoder" else PARTS["decoder"]
    other = "tokenizer" if kind == "decoder" else "decoder"
    built = (build_or_refuse(ndim=2, **{kind: name, other: p}, **changes) for p in partners)
    return next(model for model in built if model is not None)


@pytest.mark.filterwarnings("ignore:cells of")
@pytest.mark.parametrize(("kind", "name"), EACH, ids=lambda value: value)
def test_a_model_with_any_part(kind, name, tmp_path):
    """A sample's result does not depend on its batch; rollouts; saved and loaded again."""
    model = with_part(kind, name).eval()
    field = draw(2)
    with torch.no_grad():
        out = model(field)
        close = {"atol": 2e-5 * float(out.abs().max()), "rtol": 0.0}
        for sample in (0, 1):
            torch.testing.assert_close(model(field[[sample]]), out[[sample]], **close)
        torch.testing.assert_close(model(field.flip(0)), out.flip(0), **close)
        rolled = model.rollout(field, 2)
        torch.testing.assert_close(rolled[:, :1], out, **close)
        assert torch.isfinite(rolled).all()
        adaptok.save_pretrained(model, tmp_path)
        loaded = adaptok.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(field), out)


def in_turn(pairs: list[tuple[str, str]], ndim: int = 2, **changes) -> list[tuple[str, str]]:
    """Pairs that go together, few of them, in which each first and each second part is met."""
    found: list[tuple[str, str]] = []
    met: set[str] = set()
    for wanted in (2, 1):  # first what meets two new parts at once
        for pair in pairs:
            new = len({*pair} - met) >= wanted
            parts = dict(zip(("tokenizer", "decoder"), pair, strict=True))
            if new and build_or_refuse(ndim=ndim, **parts, **changes) is not None:
                found.append(pair)
                met.update(pair)
    return found


@pytest.mark.parametrize("ndim", sampled([2, 3], 2))
def test_no_part_refuses_everything(ndim):
    """A refusal is for combinations: each part has at least one partner."""
    built = in_turn(PAIRS, ndim=ndim)
    assert {tokenizer for tokenizer, _ in built} == set(TOKENIZERS.names())
    assert {decoder for _, decoder in built} == set(DECODERS.names())
    for processor in PROCESSORS.names():
        modes = ("fold", "frames")
        assert any(build_or_refuse(ndim=ndim, processor=processor, history_mode=m) for m in modes)


SCORED = {
    "indicator": INDICATORS.names(),
    "marking": MARKINGS.names(),
    "ndim": [1, 2, 3],
    "frames": [(False, 1), (False, 2), (True, 2)],  # per frame, and their number
}


@pytest.mark.parametrize("row", sampled(covering(SCORED), 3), ids=in_words)
def test_indicator_and_marking(row):
    parts = {"name": "composed", "indicator": row["indicator"], "marking": row["marking"]}
    tokenizer = adaptok.create_tokenizer(**parts, ndim=row["ndim"], in_channels=2, dim=DIM)
    tokenizer.per_frame, t = row["frames"]
    field = torch.randn(2, t, 2, *{1: (200,), **SHAPES}[row["ndim"]]).cumsum(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few cells in 1D: a default budget may exceed them
        control = {"budget": 512} if "budget" in tokenizer.controls else {}
        tokens = tokenizer(field, **control)
    tokens.cells.validate()
    tokens.features.square().sum().backward()
    gradients = [p.grad for p in tokenizer.embedding.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("history_mode", ["fold", "frames"])
@pytest.mark.parametrize("tokenizer", sampled(TOKENIZERS.names(), 2))
def test_history_constants_and_boundary(tokenizer, history_mode):
    changes = {"history": 3, "history_mode": history_mode, "constant_channels": 1}
    model = build_or_refuse(ndim=2, tokenizer=tokenizer, normalise="sample", **changes)
    if model is None:
        return
    field, constants = draw(2, t=3), torch.randn(2, 1, *SHAPES[2])
    periodic = torch.full((2, 2), 2)
    out = model(field, constants=constants, boundary=periodic)
    assert out.shape == (2, 1, 2, *SHAPES[2])
    rolled = model.rollout(field, 2, constants=constants, boundary=periodic)
    torch.testing.assert_close(rolled[:, :1], out)
    assert torch.isfinite(rolled).all()


@pytest.mark.parametrize("history_mode", ["fold", "frames"])
@pytest.mark.parametrize("tokenizer", sampled(TOKENIZERS.names(), 2))
def test_fields_by_name(tokenizer, history_mode):
    """The indicator sees the fields, the embedding other channels, on every tokenizer."""
    make = {"ndim": 2, "fields": ["a", "b"], "history": 2, "dim": DIM, "depth": 1, "heads": 2}
    make |= {"tokenizer": tokenizer, "history_mode": history_mode, "max_lead": 2}
    model = build_or_refuse(create_multiphysics, **make)
    if model is None:
        return
    out = model.system(["b"])(draw(2, t=2)[:, :, :1], lead_time=2)
    assert out.shape == (2, 1, 1, *SHAPES[2])
    out.square().mean().backward()
    weights = model.heads.weight
    assert weights["b"].grad.any()
    assert not weights["a"].grad.any()


# ---- static shapes: one graph, no synchronisation


def has_static_counts(tokenizer: str) -> bool:
    """A budget, or nothing that depends on the values of the field."""
    made = adaptok.create_tokenizer(tokenizer, ndim=2, in_channels=2, dim=DIM)
    exact = "budget" in made.controls and made.static  # else it is a cap
    return exact or getattr(made, "static", False)


STATIC = [pair for pair in PAIRS if has_static_counts(pair[0])]


FEW = in_turn(STATIC)
# Each processor once, the tokenizers in turn.
IN_3D = list(
    zip(
        itertools.cycle(sorted({tokenizer for tokenizer, _ in STATIC})),
        PROCESSORS.names(),
        strict=False,
    )
)


def step_and_gradients(function, model, field, **control):
    out = function(field, **control)
    parameters = [p for p in model.parameters() if p.numel()]
    return out, torch.autograd.grad(out.square().mean(), parameters)


def check_compiled(pair, ndim: int, backend: str, tolerance: float, **changes) -> None:
    model = build_or_refuse(ndim=ndim, tokenizer=pair[0], decoder=pair[1], **changes)
    if model is None:
        return
    field = draw(ndim)
    expected = step_and_gradients(model, model, field)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    results = step_and_gradients(compiled, model, field)
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(results[0], expected[0], **close)
    for gradient, wanted in zip(results[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, wanted, **close)


@pytest.mark.slow
@pytest.mark.parametrize("pair", FEW, ids="-".join)
def test_every_static_part_compiles_in_one_graph(pair):
    check_compiled(pair, 2, "aot_eager", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("tokenizer", "processor"), IN_3D)
def test_every_processor_compiles_in_3d(tokenizer, processor):
    check_compiled((tokenizer, "linear"), 3, "aot_eager", 1e-4, processor=processor)


@pytest.mark.slow
def test_stepwise_refinement_compiles_too():
    tokenizer = {"name": "iap", "budget": 64, "max_size": 8, "splits_per_step": 4}
    check_compiled((tokenizer, "linear"), 2, "eager", 1e-4)


@pytest.mark.slow
def test_compiled_steps_of_two_budgets_equal_eager():
    model = build(ndim=2, tokenizer={"name": "iap", "max_size": 8, "min_size": 2})
    field = draw(2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for budget in (60, 120):
        out = compiled(field, budget=budget)
        torch.testing.assert_close(out, model(field, budget=budget), atol=1e-4, rtol=1e-4)


IN_MODES = [
    (pair, mode)
    for mode in ("fold", "frames")
    for pair in in_turn(STATIC, history=2, history_mode=mode)
]


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "history_mode"), IN_MODES)
def test_nothing_is_read_back_from_an_accelerator(pair, history_mode):
    """Fake CUDA tensors run the code of the device without kernels: a read of values raises."""
    changes = {"history": 2, "history_mode": history_mode, "normalise": "sample"}
    model = build(ndim=2, tokenizer=pair[0], decoder=pair[1], **changes)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = model.to("cuda")
        field = torch.empty(2, 2, 2, *SHAPES[2], device="cuda")
        out = model(field, boundary=torch.zeros(2, 2, dtype=torch.long, device="cuda"))
        assert out.device.type == "cuda"
        assert out.shape == (2, 1, 2, *SHAPES[2])
