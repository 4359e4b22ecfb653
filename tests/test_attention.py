"""attend: every back end against softmax written out in float64."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import softmax_attention
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from adaptok import attend, attention_backend
from adaptok.cells import Groups
from adaptok.layers.attention import (
    BACKENDS,
    Options,
    Request,
    choose,
    dispatch,
    flex,
    packed,
    usable,
)
from adaptok.layers.attention.backend import check_tail, fold_key_bias, zero_where_no_keys


def make_groups(lengths, generator: torch.Generator | None = None, *, known=True) -> Groups:
    """Groups of these lengths; with a generator their rows lie scattered."""
    n = sum(lengths)
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    order = inverse = None
    if generator is not None:
        order = torch.randperm(n, generator=generator)
        inverse = order.argsort()
    longest = max(lengths, default=0)
    return Groups(order, inverse, ends, longest, tuple(lengths) if known else None)


def rows_of(groups: Groups) -> list[list[int]]:
    ends = groups.cu_seqlens.tolist()
    order = list(range(ends[-1])) if groups.order is None else groups.order.tolist()
    return [order[start:end] for start, end in itertools.pairwise(ends)]


def draw(n: int, heads: int = 2, width: int = 4, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, heads, width, dtype=dtype)


@pytest.mark.parametrize("backend", ["loop", "padded", "math"])
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "full", "one head"]),
    st.sampled_from([None, 0.3]),
    st.integers(0, 10**6),
)
def test_ragged_groups_equal_softmax_written_out(
    backend, lengths, cross, causal, biased, scale, seed
):
    check_ragged(backend, lengths, cross, causal, biased, scale, seed)


@pytest.mark.parametrize(
    ("cross", "causal", "biased"),
    [(False, False, None), (False, True, "full"), (True, False, "one head"), (True, False, None)],
)
def test_flex_compiles_its_masks_and_equals_softmax(cross, causal, biased):
    """Its eager form is traced, too."""
    lengths = [(3, 1), (0, 4), (200, 130), (5, 0), (1, 60)]
    check_ragged("flex", lengths, cross, causal, biased, 0.3, 5)


def check_ragged(backend, lengths, cross, causal, biased, scale, seed):
    """Some back end against softmax written out, with unknown lengths and scattered rows."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    own, other = zip(*lengths, strict=True)
    causal = causal and not cross
    groups = make_groups(own, generator if seed % 2 else None, known=bool(seed % 3))
    keys = make_groups(other, generator) if cross else None
    used = keys or groups
    q = draw(sum(own))
    k, v = (draw(int(used.cu_seqlens[-1])) for _ in range(2))
    bias = None
    if biased:
        room = groups.max_seqlen + seed % 2, used.max_seqlen + 1
        bias = draw(2 if biased == "full" else 1, *room)
    options = {"bias": bias, "causal": causal, "scale": scale}
    with attention_backend(backend):
        out = attend(q, k, v, groups, keys, **options)
    expected = softmax_attention(q, k, v, rows_of(groups), rows_of(used), **options)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("lengths", "causal"),
    [*((pair, False) for pair in itertools.product((0, 1, 4), (0, 3, 4))), ((4, 4), True)],
)
@pytest.mark.parametrize("biased", [False, True])
def test_dense_equals_the_loop_and_softmax(lengths, causal, biased):
    nq, nk = lengths
    cross = nq != nk
    generator = torch.Generator().manual_seed(1)
    groups = make_groups((nq,) * 3, generator)
    keys = make_groups((nk,) * 3, generator) if cross else None
    q, k, v = draw(3 * nq), draw(3 * nk), draw(3 * nk)
    options = {"bias": draw(2, nq, nk) if biased else None, "causal": causal}
    expected = softmax_attention(q, k, v, rows_of(groups), rows_of(keys or groups), **options)
    for backend in ("dense", "loop", "auto"):
        with attention_backend(backend):
            out = attend(q, k, v, groups, keys, **options)
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-12, err_msg=backend)


