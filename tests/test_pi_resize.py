"""PI-resize against arrays of the authors' code, timm, and a pseudo-inverse over the whole grid."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import adaptok
from adaptok.layers.pi_resize import KernelResize, resize_matrix

FULL = {1: "linear", 2: "bicubic", 3: "trilinear"}


def whole_grid_resize(weight: torch.Tensor, size, mode: str, antialias: bool) -> torch.Tensor:
    """The definition: resize every basis image of the kernel's grid, one pseudo-inverse."""
    kernel = weight.shape[2:]
    basis = torch.eye(math.prod(kernel), dtype=torch.float64).unflatten(1, kernel)[:, None]
    options = {"align_corners": False}
    if mode.startswith("bi"):
        options["antialias"] = antialias
    resized = F.interpolate(basis, size=tuple(size), mode=mode, **options)
    matrix = torch.linalg.pinv(resized.flatten(1))  # (new, old)
    return (weight.flatten(2).double() @ matrix.mT).unflatten(2, tuple(size)).to(weight.dtype)


def kernels(names) -> list[str]:
    return sorted(name.removesuffix(".w_old") for name in names if name.endswith(".w_old"))


def test_equal_to_the_authors(golden):
    arrays = golden("ckm_piresize")
    cases = kernels(arrays)
    assert len(cases) == 29
    for case in cases:
        old, new = (torch.from_numpy(arrays[f"{case}.w_{which}"]) for which in ("old", "new"))
        mode, antialias = case.split("_")[1], "_aa1_" in case
        out = adaptok.pi_resize(old, tuple(new.shape[2:]), mode=mode, antialias=antialias)
        torch.testing.assert_close(out, new, rtol=1e-4, atol=1e-5 * float(new.abs().max()))


@pytest.mark.parametrize(("ndim", "mode"), [(1, "cubic"), (2, "bicubic"), (3, "trilinear")])
def test_without_a_mode_it_is_the_papers(ndim, mode):
    weight = torch.randn(3, 2, *(4,) * ndim)
    named = adaptok.pi_resize(weight, 2, mode=mode)
    assert torch.equal(adaptok.pi_resize(weight, 2), named)
    other = adaptok.pi_resize(weight, 2, mode="linear" if ndim < 3 else "cubic")
    assert not torch.allclose(named, other)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (8, 8)), ((16, 16), (20, 12)), ((4, 8), (8, 4))]
)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_equal_to_timm(old, new, mode, antialias):
    timm = pytest.importorskip("timm.layers")
    weight = torch.randn(5, 3, *old)
    expected = timm.resample_patch_embed(weight, list(new), mode, antialias)
    out = adaptok.pi_resize(weight, new, mode=mode, antialias=antialias)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


SIZE = st.sampled_from([1, 2, 3, 4, 6, 8])


@given(st.integers(1, 3), st.data(), st.booleans())
def test_axis_by_axis_equals_the_whole_grid(ndim, data, antialias):
    old = data.draw(st.tuples(*[SIZE.filter(lambda n: n > 1)] * ndim))
    new = data.draw(st.tuples(*[SIZE] * ndim))
    mode = FULL[ndim]
    # torch filters in 2D only, and reads one row for all where the result is one point wide.
    antialias = antialias and ndim == 2 and new[-1] > 1
    weight = torch.randn(2, 3, *old, dtype=torch.float64)
    out = adaptok.pi_resize(weight, new, mode=mode, antialias=antialias)
    expected = whole_grid_resize(weight, new, mode, antialias)
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-8)


def test_1d_cubic_is_a_2d_kernel_that_is_constant_along_the_other_axis():
    weight = torch.randn(2, 3, 8)
    flat = adaptok.pi_resize(weight[..., None], (4, 1))[..., 0]
    torch.testing.assert_close(adaptok.pi_resize(weight, 4), flat)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_larger_kernel_answers_larger_patches_as_the_old_one_the_patches(antialias):
    weight, patch = torch.randn(5, 3, 4, 4).double(), torch.randn(1, 3, 4, 4).double()
    larger = F.interpolate(patch, size=(8, 6), mode="bicubic", antialias=antialias)
    resized = adaptok.pi_resize(weight, (8, 6), antialias=antialias)
    torch.testing.assert_close(F.conv2d(larger, resized), F.conv2d(patch, weight))


