"""Compiled models: one graph where shapes are static, a bounded number where they are not."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import adaptok
from adaptok.models.compiling import compile_model, eager, in_bucket, is_static

SMALL = {"ndim": 2, "in_channels": 1, "dim": 24, "depth": 1, "heads": 2}


def surrogate(**tokenizer) -> torch.nn.Module:
    torch.manual_seed(0)
    return adaptok.create_surrogate(**SMALL, tokenizer={"max_size": 8, **tokenizer})


def ragged_tokens(budgets, seed=0) -> adaptok.TokenSet:
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=24, max_size=8)
    torch.manual_seed(seed)
    return tokenizer(torch.rand(len(budgets), 1, 1, 32, 32), budget=list(budgets))


def test_who_is_static():
    assert is_static(surrogate(name="iap").tokenizer)
    assert is_static(surrogate(name="composed", marking="random").tokenizer)
    make = {"ndim": 2, "in_channels": 1, "dim": 8}
    for name in ("uniform", "ckm", "csm"):
        assert is_static(adaptok.create_tokenizer(name, **make))
    for name in ("apt", "matey"):
        assert not is_static(adaptok.create_tokenizer(name, **make))
    assert not is_static(object())


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("budgets", [(16, 40, 100), (22, 10**3, 16), (64,)])
def test_filler_changes_nothing(budgets, rows):
    tokens = ragged_tokens(budgets)
    torch.manual_seed(1)
    processor = adaptok.create_surrogate(**SMALL | {"depth": 2}).processor
    padded = in_bucket(tokens, rows)
    n = len(tokens.cells)
    assert len(padded.cells) % rows == 0
    assert len(padded.cells) - n < rows
    assert padded.cells.max_seqlen % rows == 0
    padded.cells.validate()
    torch.testing.assert_close(processor(padded).features[:n], processor(tokens).features)


def test_conditioning_gets_a_row_for_the_filler():
    tokens = ragged_tokens((16, 40)).replace(cond=torch.rand(2, 3))
    padded = in_bucket(tokens, 64)
    assert padded.cond.shape == (3, 3)
    assert torch.equal(padded.cond[:2], tokens.cond)


def test_ragged_batches_compile_once_per_bucket():
    model = surrogate(name="iap")
    processor, counter = model.processor, CompileCounter()
    eager = processor.forward
    object.__setattr__(model, "tokenizer", Ragged(model.tokenizer))
    torch_compile = torch.compile
    try:
        torch.compile = lambda f, **options: torch_compile(
            f, backend=counter, fullgraph=options["fullgraph"], dynamic=options["dynamic"]
        )
        compile_model(model)
    finally:
        torch.compile = torch_compile
    buckets = set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        budgets = (16 + 3 * torch.randint(0, 70, (4,), generator=generator)).tolist()
        tokens = ragged_tokens(budgets, seed)
        padded = in_bucket(tokens).cells
        buckets.add((len(padded), padded.max_seqlen))
        with torch.no_grad():
            torch.testing.assert_close(
                processor(tokens).features, eager(tokens).features, atol=1e-5, rtol=1e-5
            )
    assert len(buckets) > 1
    assert counter.frame_count == len(buckets)


class Ragged:
    """A tokenizer that does not promise a number of tokens."""

    def __init__(self, tokenizer):
        self.inner = tokenizer


@pytest.mark.slow
def test_a_compiled_training_step_equals_the_eager_one():
    torch.manual_seed(0)
    make = {**SMALL, "decoder": "local", "tokenizer": {"name": "iap", "max_size": 8, "budget": 40}}
    model = adaptok.create_surrogate(**make)
    field = torch.rand(2, 1, 1, 32, 32)
    eager = model(field)
    eager.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    names = set(model.state_dict())
    compile_model(model)
    assert set(model.state_dict()) == names
    model.zero_grad()
    out = model(field)
    out.square().sum().backward()
    torch.testing.assert_close(out, eager, atol=1e-4, rtol=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(name, marks=[] if name == "vit" else [pytest.mark.slow])
        for name in adaptok.PROCESSORS.names()
    ],
)
def test_filler_fits_the_groups_of_a_compiled_processor(processor):
    """Inside a graph the lengths of groups are not known: their bound must hold for filler too."""
    make = {"ndim": 2, "in_channels": 1, "dim": 24}
    tokenizer = adaptok.create_tokenizer("matey", **make, sizes=(2, 8), gamma=0.3)
    tokens = tokenizer(torch.randn(2, 2, 1, 16, 16).cumsum(-1))
    n = len(tokens.cells)
    padded = in_bucket(tokens, 512)
    assert len(padded.cells) - n > 200
    for fixed in ((0,), (0, 1), (1, 2)):
        groups = padded.cells.groups(fixed=fixed)
        assert max(groups.lengths) <= padded.cells._most(fixed, (1, 8), (0, 0), False)
    model = adaptok.create_processor(processor, tokenizer.spec, depth=1, heads=2)
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(padded).features[:n], model(tokens).features, rtol=1e-4, atol=1e-4
    )


class Budgeted(torch.nn.Module):
    def forward(self, x: torch.Tensor, *, budget: int) -> torch.Tensor:
        return x * budget


def sweep(model, monkeypatch, call, settings) -> int:
    """Graphs of a compiled model after a call with each of the settings, twice."""
    counter, torch_compile = CompileCounter(), torch.compile
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch_compile, backend=counter))
        compile_model(model)
    for setting in [*settings, *settings]:
        with eager(model):
            expected = call(setting)
        torch.testing.assert_close(call(setting), expected)
    return counter.frame_count


def test_a_process_may_sweep_over_more_settings_than_torchs_limit(monkeypatch):
    x = torch.ones(3)
    for model in (Budgeted(), Budgeted()):  # of which each has its own graphs
        count = sweep(model, monkeypatch, lambda n, m=model: m(x, budget=n), range(2, 22))
        assert count == 20


@pytest.mark.slow
def test_a_compiled_surrogate_has_a_graph_per_budget(monkeypatch):
    model, field = surrogate(name="iap").eval(), torch.rand(1, 1, 1, 16, 16)
    with torch.no_grad():
        count = sweep(model, monkeypatch, lambda n: model(field, budget=n), range(10, 43, 12))
    assert count == 3


@pytest.fixture
def uncompiled(monkeypatch):
    """Graphs that are run as Python: fast, and as strict about what they are given."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **o: compile_(f, backend="eager", fullgraph=o["fullgraph"])
    )


