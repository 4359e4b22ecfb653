"""Packed back ends on a CUDA device: against the loop, ragged, cross, causal, with empty groups.

Tolerance as in flash-attn: the error of the kernel to float32 is at most twice the error of plain
half-precision attention.
"""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

import adaptok
from adaptok import attend, attention_backend
from adaptok.cells import Groups
from adaptok.layers.attention import Request, choose, usable

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_and_fresh(monkeypatch) -> None:
    """Convolutions in float32, which torch rounds to fewer digits by default; each test compiles
    anew, since dynamo gives up after eight variants of one function.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()


def make_groups(lengths, *, shuffled: bool = False, known: bool = True) -> Groups:
    n = sum(lengths)
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device="cuda")
    order = torch.randperm(n, device="cuda") if shuffled else None
    inverse = None if order is None else order.argsort()
    return Groups(order, inverse, ends, max(lengths), tuple(lengths) if known else None)


def draw(n: int, width: int) -> torch.Tensor:
    return torch.randn(n, 6, width, device="cuda")


def results(backend: str, inputs, *groups, dtype, **options) -> list[torch.Tensor]:
    """Output and gradients, in float32."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    with attention_backend(backend):
        out = attend(*leaves, *groups, **options)
    weight = torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out).to(dtype)
    gradients = torch.autograd.grad((out * weight).sum(), leaves)
    return [x.float() for x in (out, *gradients)]


CASES = {
    "ragged": ((100, 37, 1, 260), None, {}),
    "causal": ((100, 37, 1, 260), None, {"causal": True}),
    "cross": ((64, 3, 128), (17, 200, 5), {}),
    "empty groups": ((64, 0, 30), (17, 9, 0), {}),
    "scale": ((20, 50), None, {"scale": 0.3}),
}
FEW = [(case, torch.bfloat16, 64, True) for case in CASES]  # flex compiles for seconds each
FEW += [("ragged", torch.float16, 72, False)]


@pytest.mark.parametrize("backend", ["varlen", "flash_attn", "efficient", "padded"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 72])
@pytest.mark.parametrize("known", [True, False])
def test_as_good_as_plain_half_precision(backend, case, dtype, width, known):
    check_half_precision(backend, case, dtype, width, known)


@pytest.mark.parametrize(("case", "dtype", "width", "known"), FEW)
def test_flex_is_as_good_as_plain_half_precision(case, dtype, width, known):
    check_half_precision("flex", case, dtype, width, known)


def check_half_precision(backend, case, dtype, width, known):
    if reason := usable()[backend]:
        pytest.skip(reason)
    own, other, options = CASES[case]
    groups = [make_groups(own, shuffled=True, known=known)]
    if other is not None:
        groups.append(make_groups(other, known=known))
    keys = sum(other or own)
    inputs = [draw(sum(own), width), draw(keys, width), draw(keys, width)]
    inputs = [x.to(dtype).float() for x in inputs]  # the same numbers for all
    exact = results("loop", inputs, *groups, dtype=torch.float32, **options)
    plain = results("loop", inputs, *groups, dtype=dtype, **options)
    fast = results(backend, inputs, *groups, dtype=dtype, **options)
    for reference, low, high in zip(exact, plain, fast, strict=True):
        assert torch.isfinite(high).all()
        allowed = 2 * (low - reference).abs().max() + 1e-3
        assert (high - reference).abs().max() <= allowed


