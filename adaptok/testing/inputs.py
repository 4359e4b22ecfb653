"""Small random inputs, and how a broken promise is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

from adaptok.cells import Cells
from adaptok.tokenizers.indicators import relative_errors
from adaptok.tokens import TokenizerSpec
from adaptok.tree import Tree, cells_from_splits

SPACE = {1: (16,), 2: (16, 24), 3: (8, 16, 8)}  # divide by the sizes of trees below
ODD_SPACE = {1: (13,), 2: (13, 18), 3: (9, 11, 9)}  # do not


def name_of(part: Any) -> str:
    """How messages call a part."""
    return getattr(part, "__name__", type(part).__name__)


def require(holds: bool | Tensor, part: Any, promise: str) -> None:
    """Raises ``AssertionError`` if it does not hold."""
    if not bool(holds):
        broken(part, promise)


def broken(part: Any, promise: str) -> NoReturn:
    """Raises ``AssertionError`` that names the part and the promise."""
    raise AssertionError(f"{name_of(part)}: {promise}")


def attempt(part: Any, what: str, call: Callable[[], Any]) -> Any:
    """The result of a call; an error becomes one that says what was tried."""
    try:
        return call()
    except Exception as error:
        raise AssertionError(
            f"{name_of(part)}: {what} raised {type(error).__name__}: {error}"
        ) from error


def random_fields(
    ndim: int, channels: int, *, batch: int = 3, frames: int = 1, space: tuple[int, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Named fields (b, t, c, *space): rough, smooth, with a jump, constant, and tiny units."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, frames, channels, *(space or SPACE[ndim]))
    rough = torch.randn(shape, generator=generator)
    yield "a rough field", rough
    yield "a smooth field", rough.cumsum(-1) / 10
    jump = torch.zeros(shape)
    jump[..., shape[-1] // 2 :] = 1.0
    yield "a jump", jump + rough[:, :, :, *([slice(0, 1)] * ndim)]
    yield "a constant field", torch.ones(shape)
    yield "a field in tiny units", rough * 1e-12


def trees(ndim: int) -> Iterator[Tree]:
    """Trees of three levels over a domain that divides and over one that does not, and of one
    level.
    """
    sizes = tuple((size,) * ndim for size in (8, 4, 2))
    for space in (SPACE[ndim], ODD_SPACE[ndim]):
        yield Tree(space, sizes)
    yield Tree(SPACE[ndim], sizes[-1:])


def random_errors(tree: Tree, *, batch: int = 3, frames: int = 1) -> Tensor:
    """Errors (b, f, nodes) of a rough field, as markings with ``needs_errors`` get them."""
    generator = torch.Generator().manual_seed(2)
    field = torch.randn(batch * frames, 1, 1, *tree.shape, generator=generator)
    return relative_errors(field, tree).unflatten(0, (batch, frames))


def random_cells(spec: TokenizerSpec, *, batch: int = 3) -> Cells:
    """Random tilings into cells on the grids of `spec`, of different numbers per sample."""
    frame, *coarsest = spec.sizes[0]
    space = tuple(2 * c if axis < 2 else c for axis, c in enumerate(coarsest))
    tree = Tree(space, tuple(size[1:] for size in spec.sizes))
    chance = torch.rand(batch, 1, tree.inner, generator=torch.Generator().manual_seed(1))
    split = chance < torch.linspace(0.2, 0.8, batch).view(-1, 1, 1)
    return cells_from_splits(split, tree, frames=1, frame_size=frame)


def rows_of(cells: Cells, sample: int) -> slice:
    """The rows of one sample."""
    start, end = cells.cu_seqlens[sample : sample + 2].tolist()
    return slice(start, end)