@pytest.mark.parametrize("backend", ["loop", "dense", "padded"])
@pytest.mark.parametrize("cross", [False, True])
def test_gradients(backend, cross):
    own = (3, 3) if backend == "dense" else (2, 0, 3)
    other = (2, 2) if backend == "dense" else (1, 2, 0)
    generator = torch.Generator().manual_seed(0)
    groups = make_groups(own, generator)
    keys = make_groups(other, generator) if cross else None
    total = sum(other if cross else own)
    inputs = [draw(sum(own), 1, 2), draw(total, 1, 2), draw(total, 1, 2)]
    longest = max(own), max(other if cross else own)
    inputs.append(draw(1, *longest))
    inputs = [x.requires_grad_() for x in inputs]

    def function(q, k, v, bias):
        with attention_backend(backend):
            return attend(q, k, v, groups, keys, bias=bias)

    assert torch.autograd.gradcheck(function, inputs)


def test_rows_of_other_groups_change_nothing():
    groups = make_groups((4, 6, 3))
    q, k, v = draw(13), draw(13), draw(13)
    before = attend(q, k, v, groups)
    k[4:10], v[4:10], q[4:10] = 100.0, -5.0, 3.0
    after = attend(q, k, v, groups)
    assert torch.equal(after[:4], before[:4])
    assert torch.equal(after[10:], before[10:])


def test_permuting_the_rows_of_a_group_permutes_the_result():
    generator = torch.Generator().manual_seed(3)
    lengths = (4, 6)
    shuffled = make_groups(lengths, generator)
    q, k, v = draw(10), draw(10), draw(10)
    packed = attend(*(x[shuffled.order] for x in (q, k, v)), make_groups(lengths))
    torch.testing.assert_close(attend(q, k, v, shuffled), packed[shuffled.inverse])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_kept(dtype):
    groups = make_groups((5, 5))
    q, k, v = (draw(10, dtype=dtype) for _ in range(3))
    out = attend(q, k, v, groups)
    assert out.dtype == dtype
    exact = attend(q.double(), k.double(), v.double(), groups)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(out.double(), exact, atol=tolerance, rtol=tolerance)


def test_no_groups_at_all():
    empty = make_groups(())
    q = draw(0)
    assert attend(q, q, q, empty).shape == (0, 2, 4)


# ---- which back end


def chosen(q, groups_q, groups_k=None, bias=None) -> str:
    return choose(Request.of(q, groups_q, groups_k or groups_q, Options(bias)))


def test_on_the_cpu_equal_lengths_are_dense_and_the_rest_loops():
    even, ragged = make_groups((4, 4)), make_groups((4, 5))
    unknown = make_groups((4, 4), known=False)
    for dtype in (torch.float32, torch.bfloat16):
        q = draw(8, dtype=dtype)
        assert chosen(q, even) == "dense"
        assert chosen(q, even, ragged) == "loop"
        assert chosen(q, ragged, even) == "loop"
        assert chosen(q, unknown) == "padded"  # a compiled graph cannot ask for lengths


def on_cuda(dtype=torch.bfloat16, head_dim=64, known=True, equal=False, bias=False) -> str:
    return choose(Request("cuda", dtype, head_dim, known, equal, bias))


def test_the_choice_on_cuda(monkeypatch):
    half, single = (torch.float16, torch.bfloat16), torch.float32
    for dtype in half:
        assert on_cuda(dtype) == "varlen"
        assert on_cuda(dtype, known=False) == "varlen"
        assert on_cuda(dtype, equal=True) == "dense"
        assert on_cuda(dtype, bias=True) == "loop"
        assert on_cuda(dtype, bias=True, known=False) == "padded"
        assert on_cuda(dtype, head_dim=264) == "efficient"
        assert on_cuda(dtype, head_dim=20) == "loop"
    assert on_cuda(single) == on_cuda(single, head_dim=20, known=False) == "efficient"
    assert on_cuda(single, head_dim=18) == on_cuda(torch.float64) == "loop"
    with attention_backend("varlen"), pytest.raises(ValueError, match="'varlen' needs CUDA"):
        on_cuda(single)
    with (
        attention_backend("efficient"),
        pytest.raises(ValueError, match=r"got cuda, torch\.float64"),
    ):
        on_cuda(torch.float64)
    monkeypatch.setattr(packed, "find_flash", lambda: None)
    with (
        attention_backend("flash_attn"),
        pytest.raises(ValueError, match="needs the package flash-attn, CUDA"),
    ):
        on_cuda(torch.float16)


