"""Layers that begin at zero."""

from __future__ import annotations

from torch import nn


def zeroed(layer: nn.Module) -> nn.Module:
    """Sets the weights of a layer to zero, so that what it is added to starts unchanged."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