def ragged(**changes) -> adaptok.Surrogate:
    apt = {"name": "apt", "thresholds": [2.0, 2.0], "min_size": 2, "max_size": 8}
    sizes = {"ndim": 2, "in_channels": 2, "dim": 24, "depth": 1, "heads": 2}
    model = adaptok.create_surrogate(**sizes | {"tokenizer": apt} | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_copies_of_a_compiled_model_are_their_own(uncompiled):
    model, x = ragged(), torch.randn(2, 1, 2, 20, 24)
    compile_model(model)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), expected)
        other(x).sum().backward()
        assert all(p.grad is None for p in model.parameters())
        assert any(p.grad is not None for p in other.processor.parameters())
        for parameter in other.processor.parameters():
            parameter.data.zero_()
        assert not torch.allclose(other(x), expected)


def test_a_compiled_ragged_model_takes_what_the_eager_one_takes(uncompiled):
    model, fields = ragged(), [torch.randn(1, 2, 20, 24), torch.randn(1, 2, 16, 32)]
    x = torch.randn(2, 1, 2, 20, 24)
    with torch.no_grad():
        listed, kept = model(fields), model.rollout(x, 3, reuse=0.1)
        compile_model(model)
        for one, other in zip(model(fields), listed, strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(model.rollout(x, 3, reuse=0.1), kept)
    tokens = ragged_tokens([16, 22]).replace(payload={"weight": torch.rand(38)})
    assert torch.equal(in_bucket(tokens).payload["weight"][:38], tokens.payload["weight"])