@pytest.mark.parametrize(("generation", "expected"), [(2, "varlen"), (3, "flash_attn")])
def test_a_flash_attn_package_is_taken_where_it_is_newer_than_torchs(
    generation, expected, monkeypatch
):
    monkeypatch.setattr(packed, "find_flash", lambda: packed.Flash(generation, print))
    monkeypatch.setitem(BACKENDS, "varlen", packed.VARLEN._replace(missing=lambda: None))
    assert on_cuda() == expected
    assert on_cuda(torch.float32) == "efficient"


@pytest.mark.parametrize("returns_more", [False, True])
def test_flash_attn_is_called_as_its_packages_want(returns_more, monkeypatch):
    """A stand-in with their keywords that computes by the loop."""
    groups, keys = make_groups((2, 0, 3)), make_groups((1, 2, 0), known=not returns_more)

    def stand_in(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        assert (max_seqlen_q, max_seqlen_k) == (3, 2)
        assert cu_seqlens_k.tolist() == [0, 1, 3, 3]
        assert set(options) == {"softmax_scale", "causal"}
        scale = options["softmax_scale"]
        out = BACKENDS["loop"].run(
            q, k, v, groups, keys, Options(None, None, options["causal"], scale)
        )
        out[2:] = torch.nan  # whatever a kernel returns for the rows that have no keys
        return (out, None) if returns_more else out

    monkeypatch.setattr(packed, "find_flash", lambda: packed.Flash(3, stand_in))
    q, k, v = draw(5), draw(3), draw(3)
    out = packed.run_flash_attn(q, k, v, groups, keys, Options(scale=0.3))
    torch.testing.assert_close(out, attend(q, k, v, groups, keys, scale=0.3))


def test_varlen_is_called_as_torch_wants(monkeypatch):
    """A stand-in with torch's signature that computes by the loop."""
    from torch.nn.attention import varlen

    groups, keys = make_groups((2, 0, 3)), make_groups((1, 2, 0))
    real = inspect.signature(varlen.varlen_attn)

    def stand_in(*args, **options):
        given = real.bind(*args, **options).arguments
        assert (given["max_q"], given["max_k"], given["window_size"]) == (3, 2, (-1, -1))
        q, k, v = args[:3]
        out = BACKENDS["loop"].run(q, k, v, groups, keys, Options(scale=given["scale"]))
        out[2:] = torch.nan
        return out

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    q, k, v = draw(5), draw(3), draw(3)
    out = packed.run_varlen(q, k, v, groups, keys, Options(scale=0.3))
    torch.testing.assert_close(out, attend(q, k, v, groups, keys, scale=0.3))


class Unwritten(torch.autograd.Function):
    """Passes rows on, but leaves some of their gradient unwritten."""

    @staticmethod
    def forward(ctx, rows, alone):
        ctx.alone = alone
        return rows.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[ctx.alone] = torch.nan
        return grad, None


@pytest.mark.parametrize("known", [True, False])
def test_efficient_attention_is_called_as_torch_wants(known, monkeypatch):
    """A stand-in with its limits that computes by the loop."""
    groups, keys = make_groups((2, 0, 3), known=known), make_groups((1, 2, 0), known=known)
    groups, keys = groups._replace(max_seqlen=9), keys._replace(max_seqlen=8)  # bounds

    def stand_in(q, k, v, bias, ends_q, ends_k, longest_q, longest_k, *_, scale, **__):
        assert (longest_q, longest_k) == (5, 3)  # torch's backward pass refuses more than rows
        q = Unwritten.apply(q[0], slice(2, 5))
        out = BACKENDS["loop"].run(q, k[0], v[0], groups, keys, Options(scale=scale))
        return (out[None],)

    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", stand_in)
    leaves = [draw(n).requires_grad_() for n in (5, 3, 3)]
    out = packed.run_efficient(*leaves, groups, keys, Options(scale=0.3))
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    expected = attend(*leaves, groups, keys, scale=0.3)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), leaves))


