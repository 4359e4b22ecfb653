"""The Fourier neural operator (Li et al., "Fourier Neural Operator for Parametric PDEs", 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.models.baselines.base import BASELINES
from adaptok.utils.arguments import Dimensions, Positive, Share, checked
from adaptok.utils.precision import without_autocast


@BASELINES.register("fno")
class FNO(nn.Module):
    """Pointwise lifting, Fourier layers ``gelu(K x + W x)`` (Sec. 4, Eq. 4 and 5), pointwise MLP.

    A Fourier layer is periodic. Axes that are not are padded with zeros before the layers and
    cropped after them, and their coordinates in [0, 1] are appended to the input; along periodic
    axes the operator commutes with shifts.

    Args:
        modes: wavenumbers kept per axis; fewer where the grid has fewer.
        width: channels of the layers.
        depth: number of Fourier layers.
        padding: added to axes that are not periodic, as a fraction of their extent.
    """

    @checked
    def __init__(
        self,
        ndim: Dimensions,
        in_channels: Positive,
        out_channels: Positive,
        periodic: tuple[bool, ...],
        *,
        modes: Positive = 12,
        width: Positive = 32,
        depth: Positive = 4,
        padding: Share = 0.125,
    ):
        super().__init__()
        self.periodic, self.padding = periodic, padding
        self.lift = Pointwise(in_channels + periodic.count(False), width)
        self.blocks = nn.ModuleList(FourierLayer(ndim, width, modes) for _ in range(depth))
        self.project = nn.Sequential(
            Pointwise(width, 2 * width), nn.GELU(), Pointwise(2 * width, out_channels)
        )

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s"]:
        """Returns the output fields on the same grid."""
        space = x.shape[2:]
        points = [(torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n for n in space]
        grids = zip(torch.meshgrid(*points, indexing="ij"), self.periodic, strict=True)
        ramps = [grid.expand(len(x), 1, *space) for grid, periodic in grids if not periodic]
        x = self.lift(torch.cat([x, *ramps], 1))
        extra = [
            0 if p else int(n * self.padding) for n, p in zip(space, self.periodic, strict=True)
        ]
        x = nn.functional.pad(x, [side for e in reversed(extra) for side in (0, e)])
        for number, block in enumerate(self.blocks):
            x = block(x)
            x = nn.functional.gelu(x) if number < len(self.blocks) - 1 else x
        return self.project(x[(..., *(slice(n) for n in space))])


class Pointwise(nn.Conv1d):
    """The same linear map at every grid point, in any number of dimensions."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s"]:  # type: ignore[override]
        """Acts on the channels."""
        return super().forward(x.flatten(2)).unflatten(2, x.shape[2:])


class FourierLayer(nn.Module):
    """A linear map per kept wavenumber plus a pointwise one."""

    def __init__(self, ndim: int, width: int, modes: int):
        super().__init__()
        self.ndim, self.modes = ndim, modes
        # Real and imaginary part last: optimisers, averages and files know real tensors only.
        shape = (width, width, *[2 * modes] * (ndim - 1), modes, 2)
        self.weight = nn.Parameter(torch.randn(shape) / width)
        self.pointwise = Pointwise(width, width)

    def forward(self, x: Float[Tensor, "b w *s"]) -> Float[Tensor, "b w *s"]:
        """Returns values of the same shape."""
        axes, space = tuple(range(-self.ndim, 0)), x.shape[2:]
        with without_autocast(x):  # there is no FFT in half precision
            spectrum = torch.fft.rfftn(x.float(), dim=axes, norm="ortho")
            out = torch.zeros_like(spectrum)
            there, here = self._kept(space, x.device)
            weight = torch.view_as_complex(self.weight.float())[(..., *here)]
            out[(..., *there)] = torch.einsum("bi...,io...->bo...", spectrum[(..., *there)], weight)
            out = torch.fft.irfftn(out, s=space, dim=axes, norm="ortho")
        return out.to(x.dtype) + self.pointwise(x)

    def _kept(
        self, space: torch.Size, device: torch.device
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Indices of the kept wavenumbers in the spectrum and in the weight, one per axis."""
        there, here = [], []
        for axis, n in enumerate(space):
            last = axis == self.ndim - 1  # of a real field: non-negative wavenumbers only
            kept = torch.arange(min(self.modes, n // 2 + last), device=device)
            if not last:
                kept = torch.cat([kept, -1 - kept.flip(0)])
            there.append(kept % (n // 2 + 1 if last else n))
            here.append(kept % (self.modes if last else 2 * self.modes))
        return torch.meshgrid(*there, indexing="ij"), torch.meshgrid(*here, indexing="ij")
