"""Base class of tokenizers with one patch size at a time."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Cells
from adaptok.layers.boundary import Boundary, check_boundary
from adaptok.layers.mixed import takes_lists
from adaptok.tokenizers.base import CellTokenizer, check_controls, per_axis
from adaptok.tokens import as_field


class PatchSizeTokenizer(CellTokenizer):
    """Cells of one size, which ``patch_size=`` chooses per call; a subclass says where they lie.

    Attributes:
        size: patch size of calls that name none, per space axis.
    """

    static = True
    size: tuple[int, ...]
    controls: tuple[str, ...]

    @takes_lists
    @torch.no_grad()
    def cells(
        self, field: Float[Tensor, "b *tcs"], *, boundary: Boundary = None, **control: Any
    ) -> Cells:
        """Makes cells of one patch size; the values of the field do not matter.

        Raises:
            ValueError: a wrong field, an unknown control, or a patch size that the tokenizer does
                not have or that the field is too small for.
        """
        check_controls(control, self.controls)
        field = as_field(field, self.spec.ndim)  # it may have other channels than are embedded
        check_boundary(boundary, field.shape[0], self.spec.ndim)
        given = control.get("patch_size")
        size = per_axis(self.size if given is None else given, self.spec.ndim, "patch_size")
        return self.cells_of_size(field, size)

    def cells_of_size(self, field: Float[Tensor, "b t c *s"], size: tuple[int, ...]) -> Cells:
        """Makes cells of a patch size, one number per space axis."""
        raise NotImplementedError