@pytest.mark.parametrize(
    ("backend", "case"),
    [*itertools.product(["efficient", "padded"], CASES), ("flex", "ragged"), ("flex", "cross")],
)
def test_single_precision(backend, case):
    own, other, options = CASES[case]
    groups = [make_groups(own, shuffled=True)]
    if other is not None:
        groups.append(make_groups(other))
    keys = sum(other or own)
    inputs = [draw(sum(own), 64), draw(keys, 64), draw(keys, 64)]
    exact = results("loop", inputs, *groups, dtype=torch.float32, **options)
    fast = results(backend, inputs, *groups, dtype=torch.float32, **options)
    for reference, other_result in zip(exact, fast, strict=True):
        torch.testing.assert_close(other_result, reference, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("backend", ["padded", "flex"])
def test_biases_on_ragged_groups(backend):
    groups = make_groups((100, 37, 1, 260), shuffled=True)
    bias = torch.randn(6, 260, 260, device="cuda")
    inputs = [draw(398, 64) for _ in range(3)]
    exact = results("loop", inputs, groups, dtype=torch.float32, bias=bias)
    fast = results(backend, inputs, groups, dtype=torch.float32, bias=bias)
    for reference, other in zip(exact, fast, strict=True):
        torch.testing.assert_close(other, reference, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("backend", ["varlen", "flash_attn", "efficient", "padded", "flex"])
@pytest.mark.parametrize("known", [True, False])
def test_a_bias_per_key_and_grouped_queries(backend, known):
    if reason := usable()[backend]:
        pytest.skip(reason)
    groups = make_groups((100, 37, 1, 260), shuffled=True, known=known)
    key_bias = torch.linspace(-2, 5, 398, device="cuda")
    inputs = [draw(398, 64), draw(398, 64)[:, :3], draw(398, 64)[:, :3]]
    inputs = [x.bfloat16().float() for x in inputs]
    exact = results("loop", inputs, groups, dtype=torch.float32, key_bias=key_bias)
    plain = results("loop", inputs, groups, dtype=torch.bfloat16, key_bias=key_bias)
    fast = results(backend, inputs, groups, dtype=torch.bfloat16, key_bias=key_bias)
    for reference, low, high in zip(exact, plain, fast, strict=True):
        allowed = 2 * (low - reference).abs().max() + 1e-3
        assert (high - reference).abs().max() <= allowed


def test_the_choice_on_a_device():
    ragged, even = make_groups((5, 9)), make_groups((7, 7))
    half = draw(14, 64).to(torch.bfloat16)
    chosen = [
        choose(Request.of(q, groups, groups))
        for q, groups in ((half, ragged), (half, even), (half.float(), ragged))
    ]
    assert chosen[0] in ("varlen", "flash_attn")
    assert chosen[1:] == ["dense", "efficient"]


@pytest.mark.parametrize("decoder", ["linear", "cross_attention"])
def test_a_surrogate_on_the_device_equals_the_cpu(decoder):
    model = adaptok.create_surrogate(
        ndim=2,
        in_channels=2,
        tokenizer={"name": "iap", "min_size": 2, "max_size": 8, "budget": 100},
        decoder=decoder,
        dim=48,
        depth=2,
        heads=2,
    )
    field = torch.randn(3, 1, 2, 32, 32)
    cpu, cells = model(field), model.cells(field)
    model.cuda()
    there = model.cells(field.cuda())
    assert torch.equal(there.cu_seqlens.cpu(), cells.cu_seqlens)
    x = model.prepare(field)
    torch.testing.assert_close(model.prepare(field.cuda()).cpu(), x, atol=1e-5, rtol=1e-5)
    # The same cells on both sides: the score map itself may differ in its last digits.
    tokens = model.tokenizer.embed(x.cuda(), cells.to("cuda"))
    out = model.decoder(model.processor(tokens)).cpu()
    std = field.std(dim=(1, 3, 4), correction=0, keepdim=True)
    torch.testing.assert_close(field + std * out, cpu, atol=1e-3, rtol=1e-3)


def test_partitions_of_one_score_map_are_the_same_on_both_devices():
    score = torch.randint(0, 50, (4, 64, 96)).float()  # whole numbers: exact sums
    for options in ({"budget": 400}, {"budget": [100, 400, 999, 24]}, {"splits_per_step": 4}):
        options = {"min_size": 2, "max_size": 16, "budget": 300} | options
        here = adaptok.cells_from_score(score, **options)
        there = adaptok.cells_from_score(score.cuda(), **options)
        for name in ("origin", "size", "level", "cu_seqlens"):
            assert torch.equal(getattr(there, name).cpu(), getattr(here, name))


def test_a_fixed_budget_never_synchronises():
    model = adaptok.create_surrogate(
        ndim=2, in_channels=1, tokenizer={"name": "iap", "budget": 100}, dim=48, depth=1, heads=2
    ).cuda()
    field = torch.randn(2, 1, 1, 64, 64, device="cuda")
    model(field)  # tables are built and uploaded once
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(field).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