def on_gpu(monkeypatch, major: int, flash: packed.Flash | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, 0))
    monkeypatch.setattr(packed, "find_flash", lambda: flash)


def test_gpus_before_ampere_have_no_flash_attention_and_no_bfloat16(monkeypatch):
    on_gpu(monkeypatch, 7)
    assert on_cuda(torch.float16) == on_cuda(torch.float32) == "efficient"
    assert on_cuda(torch.bfloat16) == "loop"
    assert usable()["varlen"] == "a GPU of compute capability 7, below 8"
    on_gpu(monkeypatch, 8)
    assert on_cuda(torch.float16) == on_cuda(torch.bfloat16) == "varlen"


@pytest.mark.parametrize(("major", "wide"), [(9, "flash_attn"), (10, "varlen")])
def test_flash_attention_4_has_no_wide_heads_on_blackwell(major, wide, monkeypatch):
    on_gpu(monkeypatch, major, packed.Flash(4, print))
    assert on_cuda(head_dim=128) == "flash_attn"
    assert on_cuda(head_dim=136) == wide
    biased = Request("cuda", torch.bfloat16, 128, True, False, False, key_bias=True)
    assert choose(biased) == wide


def test_flex_takes_no_narrow_heads_on_cuda():
    asked = Request("cuda", torch.float32, 16, True, False, True, value_dim=16)
    with attention_backend("flex"):
        assert choose(asked) == choose(asked._replace(device="cpu", head_dim=8)) == "flex"
        for narrow in ({"head_dim": 8}, {"value_dim": 8}):
            with pytest.raises(ValueError, match="head_dim >= 16"):
                choose(asked._replace(**narrow))


def test_varlen_with_other_keywords_is_not_used(monkeypatch):
    monkeypatch.setattr(packed, "_varlen_keywords", lambda: frozenset({"is_causal", "scale"}))
    assert "has no ['window_size']" in packed._varlen_lacks()
    assert on_cuda() == "efficient"


def test_what_is_usable_here_and_why_not():
    here = usable()
    assert set(here) == set(BACKENDS)
    assert here["loop"] is here["dense"] is here["padded"] is None
    if not torch.cuda.is_available():
        assert here["varlen"] == here["efficient"] == here["flash_attn"] == "no CUDA device"


def test_a_query_without_keys_gets_zeros_whatever_the_kernel_returns():
    groups, keys = make_groups((2, 1, 3)), make_groups((1, 0, 2))
    out = zero_where_no_keys(torch.full((6, 2, 4), torch.nan), groups, keys)
    assert out.isnan().flatten(1).all(1).tolist() == [True, True, False, True, True, True]
    assert (out[2] == 0).all()


