"""Fourier modes of a periodic box in 2D, and a Runge-Kutta step that treats diffusion exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

COURANT = 2.0  # dt * |u| * largest wavenumber; the imaginary axis of RK4 ends at 2.83


class Modes:
    """Wavenumbers of real fields ``(..., x, y)`` on a periodic box, as in ``torch.fft.rfft2``.

    Attributes:
        dx: i k along x, (n_x, 1); zero at the Nyquist mode, whose derivative is unknown.
        dy: i k along y, (1, n_y / 2 + 1).
        squared: k² of each mode.
        keep: 1 for the modes that products do not alias into (2/3 rule), else 0.
        highest: largest wavenumber that is kept along an axis.

    Args:
        shape: grid points per axis, even.
        lengths: size of the box per axis.
        device: of the tables.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        lengths: tuple[float, float],
        device: torch.device | str = "cpu",
    ):
        if any(n % 2 for n in shape):
            raise ValueError(
                f"a spectral grid has an even number of points per axis, got {tuple(shape)}"
            )
        self.shape = shape
        n_x = (torch.fft.fftfreq(shape[0], device=device) * shape[0]).round()
        n_y = torch.arange(shape[1] // 2 + 1, device=device)
        unit_x, unit_y = (2 * math.pi / length for length in lengths)
        k_x, k_y = n_x[:, None] * unit_x, n_y[None, :] * unit_y
        self.dx = 1j * torch.where(n_x[:, None].abs() == shape[0] // 2, 0.0, k_x)
        self.dy = 1j * torch.where(n_y[None, :] == shape[1] // 2, 0.0, k_y)
        self.squared = k_x.square() + k_y.square()
        inside = (3 * n_x[:, None].abs() < shape[0]) & (3 * n_y[None, :] < shape[1])
        self.keep = inside.float()
        self.highest = max(unit_x * shape[0], unit_y * shape[1]) / 3
        self.inverse = torch.where(self.squared > 0, 1 / self.squared, 0.0)  # of -Laplace, mean 0

    def of(self, field: Tensor) -> Tensor:
        """Returns the modes of fields (..., x, y)."""
        return torch.fft.rfft2(field)

    def grid(self, modes: Tensor) -> Tensor:
        """Returns the fields (..., x, y) of modes."""
        return torch.fft.irfft2(modes, s=self.shape)

    def flow(self, vorticity: Tensor) -> Tensor:
        """Returns the modes of the velocity (..., 2, x, y) from those of a vorticity (..., x, y).

        Incompressible, with mean 0: u = d psi / dy, v = -d psi / dx, -Laplace psi = vorticity.
        """
        stream = vorticity * self.inverse
        return torch.stack([self.dy * stream, -self.dx * stream], -3)

    def divergence(self, flux: Tensor) -> Tensor:
        """Returns the modes of the divergence of a flux with modes (..., 2, x, y)."""
        return self.dx * flux[..., 0, :, :] + self.dy * flux[..., 1, :, :]

    def pressure(self, velocity: Tensor) -> Tensor:
        """Returns the modes of the pressure, mean 0, of an inviscid flow with modes (..., 2, x, y).

        -Laplace p = div((u . grad) u), density 1, without forces, which the caller adds.
        """
        grid = self.grid(velocity)
        along_x = [self.grid(self.dx * velocity[..., i, :, :]) for i in (0, 1)]
        along_y = [self.grid(self.dy * velocity[..., i, :, :]) for i in (0, 1)]
        u, v = grid.unbind(-3)
        force = torch.stack([u * a + v * b for a, b in zip(along_x, along_y, strict=True)], -3)
        return self.divergence(self.of(force) * self.keep) * self.inverse


def steps_for(duration: float, speed: float, highest: float) -> tuple[int, float]:
    """Returns number and size of time steps that stably carry modes up to `highest` at `speed`."""
    steps = max(1, math.ceil(duration * speed * highest / COURANT))
    return steps, duration / steps


def runge_kutta(
    modes: Tensor, rate: Callable[[Tensor], Tensor], decay: Tensor, dt: float, steps: int
) -> Tensor:
    """Integrates by classical Runge-Kutta of fourth order with an integrating factor.

    Args:
        modes: complex, any shape.
        rate: change of the modes per time, without their decay.
        decay: rate of decay of each mode, exact for any time step; broadcasts to `modes`.
        dt: time step.
        steps: number of steps.
    """
    half = (-0.5 * dt * decay).exp()
    for _ in range(steps):
        first = rate(modes)
        second = rate(half * (modes + 0.5 * dt * first))
        third = rate(half * modes + 0.5 * dt * second)
        fourth = rate(half * (half * modes + dt * third))
        modes = half * (half * (modes + dt / 6 * first) + dt / 3 * (second + third))
        modes = modes + dt / 6 * fourth
    return modes
