"""torch.compile for models: the whole step for static shapes, else the processor in buckets."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from adaptok.tokens import TokenSet

BUCKET = 256  # rows
GRAPHS = 256  # that a model may have; torch's own limit is 8


def is_static(tokenizer: Any) -> bool:
    """Whether the number of tokens follows from the settings of a call, whatever the content.

    A tokenizer says so by an attribute ``static``; without one it is taken to be ragged.
    """
    return bool(getattr(tokenizer, "static", False))


def compile_model(model: nn.Module, mode: str | None = None) -> None:
    """Compiles a one-step model in place; weights keep their names.

    If the number of tokens is static (and the decoder does not say ``static = False``), the whole
    step becomes one graph per shape and setting, up to `GRAPHS` of them, so that a process may
    sweep over more budgets than torch's limit of 8. If it follows from the content, tokenizer and
    decoder stay eager, and the processor is compiled once per bucket, see `in_bucket`; with a
    reducer it stays eager, because how many tokens are left depends on the lengths.

    Args:
        model: a surrogate or a baseline.
        mode: of ``torch.compile``, such as "reduce-overhead" (CUDA graphs).
    """
    tokenizer = getattr(model, "tokenizer", None)
    paints_static = getattr(getattr(model, "decoder", None), "static", True)
    if tokenizer is None or (is_static(tokenizer) and paints_static):
        model.compile(fullgraph=True, dynamic=False, mode=mode, **many_graphs())
        return
    processor: Any = model.processor
    if getattr(processor, "reducer", None) is not None:
        return
    processor.forward = InBuckets(processor, mode)


class InBuckets:
    """Runs a processor compiled, in buckets; in place of its ``forward``.

    A copy, or what was pickled, compiles the processor that it was copied with.

    Args:
        processor: whose class says what is computed.
        mode: of ``torch.compile``.
    """

    def __init__(self, processor: nn.Module, mode: str | None):
        self.processor, self.mode = processor, mode
        self._compiled = self._compile()

    def __getstate__(self) -> dict[str, Any]:
        return {"processor": self.processor, "mode": self.mode, "_compiled": None}

    def _eager(self) -> Callable[..., TokenSet]:
        return MethodType(type(self.processor).forward, self.processor)

    def _compile(self) -> Callable[..., TokenSet]:
        options = {"fullgraph": True, "dynamic": False, "mode": self.mode, **many_graphs()}
        return torch.compile(self._eager(), **options)

    def __call__(self, tokens: TokenSet, *reuse: Any) -> TokenSet:
        """Processes tokens; with `Reuse`, whose state no graph can hold, uncompiled."""
        if reuse:
            return self._eager()(tokens, *reuse)
        if self._compiled is None:
            self._compiled = self._compile()
        features = self._compiled(in_bucket(tokens)).features
        return tokens.replace(features=features[: len(tokens.cells)])


def many_graphs() -> dict[str, Any]:
    """Options for ``torch.compile`` that let a model have `GRAPHS` graphs of its own."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": GRAPHS, "isolate_recompiles": True}
    dynamo: Any = importlib.import_module("torch._dynamo.config")  # an older torch, for all models
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    return {}


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it runs compiled graphs, which cannot be inspected."""
    whole = any(part._compiled_call_impl is not None for part in model.modules())
    return whole or "forward" in vars(getattr(model, "processor", model))


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Runs a model that `compile_model` compiled without its graphs.

    Hooks that collect would be part of a graph, and every call would make a new one.
    """
    graphs = [(part, part._compiled_call_impl) for part in model.modules()]
    own = vars(getattr(model, "processor", model))
    forward = own.pop("forward", None)
    for part, _ in graphs:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, graph in graphs:
            part._compiled_call_impl = graph
        if forward is not None:
            own["forward"] = forward


def in_bucket(tokens: TokenSet, rows: int = BUCKET) -> TokenSet:
    """Pads tokens to a multiple of `rows`, so that few different shapes occur.

    The filler is a separate sample at the end, so it attends to nothing else, nothing attends to
    it, and no kernel meets a row beyond the last offset. Batches that round up to the same multiple
    (in all, and in the longest sample) share a graph.
    """
    cells, n = tokens.cells, len(tokens.cells)
    more = -n % rows
    ends = cells.cu_seqlens.new_tensor([n + more])
    mixed = None if cells.mixed is None else (*cells.mixed, cells.mixed[0])
    filled = cells.replace(
        **{name: _fill(getattr(cells, name), more) for name in ("origin", "size", "level")},
        cu_seqlens=torch.cat([cells.cu_seqlens, ends]),
        max_seqlen=-(-max(cells.max_seqlen, more, 1) // rows) * rows,
        lengths=None,  # these would be constants of the graph
        tiling=False,
        mixed=mixed,
        bounded=False,
    )
    cond = None if tokens.cond is None else _fill(tokens.cond, 1)
    payload = {name: _fill(value, more) for name, value in tokens.payload.items()}
    return TokenSet(_fill(tokens.features, more), filled, cond, payload=payload)


def _fill(x: Tensor, more: int) -> Tensor:
    """Appends copies of the first row, whose geometry is certainly valid."""
    return torch.cat([x, x[:1].expand(more, *x.shape[1:])]) if more and len(x) else x
