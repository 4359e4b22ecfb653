"""Compressible Euler equations in 1 to 3 dimensions: MUSCL (van Leer), HLL, SSP-RK2.

A state is a tensor (b, 2 + ndim, *space): conserved (density, momentum, energy density) or
primitive (density, velocity, pressure). The gas is ideal: the pressure is (gamma - 1) times the
internal energy density.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-6  # of density and pressure, against vacuum
TINY = 1e-30


def to_conserved(primitive: Tensor, gamma: float) -> Tensor:
    """Converts primitive to conserved variables."""
    density, velocity, pressure = primitive[:, :1], primitive[:, 1:-1], primitive[:, -1:]
    kinetic = 0.5 * density * velocity.square().sum(1, keepdim=True)
    return torch.cat([density, density * velocity, pressure / (gamma - 1) + kinetic], 1)


def to_primitive(conserved: Tensor, gamma: float) -> Tensor:
    """Converts conserved to primitive variables."""
    density = conserved[:, :1].clamp_min(FLOOR)
    velocity = conserved[:, 1:-1] / density
    kinetic = 0.5 * density * velocity.square().sum(1, keepdim=True)
    pressure = ((gamma - 1) * (conserved[:, -1:] - kinetic)).clamp_min(FLOOR)
    return torch.cat([density, velocity, pressure], 1)


def stable_step(state: Tensor, dx: float, gamma: float, cfl: float = 0.8) -> Tensor:
    """Returns each sample's time step for a Courant number of `cfl` (stable below 1), (b,)."""
    primitive = to_primitive(state, gamma)
    sound = (gamma * primitive[:, -1] / primitive[:, 0]).sqrt()
    speed = (primitive[:, 1:-1].abs() + sound[:, None]).sum(1)  # unsplit: the axes add up
    return cfl * dx / speed.flatten(1).amax(1)


def step(state: Tensor, dt: Tensor, dx: float, gamma: float, boundary: tuple[str, ...]) -> Tensor:
    """Takes one time step of strong-stability-preserving Runge-Kutta of second order.

    Args:
        state: conserved, (b, 2 + ndim, *space).
        dt: time step of each sample, (b,).
        dx: grid spacing, the same on all axes.
        gamma: ratio of specific heats.
        boundary: "OPEN" (zero gradient) or "PERIODIC" per axis.
    """
    ratio = (dt / dx).view(-1, *[1] * (state.ndim - 1))
    predicted = state + ratio * _change(state, gamma, boundary)
    return 0.5 * (state + predicted + ratio * _change(predicted, gamma, boundary))


def advance(
    gas: Tensor, duration: float, dx: float, gamma: float, boundary: tuple[str, ...]
) -> Tensor:
    """Advances conserved variables by `duration`, each sample with its own time steps.

    A sample that has arrived waits with steps of length 0, which change nothing.
    """
    left = torch.full((len(gas),), duration, device=gas.device, dtype=gas.dtype)
    while left.max() > 0:
        steps = (left / stable_step(gas, dx, gamma)).ceil()
        dt = left / steps.clamp_min(1)
        gas = step(gas, dt, dx, gamma, boundary)
        left = torch.where(steps > 1, left - dt, 0.0)
    return gas


def _change(state: Tensor, gamma: float, boundary: tuple[str, ...]) -> Tensor:
    """Returns minus the sum over the axes of the differences of the face fluxes."""
    primitive = to_primitive(state, gamma)
    change = torch.zeros_like(state)
    for axis, kind in enumerate(boundary):
        # the axis that is swept comes last: every slice below is then a cheap view
        swept = primitive.transpose(2 + axis, -1).contiguous()
        flux = _hll(*_faces(_with_ghosts(swept, kind)), 1 + axis, gamma)
        change -= flux.diff(dim=-1).transpose(2 + axis, -1)
    return change


def _with_ghosts(w: Tensor, kind: str) -> Tensor:
    """Adds two ghost cells at both ends of the last axis."""
    if kind == "PERIODIC":
        return torch.cat([w[..., -2:], w, w[..., :2]], -1)
    if kind == "OPEN":
        shape = (*w.shape[:-1], 2)
        return torch.cat([w[..., :1].expand(shape), w, w[..., -1:].expand(shape)], -1)
    raise ValueError(f"a boundary must be 'OPEN' or 'PERIODIC' here, got {kind!r}")


def _faces(w: Tensor) -> tuple[Tensor, Tensor]:
    """Returns primitive states left and right of each face, from van Leer's limited slopes."""
    jump = w.diff(dim=-1)
    left, right = jump[..., :-1], jump[..., 1:]
    # Half of van Leer's slope 2 l r / (l + r), zero where l and r disagree. The fraction is
    # enlarged by the sum, which has a sign: TINY (against 0 / 0) added to it could cancel it.
    total = left + right
    half = (left * right).clamp_min_(0.0) * total / total.square().add_(TINY)
    inner = w[..., 1:-1]
    return (inner + half)[..., :-1], (inner - half)[..., 1:]


def _hll(left: Tensor, right: Tensor, normal: int, gamma: float) -> Tensor:
    """Returns the HLL flux through the faces, with Davis' estimates of the fastest waves.

    Written as two streams of mass that each carry their own velocity and energy, plus the forces:
    the same numbers as ``(fast F_l - slow F_r + fast slow (U_r - U_l)) / (fast - slow)``, in a
    third of the operations.
    """
    heat_l, heat_r = left[:, -1] / left[:, 0], right[:, -1] / right[:, 0]
    speed_l, speed_r = left[:, normal], right[:, normal]
    sound_l, sound_r = (gamma * heat_l).sqrt_(), (gamma * heat_r).sqrt_()
    slow = torch.minimum(speed_l - sound_l, speed_r - sound_r).clamp_max_(0.0)
    fast = torch.maximum(speed_l + sound_l, speed_r + sound_r).clamp_min_(0.0)
    weight_l = fast / (fast - slow)
    weight_r = 1 - weight_l
    exchange = weight_l * slow
    mass_l = left[:, 0] * (weight_l * speed_l - exchange)
    mass_r = right[:, 0] * (weight_r * speed_r + exchange)
    force_l, force_r = weight_l * left[:, -1], weight_r * right[:, -1]

    flux = torch.empty_like(left)
    flux[:, 0] = mass_l + mass_r
    flux[:, 1:-1] = mass_l[:, None] * left[:, 1:-1] + mass_r[:, None] * right[:, 1:-1]
    flux[:, normal] += force_l + force_r
    energy_l = heat_l / (gamma - 1) + 0.5 * left[:, 1:-1].square().sum(1)
    energy_r = heat_r / (gamma - 1) + 0.5 * right[:, 1:-1].square().sum(1)
    flux[:, -1] = mass_l * energy_l + mass_r * energy_r + force_l * speed_l + force_r * speed_r
    return flux
