"""Checks of tokenizers, embeddings, processors and decoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.mixed import painted
from adaptok.testing.inputs import (
    SPACE,
    attempt,
    broken,
    random_cells,
    random_fields,
    require,
    rows_of,
)
from adaptok.tokens import Tokenizer, TokenizerSpec, TokenSet


def check_tokenizer(tokenizer: Tokenizer, *, frames: int = 1, space: tuple[int, ...] = ()) -> None:
    """Cells are valid and as the spec says, tokens are theirs, and samples do not see each other.

    Args:
        frames: field frames (t) that it is tried on.
        space: grid that it is tried on; default one of about 16 points per axis.

    Raises:
        AssertionError: names the promise that is broken.
    """
    spec = tokenizer.spec
    space = space or tuple(
        max(n, 2 * s) for n, s in zip(SPACE[spec.ndim], spec.sizes[0][1:], strict=True)
    )
    for what, field in random_fields(spec.ndim, spec.in_channels, frames=frames, space=space):
        cells = attempt(tokenizer, f"cells() of {what}", lambda f=field: tokenizer.cells(f))
        attempt(tokenizer, f"validate() of its cells on {what}", cells.validate)
        tokens = attempt(tokenizer, f"tokenizing {what}", lambda f=field: tokenizer(f))
        for name, given, wanted in (
            ("sizes", cells.sizes[-len(spec.sizes) :] if spec.rooted else cells.sizes, spec.sizes),
            ("tiling", cells.tiling, spec.tiling),
            ("shape", cells.shape, (frames, *space)),
        ):
            require(given == wanted, tokenizer, f"its cells' {name} is {wanted}, got {given}")
        require(
            tokens.features.shape == (len(cells), spec.dim),
            tokenizer,
            f"features are (n, dim) = {(len(cells), spec.dim)}, got {tuple(tokens.features.shape)}",
        )
        require(tokens.features.isfinite().all(), tokenizer, f"features are finite on {what}")
        again = tokenizer.embed(field, cells)
        require(
            _same_cells(tokens.cells, cells) and torch.equal(again.features, tokens.features),
            tokenizer,
            "a call is embed(field, cells(field))",
        )
        if not getattr(getattr(tokenizer, "marking", None), "per_batch", False):
            _check_alone(tokenizer, tokens, field, what)


def _check_alone(tokenizer: Tokenizer, tokens: TokenSet, field: Tensor, what: str) -> None:
    for sample, one in enumerate(field):
        alone, rows = tokenizer(one[None]), rows_of(tokens.cells, sample)
        require(
            torch.equal(alone.cells.origin, tokens.cells.origin[rows])
            and torch.equal(alone.cells.size, tokens.cells.size[rows])
            and torch.allclose(alone.features, tokens.features[rows], atol=1e-5, rtol=1e-4),
            tokenizer,
            f"tokens of a sample depend on it alone, not so on {what}",
        )


def check_embedding(
    embedding: Callable[[Tensor, Cells], Tensor], spec: TokenizerSpec, *, cells: Cells | None = None
) -> None:
    """Features are (n, dim), follow their rows, and see neither other samples nor other cells'
    order.

    Args:
        spec: of a tokenizer that has this embedding.
        cells: to try it on; default random tilings on the grids of `spec`.

    Raises:
        AssertionError: names the promise that is broken.
    """
    cells = random_cells(spec) if cells is None else cells
    generator = torch.Generator().manual_seed(2)
    shape = (cells.batch_size, cells.shape[0], spec.in_channels, *cells.shape[1:])
    x = torch.randn(shape, generator=generator)
    features = attempt(embedding, "embedding", lambda: embedding(x, cells))
    require(
        features.shape == (len(cells), spec.dim),
        embedding,
        f"features are (n, dim) = {(len(cells), spec.dim)}, got {tuple(features.shape)}",
    )
    _check_samples(embedding, features, cells, lambda y: embedding(y, cells), x)
    order = torch.arange(len(cells))
    for sample in range(cells.batch_size):
        order[rows_of(cells, sample)] = order[rows_of(cells, sample)].flip(0)
    turned = dataclasses.replace(
        cells, origin=cells.origin[order], size=cells.size[order], level=cells.level[order]
    )
    require(
        torch.allclose(embedding(x, turned), features[order], atol=1e-5),
        embedding,
        "features follow their cells when those are given in another order",
    )
    _check_gradients(embedding, features)


def check_processor(
    processor: Callable[[TokenSet], TokenSet], spec: TokenizerSpec, *, cells: Cells | None = None
) -> None:
    """Tokens keep their cells, stay finite, and see no other sample.

    Args:
        spec: that it was built for.
        cells: to try it on; default random tilings on the grids of `spec`.

    Raises:
        AssertionError: names the promise that is broken.
    """
    cells = random_cells(spec) if cells is None else cells
    x = torch.randn(len(cells), spec.dim, generator=torch.Generator().manual_seed(3))
    tokens = attempt(processor, "processing", lambda: processor(TokenSet(x, cells)))
    if not isinstance(tokens, TokenSet):
        broken(processor, f"it returns a TokenSet, got {type(tokens).__name__}")
    require(_same_cells(tokens.cells, cells), processor, "its tokens have the cells they came with")
    require(tokens.features.isfinite().all(), processor, "features are finite")
    with _evaluating(processor):
        before = processor(TokenSet(x, cells)).features
        for sample in range(cells.batch_size):
            rows = rows_of(cells, sample)
            y = x.clone()
            y[rows] = 0
            after = processor(TokenSet(y, cells)).features
            others = torch.ones(len(cells), dtype=torch.bool)
            others[rows] = False
            require(
                torch.allclose(after[others], before[others], atol=1e-5),
                processor,
                f"tokens see no other sample; those beside sample {sample} changed with it",
            )
    _check_gradients(processor, tokens.features)


def check_decoder(
    decoder: Callable[..., Tensor],
    spec: TokenizerSpec,
    out_channels: int,
    *,
    cells: Cells | None = None,
) -> None:
    """The field has the shape that the cells were made for, is finite, and samples do not mix.

    A decoder that says ``reads_field = True`` gets a random field as well.

    Args:
        spec: that it was built for.
        out_channels: that it was built for.
        cells: to try it on; default random tilings on the grids of `spec`.

    Raises:
        AssertionError: names the promise that is broken.
    """
    cells = random_cells(spec) if cells is None else cells
    x = torch.randn(len(cells), spec.dim, generator=torch.Generator().manual_seed(4))
    b, t, *space = cells.batch_size, *cells.shape
    read = torch.randn(b, t, spec.in_channels, *space, generator=torch.Generator().manual_seed(5))

    def decode(features: Tensor) -> Tensor:
        return painted(decoder, TokenSet(features, cells), field=read)

    field = attempt(decoder, "decoding", lambda: decode(x))
    wanted = (b, t, out_channels, *space)
    require(
        tuple(field.shape) == wanted, decoder, f"the field is {wanted}, got {tuple(field.shape)}"
    )
    require(field.isfinite().all(), decoder, "the field is finite")
    with _evaluating(decoder):
        before = decode(x)
        for sample in range(b):
            y = x.clone()
            y[rows_of(cells, sample)] = 0
            after = decode(y)
            others = [i for i in range(b) if i != sample]
            require(
                torch.allclose(after[others], before[others], atol=1e-5),
                decoder,
                f"samples do not mix; those beside sample {sample} changed with it",
            )
    _check_gradients(decoder, field)


def _check_samples(
    part: Any, out: Tensor, cells: Cells, call: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    for sample in range(cells.batch_size):
        y = x.clone()
        y[sample] = 0
        others = torch.ones(len(cells), dtype=torch.bool)
        others[rows_of(cells, sample)] = False
        require(
            torch.allclose(call(y)[others], out[others], atol=1e-5),
            part,
            f"features see no other sample; those beside sample {sample} changed with it",
        )


def _check_gradients(part: Any, out: Tensor) -> None:
    if not isinstance(part, nn.Module) or not any(p.requires_grad for p in part.parameters()):
        return
    weights = {name: p for name, p in part.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(out.square().sum(), list(weights.values()), allow_unused=True)
    missing = [name for name, grad in zip(weights, found, strict=True) if grad is None]
    require(not missing, part, f"every parameter gets a gradient, not so {', '.join(missing)}")


@contextmanager
def _evaluating(part: Any) -> Iterator[None]:
    """The part in evaluation mode inside the block, so that nothing is drawn at random."""
    training = isinstance(part, nn.Module) and part.training
    if training:
        part.eval()
    yield
    if training:
        part.train()


def _same_cells(a: Cells, b: Cells) -> bool:
    names = ("origin", "size", "level", "cu_seqlens")
    return len(a) == len(b) and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)
