"""The Well's baselines, if they are installed."""

from __future__ import annotations

import importlib
import inspect
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.models.baselines.base import BASELINES
from adaptok.registry import choice
from adaptok.utils.arguments import Positive, checked

PACKAGE = "the_well.benchmark.models"
MODELS = {
    "unet_classic": "UNetClassic",
    "unet_convnext": "UNetConvNext",
    "dilated_resnet": "DilatedResNet",
    "refno": "ReFNO",
    "fno": "FNO",
    "tfno": "TFNO",
    "avit": "AViT",
    "afno": "AFNO",
}
CHANNELS_LAST = ("refno", "avit", "afno")


@BASELINES.register("well")
@checked
def well(
    ndim: int,
    in_channels: int,
    out_channels: int,
    shape: tuple[int, ...] | None,
    *,
    architecture: str = "unet_classic",
    width: Positive | None = None,
) -> nn.Module:
    """A model of ``the_well.benchmark.models``, with the boundary handling that it has there.

    Args:
        architecture: one of unet_classic, unet_convnext, dilated_resnet, refno, fno, tfno, avit,
            afno; "fno" and "tfno" need the extra `tfno`, the last two and "unet_convnext" timm.
        width: its first number of channels; None is its default.
    """
    choice("architecture", architecture, MODELS)
    if shape is None:
        raise ValueError("the Well's models are built for one grid: give create_baseline a shape")
    build = getattr(_load(architecture), MODELS[architecture])
    knobs = inspect.signature(build).parameters
    name = next(k for k in ("init_features", "hidden_channels", "hidden_dim") if k in knobs)
    chosen = {} if width is None else {name: width}
    modes = zip(("modes1", "modes2", "modes3"), shape, strict=False)
    chosen |= {k: min(16, n // 2) for k, n in modes if k in knobs}
    network = build(in_channels, out_channels, ndim, shape, **chosen)
    return ChannelsLast(network) if architecture in CHANNELS_LAST else network


class ChannelsLast(nn.Module):
    """A network that wants its channels last."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s"]:
        """Channels first, in and out."""
        return self.network(x.movedim(1, -1)).movedim(-1, 1)


def _load(architecture: str) -> ModuleType:
    """Imports a model; replaces the package by a bare module meanwhile, because it imports all
    eight models and the dependencies of each."""
    before = sys.modules.pop(PACKAGE, None)
    try:
        parent = find_spec("the_well.benchmark")
        if parent is None or not parent.submodule_search_locations:
            raise ImportError("no module the_well.benchmark")
        bare = sys.modules[PACKAGE] = ModuleType(PACKAGE)
        bare.__path__ = [str(Path(next(iter(parent.submodule_search_locations))) / "models")]
        return importlib.import_module(f"{PACKAGE}.{architecture}")
    except ImportError as error:
        raise ValueError(
            f"the Well's {architecture} is not installed here ({error}); pip install "
            "'adaptok[tfno,vision]', or use the baselines fno and unet"
        ) from error
    finally:
        sys.modules.pop(PACKAGE, None)
        if before is not None:
            sys.modules[PACKAGE] = before
