"""From normalised images to cells."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, repeated
from adaptok.layers.mixed import of_run, runs
from adaptok.registry import INDICATORS, MARKINGS, Part, name_of
from adaptok.tokenizers.base import FIXED, check_controls, check_exportable, check_shape
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import TokenizerSpec, as_field
from adaptok.tree import Tree, cells_from_splits
from adaptok.utils.arguments import kind_of, shown
from adaptok.utils.constants import cached, constant
from adaptok.utils.reading import is_readable


class ImageCells(nn.Module):
    """Undoes the normalisation of images, scores their 0..255 values, and refines.

    Args:
        spec: its sizes are the patch size times powers of two.
        thresholds: one per merged level, the smallest cells first.
        mean, std: normalisation that the images have gone through, per channel, of values 0..1.
        pad: pad images that patches do not divide with zeros; else the last, incomplete patches
            are left out, as timm's convolution does.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        thresholds: Sequence[float],
        indicator: Part,
        marking: Part | None,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        pad: bool = False,
    ):
        super().__init__()
        self.spec, self.stats, self.pad = spec, (tuple(mean), tuple(std)), pad
        self.checked = False  # whether images were looked at
        if INDICATORS.says(indicator, "needs_outcome"):
            raise ValueError(
                f"indicator {name_of(indicator)!r} learns from what comes after a field, and "
                "nothing comes after an image: there is no training signal"
            )
        rule = {"name": "threshold", "thresholds": thresholds} if marking is None else marking
        self.trees = TreeTokenizer(
            spec,
            INDICATORS.build(indicator),
            MARKINGS.build(rule),
            nn.Identity(),
            order="level",
            border="split",
        )
        self.thresholds = tuple(thresholds) if marking is None else None

    def forward(self, x: Float[Tensor, "b c h w"] | Sequence[Tensor], **control: Any) -> Cells:
        """Returns cells in the order of their level, each level in raster order.

        Args:
            x: a batch of images, or a list of images (c, h, w) of any sizes.
            control: thresholds, or a budget: one number, or one per image.

        Raises:
            ValueError: the input is no batch of images, an image is smaller than the coarsest
                cell, or a control is unknown.
        """
        parts = [cells for _, cells in self.parts(x, None, **control)]
        return parts[0] if len(parts) == 1 else Cells.cat(parts)

    def parts(
        self,
        x: Float[Tensor, "b c h w"] | Sequence[Tensor],
        given: Cells | None,
        **control: Any,
    ) -> list[tuple[Float[Tensor, "r c gh gw"], Cells]]:
        """Returns batches of neighbouring images of one size (see `whole`), each with its cells.

        Args:
            x: a batch is one part; a list of images (c, h, w) has one per run of equal sizes.
            given: cells of all images, instead of those that the model would make.
            control: as in `forward`.
        """
        if not isinstance(x, (list, tuple)):
            images: Any = x  # what is no tensor is refused below
            return [self._part(images, given, control)]
        self.check_list(x)
        if given is not None and given.batch_size != len(x):
            raise ValueError(f"cells of {given.batch_size} images for a list of {len(x)}")
        out = []
        for start, stop in runs([image.shape for image in x]):
            images = torch.stack(list(x[start:stop]))
            whole = stop - start == len(x)  # then no offsets have to be read
            own = given if given is None or whole else given.samples(start, stop)
            mine = of_run(control, start, stop, len(x))
            out.append(self._part(images, own, mine))
        return out

    def _part(
        self, x: Tensor, given: Cells | None, control: dict[str, Any]
    ) -> tuple[Tensor, Cells]:
        self.check_image(x)
        x = self.whole(x)
        if given is None:
            check_controls(control, self.trees.controls)
            return x, self.make(x, **control)
        check_shape(as_field(x, 2), given)
        if given.sizes != self.spec.sizes[-len(given.sizes) :]:
            raise ValueError(f"cells have sizes {given.sizes}, the model {self.spec.sizes}")
        return x, given

    def whole(self, x: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b gh gw"]:
        """Returns the part of images that patches cover: all of it if it is padded."""
        sides = zip(x.shape[-2:], self.spec.sizes[-1][1:], strict=True)
        height, width = (n if self.pad else n - n % patch for n, patch in sides)
        return x if (height, width) == tuple(x.shape[-2:]) else x[..., :height, :width]

    @torch.no_grad()
    def make(self, x: Float[Tensor, "b c h w"], **control: Any) -> Cells:
        """Returns the cells of checked images of one size."""
        if self._merges_nothing(**control):
            return finest_cells(x, self.spec)
        check_exportable("apply_apt with thresholds", self.trees.static, f"give {FIXED}")
        self.check_range(x)
        return self.trees.cells(self.restore(x), **control)

    def restore(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c gh gw"]:
        """Undoes the normalisation: whole numbers 0..255, as in 8-bit images, where patches are.

        Values outside, which augmentation may produce, are clamped.
        """
        return self._values(self.whole(x)).round_().clamp_(0, 255)

    def _values(self, x: Tensor) -> Tensor:
        mean, std = (constant(v, x.device)[:, None, None] for v in self.stats)
        return (x.float() * std).add_(mean).mul_(255)

    def check_range(self, x: Tensor) -> None:
        """Warns if the first images that are scored betray another normalisation.

        This waits for the device, once in the life of a model.
        """
        if self.checked or not x.numel() or not is_readable(x):
            return
        self.checked = True
        values = self._values(x)
        outside = float(((values < -1) | (values > 256)).float().mean())
        span = float((values.amax((0, 2, 3)) - values.amin((0, 2, 3))).max())
        if outside > 0.01 or 0 < span < 128:
            found = (
                f"{outside:.0%} of their restored values lie outside 0..255"
                if outside > 0.01
                else f"their restored values span {span:.0f} of 0..255 in any channel"
            )
            mean, std = self.stats
            warnings.warn(
                f"these images do not look normalised by the mean {mean} and standard deviation "
                f"{std} with which cells are scored: {found}. Normalise values of 0..1 so, or give "
                "apply_apt the mean= and std= of your images",
                stacklevel=2,
            )

    def check_image(self, x: Tensor) -> None:
        """Raises ``ValueError`` unless `x` is a batch of images of a usable size."""
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            given = shown(x) if isinstance(x, Tensor) else kind_of(x)
            raise ValueError(
                "images must be floating point (b, c, height, width), or a list of (c, height, "
                f"width), got {given}"
            )
        if x.shape[1] != self.spec.in_channels:
            last = x.shape[-1] == self.spec.in_channels
            hint = "; channels come first: images.movedim(-1, 1)" if last else ""
            raise ValueError(
                f"built for {self.spec.in_channels} channel(s), got {x.shape[1]}{hint}"
            )
        coarsest = self.spec.sizes[0][1:]
        if any(n < size for n, size in zip(x.shape[2:], coarsest, strict=True)):
            raise ValueError(
                f"images of {tuple(x.shape[2:])} are smaller than the coarsest cell {coarsest}; "
                "give fewer thresholds"
            )

    def check_list(self, images: Sequence[Tensor]) -> None:
        """Raises ``ValueError`` unless all are images (c, h, w) of one kind and of usable sizes."""
        if not images:
            raise ValueError("the list of images is empty")
        for i, x in enumerate(images):
            if not isinstance(x, Tensor) or x.ndim != 3:
                given = tuple(x.shape) if isinstance(x, Tensor) else kind_of(x)
                raise ValueError(f"a list holds images (c, height, width); number {i} is {given}")
            if (x.dtype, x.device) != (images[0].dtype, images[0].device):
                first, own = ((y.dtype, str(y.device)) for y in (images[0], x))
                raise ValueError(f"image {i} of the list is {own}, the first one {first}")
            try:
                self.check_image(x[None])
            except ValueError as error:
                raise ValueError(f"image {i} of the list: {error}") from None

    def _merges_nothing(self, **control: Any) -> bool:
        """Whether all thresholds are known on the host and <= 0: scores are not below zero."""
        given = control.get("thresholds", self.thresholds)
        own = getattr(self.trees.marking, "budget", None)
        capped = own is not None or control.get("budget") is not None
        if given is None or capped or isinstance(given, Tensor):
            return False
        bars = [given] if isinstance(given, int | float) else list(given)
        return len(bars) == len(self.spec.sizes) - 1 and all(bar <= 0 for bar in bars)


def finest_cells(x: Float[Tensor, "b c h w"], spec: TokenizerSpec) -> Cells:
    """Returns every patch of every image without reading values: static shapes, no sync."""
    return _every_patch(x.shape[0], tuple(x.shape[2:]), spec.sizes[-1][1:], x.device)


@cached(4)  # small models would notice
def _every_patch(
    batch: int, space: tuple[int, ...], patch: tuple[int, ...], device: torch.device
) -> Cells:
    tree = Tree(space, (patch,), "level")
    split = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)
    lengths = repeated(tree.counts().leaves, batch)
    return cells_from_splits(split, tree, frames=1, lengths=lengths)
