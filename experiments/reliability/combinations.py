"""Random valid combinations of parts on random fields, against oracles that need no reference."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from reliability.rows import Row, Wrong, attempt, row
from torch import Tensor

from adaptok.cells import Cells
from adaptok.models.combinations import build, candidates

SPACES = {1: [(64,), (53,)], 2: [(32, 32), (24, 40), (19, 26)], 3: [(16, 16, 16), (16, 18, 20)]}


def field(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws a field of a kind that is hard for someone."""
    x = torch.randn(shape, generator=generator)
    if kind == "smooth":
        return x.cumsum(-1) / 4
    if kind == "sparse":
        return x * (x > 1.5)
    if kind == "quantised":
        return (x * 2).round()
    if kind == "one constant sample":
        x[0] = 1.7
    return torch.full(shape, 0.3) if kind == "constant" else x


KINDS = ("noise", "smooth", "sparse", "quantised", "one constant sample", "constant")


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in other strides."""
    wide = torch.stack([x, x + 1], -1)
    padded = torch.nn.functional.pad(x, (3, 2))
    return {
        "transposed": x.transpose(-1, 1).contiguous().transpose(-1, 1),
        "every second": wide[..., 0],
        "part of a larger one": padded[..., 3:-2],
    }


def same(a: Cells, b: Cells) -> Wrong:
    names = ("origin", "size", "level", "cu_seqlens")
    for name in names:
        if not torch.equal(getattr(a, name), getattr(b, name)):
            return f"other {name}"
    return None


def off(a: Tensor, b: Tensor, tolerance: float) -> Wrong:
    """Compares relative to the largest value."""
    if a.shape != b.shape:
        return f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    error = float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) if a.numel() else 0.0
    return None if error <= tolerance else f"off by {error:.2g}"


def oracles(model: Any, x: Tensor) -> dict[str, list[Wrong]]:
    """Holds a model against each oracle."""
    out: dict[str, list[Wrong]] = defaultdict(list)
    cells = model.cells(x)
    out["cells are valid, and tile the domain where they promise it"].append(
        attempt("cells", lambda: cells.validate() and None)
    )
    model.eval()
    with torch.no_grad():
        tokens, whole = model.tokenizer(model.prepare(x)), model(x)
        for i in range(len(x)):
            alone, rows = x[i : i + 1], slice(*cells.cu_seqlens[i : i + 2].tolist())
            own = model.cells(alone)
            wrong = None if torch.equal(own.origin, cells.origin[rows]) else "other cells"
            out["batch equals samples: cells"].append(wrong)
            out["batch equals samples: output"].append(off(model(alone), whole[i : i + 1], 1e-4))
            single = model.tokenizer(model.prepare(alone)).features
            batched = tokens.split()[i]
            out["batch equals samples: features"].append(off(single, batched, 1e-4))
    for name, other in layouts(x).items():
        wrong = same(model.cells(other), cells)
        out["non-contiguous layouts give the same cells"].append(wrong and f"{name}: {wrong}")
    back = tokens.from_padded(tokens.padded()[0])
    equal = torch.equal(back.features, tokens.features)
    out["packed = padded round trip"].append(None if equal else "other bits")
    model.train()
    model(x).square().mean().backward()
    bad = [
        n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    ]
    out["gradients are finite"].append(f"{bad[0]}" if bad else None)
    return out


def run(folder: Path, quick: bool = False) -> list[Row]:
    """Draws combinations, spaces and fields; what is refused with a ValueError is not counted."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    every, goal = list(candidates()), 20 if quick else 400
    found: dict[str, list[Wrong]] = defaultdict(list)
    built = refused = 0
    while built < goal:
        parts, ndim = draw.choice(every), draw.choice([1, 2, 2, 3])
        space, kind = draw.choice(SPACES[ndim]), draw.choice(KINDS)
        x = field(kind, (draw.choice([2, 3]), 2, 2, *space), generator)
        name = f"{' '.join(f'{k}={v}' for k, v in parts.items())} {kind} {space}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(built)
            try:
                model = build(parts, ndim=ndim, dim=24)
            except ValueError:
                refused += 1
                continue
            built += 1
            try:
                for what, wrong in oracles(model, x).items():
                    found[what] += [w and f"{name}: {w}" for w in wrong]
            except Exception as error:
                found["runs through"].append(f"{name}: {type(error).__name__}: {error}")
            else:
                found["runs through"].append(None)
    note = f"{refused} more were refused when they were built"
    rows = [row("random valid combinations run through", found.pop("runs through"), note)]
    return rows + [row(f"... {what}", wrong) for what, wrong in found.items()]
