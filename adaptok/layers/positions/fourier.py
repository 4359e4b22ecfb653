"""Fourier features of time, centre and volume, added to the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Len
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.positions.rotary import Rotary
from adaptok.registry import POSITIONS
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import PositiveFloat, checked

Wavelengths = Annotated[Sequence[PositiveFloat], Len(2, 2)]


def fourier_features(
    x: Float[Tensor, " n"], dim: int, shortest: float, longest: float
) -> Float[Tensor, "n dim"]:
    """``[sin(2 pi x / w), cos(2 pi x / w)]`` for dim / 2 wavelengths w, spaced logarithmically
    from shortest to longest (Aurora, App. B.4; MATEY, "Adaptive tokenization").

    Angles reach 1e10 turns, hence float64; the result is float64 too.
    """
    ends = math.log10(shortest), math.log10(longest)
    waves = torch.logspace(*ends, dim // 2, base=10.0, dtype=torch.float64, device=x.device)
    angles = x.double()[:, None] * (2 * math.pi / waves)
    return torch.cat([angles.sin(), angles.cos()], -1)


@POSITIONS.register("fourier")
class FourierPositions(nn.Module):
    """Adds linear maps of Fourier features of time, centre and volume once, before the blocks.

    ``x + L_t F(frame) + L_p [F(c_1), ..., F(c_D)] + L_s F(volume)`` with centres and volumes as
    fractions of the domain (MATEY, "Adaptive tokenization", after Aurora, App. B.4).

    Args:
        spec: specification of the tokenizer; its dim is even and has two channels per space axis.
        time: shortest and longest wavelength of the frame's index.
        space: shortest and longest wavelength of the centre. MATEY's paper-era code: (1e-3, 1).
        volume: shortest and longest wavelength of the volume. MATEY's paper-era code: (1e-5, 1).

    Raises:
        ValueError: an unsuitable dim, or wavelengths that are not two ascending positive numbers.
    """

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        time: Wavelengths = (1.0, 100.0),
        space: Wavelengths = (1e-4, 1.0),
        volume: Wavelengths = (1e-10, 1.0),
    ):
        super().__init__()
        dim = spec.dim
        if dim % 2 or dim < 2 * spec.ndim:
            raise ValueError(
                f"fourier positions in {spec.ndim} space dimension(s) need an even dim of at least "
                f"{2 * spec.ndim}, got {dim}"
            )
        given = {"time": time, "space": space, "volume": volume}
        self.ranges = [_range(name, tuple(map(float, value))) for name, value in given.items()]
        share = 2 * (dim // (2 * spec.ndim))
        self.widths = [*[share] * (spec.ndim - 1), dim - share * (spec.ndim - 1)]
        self.time = nn.Linear(dim, dim)
        self.center = nn.Linear(dim, dim)
        self.volume = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "n d"], cells: Cells, center: Float[Tensor, "n a"]
    ) -> tuple[Float[Tensor, "n d"], Rotary | None]:
        """Features plus position encoding, and None (no rotation)."""
        time, place, volume = (part.to(x.dtype) for part in self.features(cells, center))
        return x + self.time(time) + self.center(place) + self.volume(volume), None

    def features(
        self, cells: Cells, center: Float[Tensor, "n a"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Fourier features of frame, centre and volume before the linear maps, in float64."""
        dim, extents = self.time.in_features, cells.extents
        space: Any = extents[1:] if isinstance(extents, tuple) else extents[:, 1:].unbind(1)
        frame_size = cells.sizes[-1][0]
        frame = center[:, 0] / frame_size - 0.5
        places = [
            fourier_features(center[:, axis + 1].double() / n, width, *self.ranges[1])
            for axis, (n, width) in enumerate(zip(space, self.widths, strict=True))
        ]
        fraction = cells.size[:, 1:].prod(1).double() / product(space)
        return (
            fourier_features(frame, dim, *self.ranges[0]),
            torch.cat(places, -1),
            fourier_features(fraction, dim, *self.ranges[2]),
        )


def _range(name: str, given: tuple[float, ...]) -> tuple[float, float]:
    if len(given) != 2 or not 0 < given[0] < given[1]:
        raise ValueError(f"{name} is a shortest and a longest wavelength, got {list(given)}")
    return given[0], given[1]
