"""Tensors that follow from a parameter, kept while it has the same values."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from adaptok.utils.reading import reads_are_free


class Derived:
    """Keeps what was made of a tensor, and makes it anew when any of its values has changed.

    Values are compared, since writes through ``.data`` and of some optimizers leave no other trace.
    Where comparing would wait for a device, and while something differentiates or traces,
    everything is made anew.

    Args:
        size: results that are kept, for as many keys.
    """

    def __init__(self, size: int = 1):
        self._size = size
        self._source: Tensor | None = None
        self._kept: dict[Hashable, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(
        self, source: Tensor, key: Hashable, make: Callable[[], Tensor], training: bool
    ) -> Tensor:
        """Returns what `make` makes of `source`.

        Args:
            key: what else the result depends on.
            training: make it anew, as when gradients are wanted.
        """
        wanted = training or (torch.is_grad_enabled() and source.requires_grad)
        if wanted or not reads_are_free(source):
            return make()
        if not self._same(source):
            self._kept.clear()
            with torch.inference_mode(False):
                self._source = source.detach().clone()
        if key not in self._kept:
            if len(self._kept) == self._size:
                self._kept.pop(next(iter(self._kept)))
            with torch.inference_mode(False), torch.no_grad():  # may serve autograd later
                self._kept[key] = make()
        return self._kept[key]

    def _same(self, source: Tensor) -> bool:
        old = self._source
        if old is None or (old.dtype, old.shape) != (source.dtype, source.shape):
            return False
        return torch.equal(old, source)
