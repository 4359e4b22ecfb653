"""Maps between named fields and channels; each field has its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.registry import close_matches


class NamedWeights(nn.Module):
    """A vector of weights per name; names can be added, the others keep their numbers.

    Weights are stored under their names, so that a checkpoint does not depend on the order of the
    names, and frozen weights can be left out of an optimiser.

    Args:
        names: distinct.
        width: numbers per name.
        std: of the fresh weights.
    """

    def __init__(self, names: Iterable[str], width: int, std: float):
        super().__init__()
        self.width, self.std = width, std
        self.weight = nn.ParameterDict()
        self.add(names)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of their numbers."""
        return tuple(self.weight)

    def add(self, names: Iterable[str]) -> None:
        """Adds names with fresh weights.

        Raises:
            ValueError: a known name, or not a name.
        """
        for name in names:
            if not isinstance(name, str) or not name or "." in name:
                raise ValueError(f"a field is named by a word without dots, got {name!r}")
            if name in self.weight:
                raise ValueError(f"field {name!r} is known already")
            self.weight[name] = nn.Parameter(torch.randn(self.width) * self.std)

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Returns the indices of the names.

        Raises:
            ValueError: an unknown name, or one given twice.
        """
        known = self.names
        for name in names:
            if name not in known:
                raise ValueError(
                    f"unknown field {name!r}{close_matches(name, known)}; known: {', '.join(known)}"
                )
        if len(set(names)) < len(names):
            raise ValueError(f"each field may come once, got {', '.join(names)}")
        return [known.index(name) for name in names]

    def rows(self, numbers: Int64[Tensor, "b c"]) -> Float[Tensor, "b c w"]:
        """Returns the weights of numbered names, zero for -1.

        All weights take part, so that all get a gradient on all processes.
        """
        table = torch.stack([*self.weight.values()])  # (names, w)
        return table[numbers.clamp(min=0)] * (numbers >= 0).unsqueeze(-1)


class FieldEmbedding(NamedWeights):
    """A pointwise linear map from a sample's fields to `width` channels.

    ``(b + sum_i w_i u_i) / sqrt(number of fields)``: the columns of one large matrix that belong
    to the sample's fields, scaled so that the spread does not depend on their number (MATEY, after
    Multiple Physics Pretraining, McCabe et al., 2023, Sec. 4.2; their factor also has the number of
    all known fields, which would change when a field is added).

    Args:
        names: of the fields.
        width: channels.
    """

    def __init__(self, names: Iterable[str], width: int):
        super().__init__(names, width, std=1.0)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(
        self, x: Float[Tensor, "b t c *s"], numbers: Int64[Tensor, "a c"]
    ) -> Float[Tensor, "b t w *s"]:
        """Returns the channels of each frame.

        Args:
            x: fields; channels numbered -1 are ignored, but must be finite.
            numbers: which field each channel is, per sample or (a = 1) for all; -1 is none.
        """
        rows = self.rows(numbers).expand(x.shape[0], -1, -1)  # (b, c, w)
        count = (numbers >= 0).sum(1).sqrt().view(-1, 1, *[1] * (x.ndim - 2))
        mixed = torch.einsum("btcp,bcw->btwp", x.flatten(3), rows).unflatten(3, x.shape[3:])
        return (mixed + self.bias.view(-1, *[1] * (x.ndim - 3))) / count


class FieldHeads(NamedWeights):
    """A pointwise linear map from `width` channels to a sample's fields.

    Fresh weights are zero: a field that is new to a trained model starts from no change (or, if
    states are predicted, from the mean of its context), however large the channels have become.

    Args:
        names: of the fields.
        width: channels.
    """

    def __init__(self, names: Iterable[str], width: int):
        super().__init__(names, width + 1, std=0.0)  # the last number is the bias

    def forward(
        self, x: Float[Tensor, "b t w *s"], numbers: Int64[Tensor, "a c"]
    ) -> Float[Tensor, "b t c *s"]:
        """Returns the fields, zero for -1; for the arguments see `FieldEmbedding`."""
        rows = self.rows(numbers).expand(x.shape[0], -1, -1)  # (b, c, w + 1)
        out = torch.einsum("btwp,bcw->btcp", x.flatten(3), rows[..., :-1])
        return (out + rows[:, None, :, -1:]).unflatten(3, x.shape[3:])
