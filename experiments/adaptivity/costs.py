"""Sets and models of the study, and what they cost, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

TAPS, MLP = 3, 2  # of the decoder refine, and of size=tiny
CHECKS, VALIDATED = 6, 8  # validations of a training, and their batches
# Operations of a forward pass over those of uniform cells; measured in docs/headline.md.
FACTORS = {"apt": 1.6, "csm": 1.2}
# Of one core, forward and backward, measured on a few steps of maze and blast.
OPERATIONS, OPERATIONS_OF_HELP = 22e9, 12e9  # per second
STEP_SECONDS = 8e-3  # per step, of loader and trainer
START_SECONDS = 8.0  # per row: imports, data and composition


@dataclass(frozen=True)
class Set:
    """A generated set.

    Attributes:
        solver: its name in adaptok.
        ndim: space axes.
        points: grid points per axis.
        fields: channels that are predicted.
        constants: channels that are static.
        tokens: of the main comparison.
        width: of the sparse solver.
        batch: samples per step.
        depth: of the processor.
        generate: knobs of the solver.
        making: seconds that generating it takes, by those of a smaller one.
    """

    solver: str
    ndim: int
    points: int
    fields: int
    constants: int
    tokens: int
    width: int
    batch: int
    depth: int
    generate: Mapping[str, Any] = field(default_factory=dict)
    making: float = 20.0

    def patch(self, tokens: int) -> int:
        """Returns the size of uniform cells."""
        return round(self.points / tokens ** (1 / self.ndim))

    def tokens_at(self, patch: int) -> int:
        """Returns the number of uniform cells."""
        return (self.points // patch) ** self.ndim

    @property
    def tested(self) -> int:
        """Frames that a test predicts: one step, and rollouts of 16."""
        return self.generate["test"] * (self.generate["frames"] - 1 + 16)


def _generate(train: int, valid: int, test: int, frames: int, **more: Any) -> dict[str, Any]:
    return {"train": train, "valid": valid, "test": test, "frames": frames, **more}


SETS = {
    "maze": Set("acoustic_scattering_maze", 2, 64, 3, 2, 64, 64, 8, 3, _generate(24, 2, 8, 32)),
    "euler": Set(
        "euler_multi_quadrants_periodicBC", 2, 64, 5, 0, 64, 64, 8, 3, _generate(24, 4, 8, 17)
    ),
    "blast": Set("supernova_explosion_64", 3, 32, 6, 0, 64, 32, 4, 2, _generate(16, 2, 6, 17)),
    # Pulses and a shock that fill a small part of a large domain.
    "maze_256": Set(
        *("acoustic_scattering_maze", 2, 256, 3, 2, 256, 64, 4, 3),
        _generate(10, 1, 3, 24, resolution=256, nodes=16, pulses=3),
        making=200.0,
    ),
    "blast_64": Set(
        *("supernova_explosion_64", 3, 64, 6, 0, 64, 32, 2, 2),
        _generate(10, 1, 3, 17, resolution=64),
        making=600.0,
    ),
}


@dataclass(frozen=True)
class Model:
    """A surrogate of the study.

    Attributes:
        cells: tokenizer.
        tokens: per sample.
        dim: width of the transformer.
        halo: grid points around each cell.
        width: of the solver at full resolution; 0 for none, the model as published.
        share: of the points that the solver sees.
        smooth: channels of the dense network over the result.
        points: the indicator that chooses them, or "random".
        depth: pointwise layers of the solver.
        stencil: its spacings.
        scores_constants: whether the indicator of the cells sees static channels.
    """

    cells: str
    tokens: int
    dim: int = 96
    halo: int = 0
    width: int = 0
    share: float = 1.0
    smooth: int = 0
    points: str = "gradient"
    depth: int = 1
    stencil: tuple[int, ...] = (1, 3)
    scores_constants: bool = False


def flops(model: Model, about: Set) -> float:
    """Counts the operations of a forward pass per sample, for uniform cells exactly.

    A multiplication and an addition are two. Of other cells, `FACTORS` is what they cost more.
    """
    return flops_as_published(model, about) + flops_of_help(model, about)


def flops_as_published(model: Model, about: Set) -> float:
    """Counts embedding, transformer and linear decoder."""
    n, d, k = model.tokens, model.dim, about.ndim
    points, inputs = about.points**k, about.fields + about.constants
    total = about.depth * ((8 + 4 * MLP) * n * d**2 + 4 * n**2 * d)
    total += 2 * points * (inputs + about.fields) * d
    patch = about.patch(n)
    total += 2 * n * inputs * ((patch + 2 * model.halo) ** k - patch**k) * d
    return total * FACTORS.get(model.cells, 1.0)


def flops_of_help(model: Model, about: Set) -> float:
    """Counts what the decoder refine does beside its base."""
    if not model.width:
        return 0.0
    k, w = about.ndim, model.width
    blocks, inputs = (about.points // 2) ** k, about.fields + about.constants
    chosen = 2**k * round(model.share * blocks)
    taps = inputs * len(model.stencil) * TAPS**k
    total = 2 * chosen * (taps * w + model.depth * w * w + w * about.fields)
    total += 4 * model.tokens * model.dim * w
    around = (about.points + 2) ** k
    total += 2 * around * (inputs + about.fields) * TAPS**k * model.smooth
    return total + 2 * about.points**k * model.smooth * TAPS**k * about.fields


def fitting_width(model: Model, about: Set, target: float) -> int | None:
    """Finds the width of the solver whose operations are nearest to a target.

    Returns:
        The width, None if not even 2 channels fit.
    """
    counts = {w: flops(replace(model, width=w), about) for w in range(2, 257)}
    width = min(counts, key=lambda w: abs(counts[w] - target))
    return width if counts[2] <= target else None


def seconds(model: Model, about: Set, steps: int) -> float:
    """Estimates the seconds of one core that a row takes, its test included."""
    per_sample = 3 * flops_as_published(model, about) / OPERATIONS
    per_sample += 3 * flops_of_help(model, about) / OPERATIONS_OF_HELP
    forward = about.tested + CHECKS * VALIDATED * about.batch  # a third of a training step's
    took = (steps * about.batch + forward / 3) * per_sample + steps * STEP_SECONDS
    return START_SECONDS + took