def test_rows_beyond_the_last_group_are_noticed_where_the_host_does_not_know(monkeypatch):
    unknown = make_groups((4, 5), known=False)
    check_tail(unknown, 9)
    with pytest.raises(RuntimeError):
        check_tail(unknown, 10)
    check_tail(make_groups((4, 5)), 10)  # the host knows: attend has compared them
    monkeypatch.setattr(packed, "find_flash", lambda: packed.Flash(2, lambda q, *_, **__: q))
    keys = make_groups((2, 3), known=False)
    with pytest.raises(RuntimeError):
        packed.run_flash_attn(draw(9), draw(6), draw(6), unknown, keys, Options())


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=6),
    st.booleans(),
)
@settings(max_examples=15)
def test_flex_looks_at_every_block_that_holds_a_pair(lengths, cross):
    own, other = zip(*lengths, strict=True)
    groups = make_groups(own)
    keys = make_groups(other) if cross else groups
    rows, columns = int(groups.cu_seqlens[-1]), int(keys.cu_seqlens[-1])
    if rows == 0 or columns == 0:
        return
    mask = flex.block_mask(groups, keys, rows, columns, False)
    looked = mask.to_dense()[0, 0].bool()
    pairs = groups.packed.ids(rows)[:, None] == keys.packed.ids(columns)
    for i, j in pairs.nonzero().unique(dim=0)[::97].tolist():
        assert looked[i // 128, j // 128]
    blocks = -(-rows // 128), -(-columns // 128)
    assert looked.shape == blocks


@pytest.mark.slow
def test_flex_compiles_to_the_same_numbers():
    """Forward only: torch has no backward of it on the CPU."""
    groups = make_groups((100, 37, 1, 260))
    q, k, v = (draw(398, width=16, dtype=torch.float32) for _ in range(3))
    bias = torch.randn(2, 260, 260)
    mask = flex.block_mask(groups, groups, 398, 398, False)
    score = flex.score_with(Options(bias), groups, groups, 398, 398)
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = torch.compile(flex_attention)(*heads_first, score_mod=score, block_mask=mask)
    expected = attend(q, k, v, groups, bias=bias)
    torch.testing.assert_close(out[0].transpose(0, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("cross", "causal"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("varlen", torch.bfloat16), ("efficient", torch.float32), ("padded", torch.float32)],
)
def test_fake_tensors_pass_without_reading_anything_back(
    backend, dtype, cross, causal, monkeypatch
):
    """A read of device values would raise here; lengths unknown to the host need none."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        order = torch.empty(9, dtype=torch.long, device="cuda")
        ends = torch.empty(3, dtype=torch.int32, device="cuda")
        groups = Groups(order, order, ends, 5, None)
        keys = Groups(None, None, ends, 7, None) if cross else None
        q = torch.empty(9, 2, 64, dtype=dtype, device="cuda")
        k = torch.empty(12 if cross else 9, 2, 64, dtype=dtype, device="cuda")
        with attention_backend(backend):
            out = attend(q, k, k, groups, keys, causal=causal, scale=0.1)
        assert out.shape == (9, 2, 64)
        assert out.dtype == dtype


# ---- bad input


def test_forced_back_ends_say_why_they_cannot():
    ragged, q = make_groups((4, 5)), draw(9)
    with attention_backend("dense"), pytest.raises(ValueError, match="groups of one length"):
        attend(q, q, q, ragged)
    with attention_backend("dense"), pytest.raises(ValueError, match="known to the host"):
        attend(q, q, q, make_groups((3, 6), known=False))
    with attention_backend("varlen"), pytest.raises(ValueError, match=r"got cpu, torch\.float64"):
        attend(q, q, q, ragged)


def test_an_unknown_back_end_and_nesting():
    with pytest.raises(
        ValueError,
        match=r"one of auto, loop, .*got 'flash' .*'flash_attn'",
    ):
        attention_backend("flash").__enter__()
    with attention_backend("loop"):
        with attention_backend("dense"), pytest.raises(RuntimeError):
            raise RuntimeError
        assert dispatch._forced == "loop"
    assert dispatch._forced == "auto"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((9, 8), (9, 8), (9, 8)), "packed .n, heads, head_dim. q, k, v"),
        (((9, 2, 4), (9, 2, 4), (8, 2, 4)), "packed"),
        (((9, 2, 4), (9, 3, 4), (9, 3, 4)), "packed"),
        (((9, 2, 4), (9, 2, 6), (9, 2, 6)), "packed"),
    ],
)
def test_shapes_that_do_not_match(shapes, message):
    with pytest.raises(ValueError, match=message):
        attend(*(torch.rand(shape) for shape in shapes), make_groups((4, 5)))


def test_dtypes_that_do_not_match_but_under_autocast():
    q, groups = torch.rand(9, 2, 4), make_groups((4, 5))
    with pytest.raises(ValueError, match=r"k is torch.float64, v is torch.float32: convert them"):
        attend(q, q.double(), q, groups)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, q.bfloat16(), q, groups)
    torch.testing.assert_close(out.float(), attend(q, q, q, groups), atol=0.02, rtol=0.02)


def test_groups_that_do_not_match():
    q = draw(9)
    with pytest.raises(ValueError, match="queries have 2 groups and keys have 3"):
        attend(q, q, q, make_groups((4, 5)), make_groups((4, 4, 1)))
    with pytest.raises(ValueError, match="causal attention is for self-attention"):
        attend(q, q, q, make_groups((4, 5)), make_groups((4, 5)), causal=True)


def test_groups_that_cover_other_rows_are_refused():
    """Too few or too many rows would silently drop or mix tokens."""
    q = draw(9)
    with pytest.raises(ValueError, match="rows"):
        attend(q, q, q, make_groups((4, 4)))
    with pytest.raises(ValueError, match="rows"):
        attend(q, q, q, make_groups((4, 5)), make_groups((4, 6)))


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 5, 4), (3, 5, 5), (5, 5)])
def test_a_bias_that_does_not_cover_the_groups(shape):
    q = draw(9)
    with pytest.raises(ValueError, match=r"must cover \(heads, max_q, max_k\) = \(2, 5, 5\), got"):
        attend(q, q, q, make_groups((4, 5)), bias=torch.rand(shape))


# ---- what some heads, values and keys ask for


def written_out(q, k, v, groups_q, groups_k, key_bias, scale=None):
    """Grouped queries, values of any width and a bias per key, in plain float64."""
    out = q.new_zeros(*q.shape[:2], v.shape[2])
    share = q.shape[1] // k.shape[1]
    for own, other in zip(rows_of(groups_q), rows_of(groups_k), strict=True):
        for head in range(q.shape[1] if other else 0):
            scores = q[own, head] @ k[other, head // share].T * (scale or q.shape[2] ** -0.5)
            out[own, head] = (scores + key_bias[other]).softmax(1) @ v[other, head // share]
    return out


@pytest.mark.parametrize("backend", ["auto", "loop", "padded", "math"])
@pytest.mark.parametrize("lengths", [((3, 1), (0, 4), (5, 0), (2, 2)), ((4, 3), (4, 3))])
def test_grouped_queries_wide_values_and_a_bias_per_key(backend, lengths):
    key_bias, out, expected = wide_and_grouped(backend, lengths)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(x.square().sum(), key_bias)[0] for x in (out, expected)]
    torch.testing.assert_close(*grads)


def test_flex_compiles_grouped_queries_wide_values_and_a_bias_per_key():
    _, out, expected = wide_and_grouped("flex", ((3, 1), (0, 4), (5, 0), (2, 2)))
    torch.testing.assert_close(out, expected)


def wide_and_grouped(backend, lengths):
    torch.manual_seed(0)
    own, other = zip(*lengths, strict=True)
    groups, keys = make_groups(own), make_groups(other, torch.Generator().manual_seed(1))
    q, k, v = draw(sum(own), 4), draw(sum(other), 2), draw(sum(other), 2, 6)
    key_bias = torch.randn(sum(other), dtype=torch.float64, requires_grad=True)
    with attention_backend(backend):
        out = attend(q, k, v, groups, keys, key_bias=key_bias)
    return key_bias, out, written_out(q, k, v, groups, keys, key_bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_per_key_in_channels_of_queries_and_keys(dtype):
    """What kernels without a bias get computes the same, with the bias to twice the precision."""
    groups = make_groups((5, 3))
    q, k, v = draw(8, 4, 8, dtype), draw(8, 2, 8, dtype), draw(8, 2, 8, dtype)
    key_bias = torch.linspace(-3, 6, 8)
    options = Options(key_bias=key_bias, scale=0.25)
    more = fold_key_bias(q, k, v, options)
    assert [x.shape for x in more[:3]] == [(8, 4, 16)] * 3
    out = attend(*(x.float() for x in more[:3]), groups, scale=more[3])[..., :8]
    expected = written_out(
        q.double(), k.double(), v.double(), groups, groups, key_bias.double(), 0.25
    )
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-3)


def test_a_key_hidden_by_its_bias_is_not_seen():
    groups, q = make_groups((4,)), draw(4)
    hidden = torch.tensor([0, 0, 0, -torch.inf], dtype=torch.float64)
    out = attend(q, q, q, groups, key_bias=hidden)
    fewer = attend(q, q[:3], q[:3], groups, make_groups((3,)))
    torch.testing.assert_close(out, fewer)


def test_dropout_keeps_the_mean_and_drops_some():
    groups = make_groups((40, 30))
    q = draw(70)
    ones = torch.ones_like(q)
    torch.manual_seed(0)
    out = torch.stack([attend(q, q, ones, groups, dropout=0.5) for _ in range(50)])
    assert out.std() > 0.1
    assert abs(out.mean() - 1) < 0.05
    with attention_backend("flex"), pytest.raises(ValueError, match="dropout"):
        attend(q, q, q, groups, dropout=0.5)


@pytest.mark.parametrize("lengths", [(3, 2), (2, 2)])
def test_the_math_back_end_has_derivatives_of_all_kinds(lengths):
    torch.manual_seed(0)
    groups = make_groups(lengths)
    q, k, v = (draw(sum(lengths), 1, 2).requires_grad_() for _ in range(3))
    bias = torch.randn(sum(lengths), dtype=torch.float64, requires_grad=True)

    def function(*inputs):
        *qkv, own = inputs
        with attention_backend("math"):
            return attend(*qkv, groups, key_bias=own)

    assert torch.autograd.gradcheck(function, (q, k, v, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (q, k, v, bias))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (6, 3, 4)}, "multiple"),
        ({"v": (5, 2, 4)}, "same rows"),
        ({"q": (6, 4)}, r"\(n, heads, head_dim\)"),
        ({"key_bias": torch.zeros(5)}, r"\(6,\), got \(5,\)"),
        ({"dropout": 1.0}, "got 1.0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    given = {"q": (6, 4, 4), "k": (6, 2, 4), "v": (6, 2, 4), "key_bias": None, "dropout": 0.0}
    given |= change
    q, k, v = (torch.zeros(given[name]) for name in "qkv")
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, make_groups((6,)), key_bias=given["key_bias"], dropout=given["dropout"])


def test_groups_from_lengths_are_those_of_cells():
    lengths = [3, 0, 5]
    groups = Groups.from_lengths(lengths)
    assert groups.cu_seqlens.tolist() == [0, 3, 3, 8]
    assert groups.cu_seqlens.dtype == torch.int32
    assert (groups.lengths, groups.max_seqlen) == ((3, 0, 5), 5)
    q, k = torch.randn(7, 2, 4), torch.randn(8, 2, 4)
    out = attend(q, k, k, Groups.from_lengths([2, 1, 4], "cpu"), groups)
    for rows, keys in ((slice(0, 2), slice(0, 3)), (slice(3, 7), slice(3, 8))):
        a, b = q[rows].transpose(0, 1), k[keys].transpose(0, 1)
        expected = torch.nn.functional.scaled_dot_product_attention(a, b, b).transpose(0, 1)
        torch.testing.assert_close(out[rows], expected)
    assert not out[2:3].any()


@pytest.mark.parametrize("lengths", [[], [2, -1], 3, [1.5], torch.tensor([2, 3])])
def test_lengths_that_are_none_are_refused(lengths):
    with pytest.raises(ValueError, match=r"lengths must be a list of length 1 or more, each a"):
        Groups.from_lengths(lengths)


def test_lengths_in_place_of_groups_are_refused_with_the_way_to_groups():
    q = torch.randn(8, 2, 4)
    with pytest.raises(ValueError, match=r"Groups\.from_lengths\(lengths, device\)"):
        attend(q, q, q, [4, 4])  # type: ignore[arg-type]