def test_the_same_size_is_the_same_kernel():
    weight = torch.randn(2, 3, 4, 4)
    assert torch.equal(adaptok.pi_resize(weight, 4), weight)
    assert torch.equal(adaptok.pi_resize(weight, 4, form="mean_preserving"), weight)


@pytest.mark.parametrize("new", [2, 4, 8, 16])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_constant_kernel_keeps_its_value_in_the_decoders_form(ndim, new):
    weight = torch.full((2, 3, *(8,) * ndim), 1.5)
    kept = adaptok.pi_resize(weight, new, form="mean_preserving")
    dims = tuple(range(2, 2 + ndim))
    torch.testing.assert_close(kept.mean(dims), torch.full((2, 3), 1.5))
    if new == 4:  # the plain form keeps the sum, so that values grow
        grown = adaptok.pi_resize(weight, new).mean(dims)
        torch.testing.assert_close(grown, torch.full((2, 3), 1.5 * 2**ndim))


def test_gradients_reach_the_kernel():
    weight = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: adaptok.pi_resize(w, (2, 8)), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_kept_and_half_precision_is_computed_in_single(dtype):
    weight = torch.randn(2, 3, 4, 4).to(dtype)
    out = adaptok.pi_resize(weight, 2)
    assert out.dtype == dtype
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float64 else {}
    torch.testing.assert_close(out, adaptok.pi_resize(weight.float(), 2).to(dtype), **close)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = adaptok.pi_resize(weight.float(), 2)
    assert exact.dtype == torch.float32
    assert torch.equal(exact, adaptok.pi_resize(weight.float(), 2))


def test_prepared_sizes_equal_the_function_and_are_not_saved():
    resize = KernelResize((4, 8), [2, 4, 8], form="mean_preserving")
    assert not resize.state_dict()
    weight = torch.randn(2, 3, 4, 8)
    for size in ((2, 2), (4, 8), (8, 4)):
        expected = adaptok.pi_resize(weight, size, form="mean_preserving")
        torch.testing.assert_close(resize(weight, size), expected)


def test_matrices_are_made_once():
    assert resize_matrix(16, 7, 2) is resize_matrix(16, 7, 1)
    with torch.inference_mode():
        adaptok.pi_resize(torch.randn(1, 1, 15, 15), 7)
    weight = torch.randn(1, 1, 15, 15, requires_grad=True)
    adaptok.pi_resize(weight, 7).sum().backward()
    assert weight.grad is not None


def test_matrices_made_while_tracing_are_not_kept():
    with FakeTensorMode():
        assert resize_matrix(13, 6, 2).shape == (6, 13)

    class Resize(torch.nn.Module):
        def forward(self, weight):
            return adaptok.pi_resize(weight, 5)

    weight = torch.randn(1, 1, 13, 13)
    exported = torch.export.export(Resize(), (weight,)).module()
    torch.testing.assert_close(exported(weight), adaptok.pi_resize(weight, 5))
    for size in (5, 6):
        expected = whole_grid_resize(weight, (size, size), "bicubic", False)
        torch.testing.assert_close(adaptok.pi_resize(weight, size), expected)


@pytest.mark.parametrize(
    ("weight", "size", "options", "message"),
    [
        (torch.zeros(4, 4), 2, {}, r"\(c_out, c_in, \*kernel\) with 1 to 3 kernel axes"),
        (torch.zeros(1, 1, 4, 4, 4, 4), 2, {}, "1 to 3 kernel axes"),
        (torch.zeros(1, 1, 4, dtype=torch.int64), 2, {}, "floating-point tensor"),
        (torch.zeros(1, 1, 4, 4), 0, {}, "new_size must be a whole number"),
        (torch.zeros(1, 1, 4, 4), (2, 2, 2), {}, r"or 2 of them, got \(2, 2, 2\)"),
        (torch.zeros(1, 1, 4, 4), 2.0, {}, "new_size"),
        (torch.zeros(1, 1, 4, 4), 2, {"mode": "bicubc"}, r"mode must be.*did you mean 'bicubic'"),
        (torch.zeros(1, 1, 4, 4), 2, {"form": "mean"}, "form must be one of pinv, mean_preserving"),
    ],
)
def test_bad_input(weight, size, options, message):
    with pytest.raises(ValueError, match=message):
        adaptok.pi_resize(weight, size, **options)
