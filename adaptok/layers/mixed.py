"""Samples of different size in one batch: lists of fields in, lists of fields out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from adaptok.cells import Cells
from adaptok.tokens import TokenSet, check_tokens
from adaptok.utils.arguments import shown

PER_SAMPLE = ("boundary", "boxes", "budget", "levels")  # arguments that may be


def runs(shapes: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Neighbouring samples of one shape, as (start, stop)."""
    start = 0
    for _, group in itertools.groupby(shapes):
        stop = start + len(list(group))
        yield start, stop
        start = stop


def by_shape(tokens: TokenSet) -> list[TokenSet]:
    """Splits tokens into neighbouring samples of one shape; `TokenSet.cat` is the inverse."""
    if tokens.cells.mixed is None:
        return [tokens]
    return [tokens.samples(*run) for run in runs(tokens.cells.mixed)]


def check_list(fields: Any) -> None:
    """Raises ``ValueError`` for what is no list of tensors, or an empty one."""
    if not isinstance(fields, (list, tuple)) or not all(isinstance(x, Tensor) for x in fields):
        raise ValueError(f"a field is a tensor, or a list of one per sample, got {shown(fields)}")
    if not fields:
        raise ValueError("the list of fields is empty")


def takes_lists(method: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a method of a tokenizer take lists of fields (t, c, *space) of any sizes.

    Neighbours of one shape go through the method together. Budgets and boundary codes may
    be given per sample.
    """

    @functools.wraps(method)
    def call(self: Any, fields: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(fields, (list, tuple)):
            return method(self, fields, *args, **kwargs)
        batch, parts = len(fields), []
        check_list(fields)
        for start, stop in runs([x.shape for x in fields]):
            own = [_of_run(x, start, stop) for x in args]
            more = of_run(kwargs, start, stop, batch)
            parts.append(method(self, torch.stack(list(fields[start:stop])), *own, **more))
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        if len({getattr(part, "cells", part).layout for part in parts}) > 1:
            raise ValueError(
                f"the cells of {type(self).__name__} are laid out over one domain, so that a list "
                f"holds fields of one shape, got {[tuple(x.shape) for x in fields]}"
            )
        return type(parts[0]).cat(parts)

    return call


def _of_run(given: Any, start: int, stop: int) -> Any:
    if isinstance(given, (list, tuple)) and all(isinstance(x, Tensor) for x in given):
        return torch.stack(list(given[start:stop]))
    return given.samples(start, stop) if isinstance(given, Cells) else given


def of_run(given: Mapping[str, Any], start: int, stop: int, batch: int) -> dict[str, Any]:
    """The part of the arguments of a call that belongs to some of its samples: of cells, and of
    budgets, boundary codes, levels and boxes that are given per sample.
    """
    own = dict(given)
    for name, value in given.items():
        if isinstance(value, Cells):
            own[name] = value.samples(start, stop)
            continue
        per_sample = isinstance(value, Tensor) and value.ndim == (3 if name == "boundary" else 1)
        per_sample = per_sample or (isinstance(value, (list, tuple)) and name == "budget")
        per_sample = per_sample or (type(value) in (list, tuple) and name in ("boxes", "levels"))
        if per_sample and name in PER_SAMPLE and len(value) == batch:
            own[name] = value[start:stop]
    return own


def collate(samples: Sequence[Any]) -> Any:
    """Makes a batch of samples, for ``DataLoader(collate_fn=adaptok.collate)``.

    Tensors of one shape are stacked; those of different size stay a list, which models, tokenizers
    and `adaptok.vision` take. Cells and tokens go into one packed batch. Mappings and tuples are
    collated entry by entry, everything else as by torch's default.

    Raises:
        ValueError: no samples, or tensors of different rank or dtype.
    """
    samples = list(samples)
    if not samples:
        raise ValueError("there are no samples to collate")
    first = samples[0]
    if isinstance(first, (Cells, TokenSet)):
        return type(first).cat(samples)
    if isinstance(first, Tensor):
        kinds = [(x.ndim, x.dtype) for x in samples]
        if len({*kinds}) > 1:
            raise ValueError(f"samples differ in (rank, dtype): {kinds}")
        equal = all(x.shape == first.shape for x in samples)
        return default_collate(samples) if equal else samples
    if isinstance(first, Mapping):
        return {name: collate([sample[name] for sample in samples]) for name in first}
    if isinstance(first, tuple):
        columns = [collate(column) for column in zip(*samples, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    return default_collate(samples)


def decoded(decode: Callable[..., Any], tokens: TokenSet, *args: Any, **kwargs: Any) -> Any:
    """Calls a decoder, for cells that stick out of the domain with the domain that they tile, and
    keeps what it paints inside.
    """
    cells = tokens.cells
    if cells.mixed is not None or not cells.overhang:
        return decode(tokens, *args, **kwargs)
    painted = decode(tokens.replace(cells=cells.extended()), *args, **kwargs)
    return painted[(..., *map(slice, cells.shape[1:]))]


def painted(
    decoder: Any,
    tokens: TokenSet,
    *,
    field: Any,
    scored: Any = None,
    boundary: Tensor | None = None,
) -> Any:
    """Calls a decoder with what it reads: tokens, and if it says ``reads_field = True`` also the
    field that they were made of, the one that was scored, and the boundary codes.

    Such a decoder gets cells that stick out of the domain as they are.
    """
    if getattr(decoder, "reads_field", False):
        out = decoder(tokens, field=field, scored=scored, boundary=boundary)
    else:
        out = decoded(decoder, tokens)
    if not isinstance(out, (Tensor, list, tuple)):
        raise ValueError(
            f"decoder {type(decoder).__name__} must return a field (b, t, c, *space), got "
            f"{shown(out)}"
        )
    return out


def gives_lists(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a decoder take tokens of samples of different size; it returns a list of fields
    (t, c, *space) for them. See `decoded` for cells that stick out.

    One that says ``reads_field = True`` then takes lists of fields (t, c, *space), too.
    """

    @functools.wraps(forward)
    def call(self: Any, tokens: TokenSet, *args: Any, **kwargs: Any) -> Any:
        check_tokens(tokens, getattr(self, "spec", None), self)
        own = functools.partial(forward, self)
        if not getattr(self, "reads_field", False):
            own = functools.partial(decoded, own)
        if tokens.cells.mixed is None:
            return own(tokens, *args, **kwargs)
        fields = []
        for start, stop in runs(tokens.cells.mixed):
            given = {k: _of_run(value, start, stop) for k, value in kwargs.items()}
            given = of_run(given, start, stop, tokens.cells.batch_size)
            fields += own(tokens.samples(start, stop), *args, **given)
        return fields

    return call
