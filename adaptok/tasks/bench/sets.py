"""Sets of track T1: small generated ones, and eight of the Well at full size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from adaptok.cells import product
from adaptok.data import FieldInfo
from adaptok.utils.boundary import BOUNDARIES

SHAPES = Path(__file__).with_name("well_sets.yaml")


@dataclass(frozen=True)
class FieldSet:
    """A set of track T1.

    Attributes:
        name: in rows.
        data: name of the solver or of the Well's set.
        shape: grid points per axis.
        channels: fields and constants.
        patches: sizes of uniform cells, fine to coarse: the budgets are as many tokens.
        words: overrides of `adaptok train` that all methods share: set, size and training.
        frames: of context.
        batch: samples per step.
        steps: of the training.
        dim: width of the transformer.
        depth: blocks of it.
        heads: of its attention.
        width: of the solver that helps a quarter of the points.
        widths: of methods without tokens, by name.
        tested: frames that a test predicts.
        generated: seconds that generating it takes; 0 for the Well, which is priced for a GPU.
    """

    name: str
    data: str
    shape: tuple[int, ...]
    channels: int
    patches: tuple[int, ...]
    words: tuple[str, ...]
    frames: int
    batch: int
    steps: int
    dim: int
    depth: int
    heads: int
    width: int
    widths: Mapping[str, int]
    tested: int
    generated: float = 0.0

    def tokens(self, patch: int) -> int:
        """Counts uniform cells."""
        return product(tuple(-(-n // patch) for n in self.shape))


def _small(
    name: str,
    data: str,
    shape: tuple[int, ...],
    channels: int,
    generate: Mapping[str, Any],
    **more: Any,
) -> FieldSet:
    steps, batch, depth = 300, more.pop("batch"), more.pop("depth")
    words = [f"data={data}", f"data.batch_size={batch}"]
    words += [f"data.generate.{knob}={value}" for knob, value in generate.items()]
    words += ["size=tiny", f"size.depth={depth}", "optim=cosine", "optim.lr=3.0e-3"]
    words += ["optim.warmup_steps=30", "trainer.accelerator=cpu", f"trainer.max_steps={steps}"]
    words += [f"trainer.val_check_interval={steps // 2}", "trainer.limit_val_batches=4"]
    narrow = {"lower_resolution": 16, "cnextunet": 8, "fno": 24, "tfno": 24}
    if len(shape) == 3:
        narrow = {"lower_resolution": 12, "cnextunet": 4, "fno": 12, "tfno": 12}
    tested = generate["test"] * (generate["frames"] - 1 + 30)
    return FieldSet(
        name,
        data,
        shape,
        channels,
        (4, 8, 16),
        tuple(words),
        1,
        batch,
        steps,
        96,
        depth,
        3,
        widths=narrow,
        tested=tested,
        **more,
    )


def _generate(train: int, valid: int, test: int) -> dict[str, int]:
    return {"train": train, "valid": valid, "test": test, "frames": 32}


SMALL = {
    one.name: one
    for one in (
        _small(
            "maze_64", "acoustic_scattering_maze", (64, 64), 5, _generate(24, 2, 8),
            batch=8, depth=3, width=64, generated=10.0,
        ),
        _small(
            "quadrants_64", "euler_multi_quadrants_periodicBC", (64, 64), 5, _generate(16, 2, 8),
            batch=8, depth=3, width=64, generated=40.0,
        ),
        _small(
            "blast_32", "supernova_explosion_64", (32, 32, 32), 6, _generate(10, 2, 4),
            batch=4, depth=2, width=32, generated=60.0,
        ),
    )
}  # fmt: skip

EIGHT = (
    "active_matter",
    "acoustic_scattering_maze",
    "turbulent_radiative_layer_2D",
    "viscoelastic_instability",
    "supernova_explosion_64",
    "shear_flow",
    "rayleigh_benard",
    "turbulence_gravity_cooling",
)


def shapes() -> dict[str, dict[str, Any]]:
    """Reads shape, fields, constants and boundaries of published sets."""
    return yaml.safe_load(SHAPES.read_text(encoding="utf-8"))


def full_size() -> dict[str, FieldSet]:
    """The eight sets of the Well, with the training of IAP's paper (App. E)."""
    found = {}
    for name in EIGHT:
        about = shapes()[name]
        shape, ndim = tuple(about["shape"]), len(about["shape"])
        points = product(shape)
        # about 4096, 1024 and 256 tokens; in 3D 4096, 512 and 64
        finest = 4 if points <= 4096 * 4**ndim else 8
        fourier = 128 if ndim < 3 else 48  # else the weights of its modes outgrow all others
        words = ["data=well", f"data.name={name}", "data.batch_size=8"]
        words += [f"size={'iap_3d' if ndim == 3 else 'iap'}", "optim=paper", "trainer=paper"]
        words += ["history=4", "history_mode=fold"]
        found[name] = FieldSet(
            name,
            name,
            shape,
            len(about["fields"]) + len(about.get("constants", ())),
            (finest, 2 * finest, 4 * finest),
            tuple(words),
            frames=4,
            batch=8,
            steps=250_000,
            dim=432 if ndim == 3 else 384,
            depth=7,
            heads=6,
            width=64,
            widths={"lower_resolution": 48, "cnextunet": 42, "fno": fourier, "tfno": fourier},
            tested=2000,
        )
    return found


def info_of(name: str) -> FieldInfo:
    """The shapes of a published set, with made-up statistics.

    Raises:
        ValueError: its shape is not known here.
    """
    known = shapes()
    if name not in known:
        raise ValueError(f"the shape of {name!r} is not known; those of {', '.join(known)} are")
    about = known[name]
    fields, constants = tuple(about["fields"]), tuple(about.get("constants", ()))
    ones, fixed = torch.ones(len(fields)), torch.ones(len(constants))
    return FieldInfo(
        name=name,
        ndim=len(about["shape"]),
        shape=tuple(about["shape"]),
        fields=fields,
        constants=constants,
        mean=0 * ones,
        std=ones,
        delta_mean=0 * ones,
        delta_std=ones,
        constant_mean=0 * fixed,
        constant_std=fixed,
        boundary=torch.tensor([[BOUNDARIES.index(b.upper())] * 2 for b in about["boundary"]]),
    )
