"""Random initial fields."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaptok.data.synthetic.solver import cell_centers


def smooth_noise(shape: tuple[int, ...], length: float, generator: torch.Generator) -> Tensor:
    """Draws a periodic Gaussian random field of variance 1 on the unit cube.

    Args:
        shape: grid points per axis.
        length: standard deviation of the Gaussian that smooths white noise.
        generator: source of the noise.
    """
    # A fixed set of Fourier modes, so that the same seed gives the same gas at every resolution.
    modes = math.ceil(3 / (2 * math.pi * length))
    k = torch.arange(-modes, modes + 1, dtype=torch.float32)
    grids = torch.meshgrid(*[k] * len(shape), indexing="ij")
    squared = torch.stack(grids).square().sum(0)
    weight = (-0.5 * (2 * math.pi * length) ** 2 * squared).exp()
    weight[(modes,) * len(shape)] = 0.0  # no offset
    noise = torch.randn(2, *weight.shape, generator=generator)
    field = torch.complex(*(noise * weight / weight.square().sum().sqrt()))
    for n in shape:  # one axis at a time: the first axis is summed and comes back as the last
        wave = torch.exp(2j * math.pi * k[:, None] * cell_centers(n, 0.0, 1.0))
        field = torch.einsum("k...,kn->...n", field, wave)
    return field.real
