"""Fields times powers of ten: same cells, same prediction relative to the field."""

from __future__ import annotations

from pathlib import Path

import test_units as units
import torch
from reliability.rows import Row, tried

from adaptok.models.baselines import BASELINES, create_baseline

POWERS = [k for k in range(-30, 31) if k]


def run(folder: Path, quick: bool = False) -> list[Row]:
    """All tokenizers with all normalisations that have no unit, and all baselines."""
    powers, rows = POWERS[::20] if quick else POWERS[::3], []
    torch.manual_seed(0)
    with torch.no_grad():
        for normalise in units.NORMALISATIONS:
            tries = []
            for name, knobs in units.KNOBS.items():
                model = units.surrogate(tokenizer={"name": name, **knobs}, normalise=normalise)
                for power in powers:
                    tries.append((f"{name} 1e{power}", lambda m=model, p=power: check(m, p)))
            rows.append(tried(f"fields x 1e-30 to 1e30, tokenizers, normalise={normalise}", tries))
        tries = []
        for name in BASELINES.names():
            if name != "persistence":
                options = {"ndim": 2, "in_channels": 2, "history": 2, "shape": (16, 16)}
                model = create_baseline(name, **options, normalise="sample").eval()
                for power in powers:
                    tries.append((f"{name} 1e{power}", lambda m=model, p=power: check(m, p)))
        rows.append(tried("fields x 1e-30 to 1e30, baselines", tries))
    return rows


def check(model: torch.nn.Module, power: int) -> None:
    torch.manual_seed(0)
    units.check_units(model, (power,))
