"""torch.compile against eager on batches whose size, shape, budget and content change."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from reliability.rows import Row, Wrong, attempt, row
from torch import Tensor

import adaptok
from adaptok.models.compiling import compile_model

PARTS: dict[str, dict[str, Any]] = {
    "iap": {"tokenizer": {"name": "iap", "budget": 40, "max_size": 8}},
    "iap, cross-attention": {
        "tokenizer": {"name": "iap", "budget": 40, "max_size": 8},
        "decoder": "cross_attention",
    },
    "uniform, axial": {"tokenizer": {"name": "uniform", "size": 4}, "processor": "axial"},
    "matey": {"tokenizer": {"name": "matey", "sizes": (2, 8)}},
    "matey, spacetime": {"tokenizer": {"name": "matey", "sizes": (2, 8)}, "processor": "spacetime"},
    "apt": {"tokenizer": {"name": "apt", "min_size": 2, "thresholds": (4.5, 3.5)}},
    "ckm": {"tokenizer": {"name": "ckm", "patch_sizes": (4, 8)}, "decoder": "modulated"},
}
Pass = tuple[Tensor, dict[str, Tensor]]  # output, and the gradient of every parameter
BATCHES = ((2, 32, 32), (3, 32, 32), (1, 32, 32), (2, 24, 40), (2, 32, 32), (4, 16, 48))


def field(number: int, batch: int, *space: int) -> Tensor:
    """A field whose content, and so the cells, changes with the number."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(batch, 2, 2, *space, generator=generator).cumsum(-1)
    x[: batch // 2, ..., : space[0] // 2, :] = 0.7  # a quiet half in some samples
    return x


def passed(model: Any, x: Tensor) -> Pass:
    """Output, and the gradient of every parameter."""
    model.zero_grad()
    out = model(x)
    out.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), gradients


def differs(eager: Pass, other: Pass) -> Wrong:
    out, wanted = other[0], eager[0]
    if not torch.allclose(out, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4):
        return f"output off by {float((out - wanted).abs().max()):.2g}"
    if other[1].keys() != eager[1].keys():
        return "other parameters have gradients"
    largest = max(float(g.abs().max()) for g in eager[1].values() if g.numel())
    for name, gradient in eager[1].items():
        if gradient.numel() and float((other[1][name] - gradient).abs().max()) > 1e-3 * largest:
            return f"gradient of {name}"
    return None


def compared(name: str, backend: str, batches: int) -> list[Wrong]:
    """Passes batches through a model, eager and compiled."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    make: dict[str, Any] = {"ndim": 2, "in_channels": 2, "history": 2, "dim": 24}
    model = adaptok.create_surrogate(**make, depth=1, heads=2, **PARTS[name])
    fields = [field(n, *b) for n, b in enumerate(BATCHES[:batches])]
    eager = [passed(model, x) for x in fields]
    torch.compiler.set_default_backend(backend)
    try:
        compile_model(model)
        return [
            attempt(
                f"{name}, {backend}, batch {n} {tuple(x.shape)}",
                lambda x=x, wanted=wanted: differs(wanted, passed(model, x)),
            )
            for n, (x, wanted) in enumerate(zip(fields, eager, strict=True))
        ]
    finally:
        torch.compiler.set_default_backend("inductor")
        torch._dynamo.reset()


def run(folder: Path, quick: bool = False) -> list[Row]:
    """All models with the graphs run as they are, two with Inductor; `quick`: one of each."""
    rows, names = [], [*PARTS]
    for backend, chosen, batches in (
        ("aot_eager", names[:1] if quick else names, len(BATCHES)),
        ("inductor", names[:1] if quick else ["iap", "matey"], 2),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [wrong for name in chosen for wrong in compared(name, backend, batches)]
        what = f"torch.compile ({backend}) equals eager on changing batches"
        rows.append(row(what, found, f"output and gradients of {len(chosen)} models"))
    return rows
