"""PI-resize: resizes convolution kernels by the pseudo-inverse of an interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.registry import choice
from adaptok.utils.arguments import PerAxis, checked
from adaptok.utils.constants import cached_constant
from adaptok.utils.precision import without_autocast

INTERPOLATIONS = {  # accepted name -> interpolation along one axis, as torch spells its 2D form
    "nearest": "nearest",
    **dict.fromkeys(("linear", "bilinear", "trilinear"), "bilinear"),
    **dict.fromkeys(("cubic", "bicubic"), "bicubic"),
}
FORMS = ("pinv", "mean_preserving")


@checked
def pi_resize(
    weight: Float[Tensor, "c_out c_in *kernel"],
    new_size: PerAxis,
    *,
    mode: str | None = None,
    antialias: bool = False,
    form: str = "pinv",
) -> Float[Tensor, "c_out c_in *new_kernel"]:
    """Resizes a kernel so that it responds to resized patches as the old one to the patches.

    ``pinv(B^T) w``, where B resizes a patch from the old size to the new one (FlexiViT, Eq. 4;
    CKM, App. A, Eq. 13). The interpolations are separable, so one small matrix per axis is exact
    in any dimension. An axis of unchanged size is left alone.

    Args:
        weight: 1 to 3 kernel axes.
        new_size: one size, or one per kernel axis.
        mode: "linear", "cubic" or "nearest" along each axis ("bilinear", "trilinear" and "bicubic"
            are synonyms); None is the CKM paper's: cubic in 1D and 2D, linear in 3D.
        antialias: low-pass filter if B shrinks (FlexiViT and timm: True; CKM's code: False).
        form: "pinv" keeps the response (up to its least-squares error), as an encoder needs.
            "mean_preserving" scales it so that a constant kernel keeps its value, as a decoder
            needs: a transposed convolution paints the kernel.

    Raises:
        ValueError: not a floating-point kernel, a size below 1, or an unknown mode or form.
    """
    ndim = weight.ndim - 2
    if ndim not in (1, 2, 3) or not weight.is_floating_point() or 0 in weight.shape:
        raise ValueError(
            "the weight of a kernel is a floating-point tensor (c_out, c_in, *kernel) with 1 to 3 "
            f"kernel axes, got {weight.dtype} of shape {tuple(weight.shape)}"
        )
    sizes = tuple(new_size) if isinstance(new_size, Sequence) else (new_size,) * ndim
    if len(sizes) != ndim or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"new_size is a positive whole number or {ndim} of them, got {new_size!r}")
    work = torch.promote_types(weight.dtype, torch.float32)
    matrices = [
        resize_matrix(old, new, ndim, mode, antialias, form).to(weight.device, work)
        for old, new in zip(weight.shape[2:], sizes, strict=True)
    ]
    return apply_along_axes(weight, matrices).to(weight.dtype)


def resize_matrix(
    old: int, new: int, ndim: int, mode: str | None = None, antialias: bool = False, form="pinv"
) -> Float[Tensor, "new old"]:
    """Returns the float64 matrix of one axis, computed once and kept on the CPU.

    Raises:
        ValueError: an unknown mode or form.
    """
    choice("form", form, FORMS)
    if mode is None:
        mode = "linear" if ndim == 3 else "cubic"
    chosen = INTERPOLATIONS[choice("mode", mode, INTERPOLATIONS)]
    matrix = _pseudo_inverse(old, new, chosen, antialias and chosen != "nearest")
    return matrix if form == "pinv" else matrix * (new / matrix.sum())


@cached_constant()
def _pseudo_inverse(old: int, new: int, mode: str, antialias: bool) -> Float[Tensor, "new old"]:
    basis = torch.eye(old, dtype=torch.float64, device="cpu")
    if old == new:
        return basis
    corners = {} if mode == "nearest" else {"align_corners": False, "antialias": antialias}
    # One image per basis vector, constant along the second axis, which keeps its size. That axis
    # needs two points: with one, torch's filtered kernel reads the same row for every other row.
    images = basis[:, None, :, None].expand(-1, -1, -1, 2).contiguous()
    resized = nn.functional.interpolate(images, size=(new, 2), mode=mode, **corners)
    # Row i is the resized basis vector i, so this is B^T, and its pseudo-inverse is (new, old).
    return torch.linalg.pinv(resized[:, 0, :, 0])


def apply_along_axes(
    weight: Float[Tensor, "c_out c_in *kernel"], matrices: Sequence[Tensor]
) -> Float[Tensor, "c_out c_in *new_kernel"]:
    """Multiplies each kernel axis by its (new, old) matrix, in the matrices' dtype."""
    with without_autocast(weight):  # half precision is too coarse
        for axis, matrix in enumerate(matrices):
            if matrix.shape[0] != matrix.shape[1]:
                turned = weight.to(matrix.dtype).movedim(2 + axis, -1) @ matrix.mT
                weight = turned.movedim(-1, 2 + axis)
    return weight


class KernelResize(nn.Module):
    """Resizes kernels of one base size to any of the prepared sizes.

    The matrices move between devices with the module but stay out of the state dict.

    Args:
        base: kernel size per axis.
        sizes: sizes to prepare for each axis.
        mode, antialias, form: see `pi_resize`.
    """

    def __init__(
        self,
        base: Sequence[int],
        sizes: Sequence[int],
        *,
        mode: str | None = None,
        antialias: bool = False,
        form: str = "pinv",
    ):
        super().__init__()
        self.base = tuple(base)
        for old in sorted(set(base)):
            for new in sorted({*sizes, old}):
                matrix = resize_matrix(old, new, len(self.base), mode, antialias, form)
                self.register_buffer(f"from_{old}_to_{new}", matrix.float(), persistent=False)

    def forward(
        self, weight: Float[Tensor, "c_out c_in *kernel"], size: tuple[int, ...]
    ) -> Float[Tensor, "c_out c_in *new_kernel"]:
        """Resizes the kernel to a prepared size; the base size returns the weight itself."""
        pairs = zip(self.base, size, strict=True)
        matrices = [getattr(self, f"from_{old}_to_{new}") for old, new in pairs]
        return apply_along_axes(weight, matrices)
