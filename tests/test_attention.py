"""attend: every back end against softmax written out in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import softmax_attention
from torch._subclasses.fake_tensor import FakeTensorMode

from adaptok import attend, attention, attention_backend
from adaptok.cells import Groups


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


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "full", "one head"]),
    st.sampled_from([None, 0.3]),
    st.integers(0, 10**6),
)
def test_loop_and_padded_equal_softmax_written_out(lengths, cross, causal, biased, scale, seed):
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
    expected = softmax_attention(q, k, v, rows_of(groups), rows_of(used), **options)
    for backend in ("loop", "padded"):
        with attention_backend(backend):
            out = attend(q, k, v, groups, keys, **options)
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-12, err_msg=backend)


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
    return attention._choose(q, groups_q, groups_k or groups_q, bias)


def test_on_the_cpu_equal_lengths_are_dense_ragged_ones_loop_and_unknown_ones_are_padded():
    even, ragged = make_groups((4, 4)), make_groups((4, 5))
    unknown = make_groups((4, 4), known=False)
    for dtype in (torch.float32, torch.bfloat16):
        q = draw(8, dtype=dtype)
        assert chosen(q, even) == "dense"
        assert chosen(q, even, ragged) == "loop"
        assert chosen(q, ragged, even) == "loop"
        assert chosen(q, unknown) == "padded"


def test_on_cuda_ragged_half_precision_is_varlen():
    """Fake tensors know a device and run no kernel."""
    even, ragged = make_groups((4, 4)), make_groups((4, 5))
    with FakeTensorMode():
        half = torch.empty(9, 2, 64, dtype=torch.bfloat16, device="cuda")
        single = torch.empty(9, 2, 64, device="cuda")
        odd = torch.empty(9, 2, 20, dtype=torch.float16, device="cuda")
        wide = torch.empty(9, 2, 264, dtype=torch.float16, device="cuda")
        bias = torch.empty(2, 5, 5, device="cuda")
    assert chosen(half, ragged) == "varlen"
    assert chosen(half.to(torch.float16), ragged) == "varlen"
    assert chosen(half, even) == "dense"
    assert chosen(half, ragged, bias=bias) == "loop"  # no bias in the kernel
    for q in (single, odd, wide):
        assert chosen(q, ragged) == "loop"
        with attention_backend("varlen"), pytest.raises(ValueError, match="'varlen' needs CUDA"):
            chosen(q, ragged)


@pytest.mark.parametrize(("cross", "causal"), [(False, False), (False, True), (True, False)])
def test_varlen_runs_on_fake_tensors_without_reading_anything_back(cross, causal, monkeypatch):
    """A read of device values would raise here; lengths unknown to the host need none."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        order = torch.empty(9, dtype=torch.long, device="cuda")
        ends = torch.empty(3, dtype=torch.int32, device="cuda")
        groups = Groups(order, order, ends, 5, None)
        keys = Groups(None, None, ends, 7, None) if cross else None
        q = torch.empty(9, 2, 64, dtype=torch.bfloat16, device="cuda")
        k = torch.empty(12 if cross else 9, 2, 64, dtype=torch.bfloat16, device="cuda")
        out = attend(q, k, k, groups, keys, causal=causal, scale=0.1)
        assert out.shape == (9, 2, 64)
        assert out.dtype == torch.bfloat16


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
        ValueError, match="unknown attention back end 'flash'; accepted: auto, loop"
    ):
        attention_backend("flash").__enter__()
    with attention_backend("loop"):
        with attention_backend("dense"), pytest.raises(RuntimeError):
            raise RuntimeError
        assert attention._forced == "loop"
    assert attention._forced == "auto"


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
    with pytest.raises(ValueError, match=r"bias must cover \(heads, max_q, max_k\) = \(2, 5, 5\)"):
        attend(q, q, q, make_groups((4, 5)), bias=torch.rand(shape))
