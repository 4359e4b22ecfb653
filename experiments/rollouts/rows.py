"""The rows of the study: sets, trainings and what is tried in the rollouts of each."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

SEEDS = (0, 1, 2)
PLAIN = "as trained"
STEPS, FEWER_STEPS = 64, 30  # of the rollouts: of decisive rows, of others
CHECKS, VALIDATED = 4, 8  # validations of a training, and their batches
TRAINED = 400  # steps
FINEST, PATCH, COARSEST = 4, 8, 16  # cell sizes in grid points; uniform cells have the middle one


@dataclass(frozen=True)
class Set:
    """A generated set.

    Attributes:
        solver: its name in adaptok.
        ndim: space axes.
        tokens: of every model.
        generate: knobs of the solver.
        conserved: fields whose sums do not change.
        batch: samples per step.
        slower: seconds of a step over those of a set in 2D.
        making: seconds that generating it takes.
    """

    solver: str
    ndim: int
    tokens: int
    generate: Mapping[str, Any]
    conserved: tuple[str, ...] = ()
    batch: int = 8
    slower: float = 1.0
    making: float = 30.0


def _generate(train: int, valid: int, test: int, **more: Any) -> dict[str, Any]:
    return {"train": train, "valid": valid, "test": test, "frames": STEPS + 1, **more}


SETS = {
    "euler": Set(
        *("euler_multi_quadrants_periodicBC", 2, 64, _generate(16, 2, 8)),
        ("energy", "density", "momentum_x", "momentum_y"),
    ),
    "shear": Set(  # 48 x 96 points
        *("shear_flow", 2, 72, _generate(16, 4, 8, resolution=48)),
        ("tracer", "velocity_x", "velocity_y"),
    ),
    "maze": Set("acoustic_scattering_maze", 2, 64, _generate(16, 2, 8)),
    "blast": Set(
        *("supernova_explosion_64", 3, 64, _generate(6, 1, 4)), batch=4, slower=3.0, making=200.0
    ),
}
FIRST = ("euler", "shear")  # sets with sums that hold, and the first two of four


@dataclass(frozen=True)
class Variant:
    """What is tried in a rollout, of weights that are there.

    Attributes:
        setting: of the rollout.
        conserve: whether sums are kept by a shift.
    """

    setting: Mapping[str, Any] = field(default_factory=dict)
    conserve: bool = False


@dataclass(frozen=True)
class Row:
    """A training, and the variants of its rollouts.

    Attributes:
        data: name of the set.
        name: of the training.
        seed: of weights and order.
        wave: rows run wave by wave.
    """

    data: str
    name: str
    seed: int
    wave: int

    @property
    def label(self) -> str:
        return f"{self.data}-{self.name}-{self.seed}"

    @property
    def steps(self) -> int:
        """Steps of the rollouts."""
        return STEPS if self.name in MODELS else FEWER_STEPS

    @property
    def period(self) -> int:
        """Grid points after which borders of cells repeat: that of the coarsest ones."""
        return COARSEST if self.name.startswith(TREES) else PATCH

    @property
    def key(self) -> str:
        """Hash of all that decides the weights."""
        return hashed([*self.overrides(), self.seed])

    def key_of(self, variant: str) -> str:
        """Hash of all that decides the numbers of a variant."""
        tried = self.variants()[variant]
        return hashed([self.key, self.steps, self.period, tried.setting, tried.conserve])

    def overrides(self) -> list[str]:
        """Returns what is given to `adaptok train`."""
        about = SETS[self.data]
        words = [f"data={about.solver}", f"data.batch_size={about.batch}"]
        words += [f"data.generate.{knob}={value}" for knob, value in about.generate.items()]
        words += ["size=tiny", "size.dim=96", "size.depth=3", "size.heads=3", "optim=cosine"]
        words += ["optim.lr=3.0e-3", "optim.warmup_steps=30", "trainer.accelerator=cpu"]
        words += [f"trainer.limit_val_batches={VALIDATED}", f"trainer.max_steps={TRAINED}"]
        words += [f"trainer.val_check_interval={TRAINED // CHECKS}"]
        return [*words, *trained(self.name, about)]

    def variants(self) -> dict[str, Variant]:
        """Returns what is tried, by name; as it was trained first."""
        return dict(variants(self.name, SETS[self.data], self.steps))


def hashed(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


MODELS = ("uniform", "iap", "coarse_fine", "csm")  # whose trainings know nothing of rollouts
FURTHER = (  # those for rollouts, the price of tokens, and local conservation
    *("iap_all", "coarse_fine_all", "uniform_all", "coarse_fine_unroll", "priced"),
    *("iap_jittered", "conservative", "iap_unroll", "iap_noise", "coarse_fine_noise"),
    "uniform_jittered",
)
TREES = ("iap", "priced", "conservative")
PATCHES = [{"patch_size": size} for size in (PATCH, FINEST, COARSEST)]
# In as many steps as this has members, tokens are those of the middle size, in 2D and but for
# what CSM saves, whose overlapping patches are fewer in a periodic domain.
EQUAL = [*PATCHES, *[PATCHES[2]] * 3]
CURRICULUM = f"schedule.steps=[{TRAINED // 2}, {TRAINED // 4}]"


def _stages(more: str = "") -> list[str]:
    settings = ", ".join(f"{{unroll: {count}{more}}}" for count in (1, 2, 4))
    return ["schedule=stages", f"schedule.settings=[{settings}]", CURRICULUM]


TRAINING = {  # how trainings for rollouts differ from those
    "noise": ["schedule.settings=[{noise: 0.01}]"],
    "jittered": ["schedule.settings=[{jitter: 0}]"],
    "unroll": _stages(),
    "all": _stages(", noise: 0.01, jitter: 0"),
}


def trained(name: str, about: Set) -> list[str]:
    """Returns tokenizer, decoder and schedule of a training."""
    model, _, how = name.rpartition("_") if name.rpartition("_")[2] in TRAINING else (name, "", "")
    tree = [f"tokenizer.min_size={FINEST}", f"tokenizer.max_size={COARSEST}"]
    sizes = ", ".join(f"{{patch_size: {size}}}" for size in (FINEST, PATCH, COARSEST))
    words = {
        "uniform": ["tokenizer=uniform", f"tokenizer.size={PATCH}"],
        "iap": ["tokenizer=iap", *tree, f"tokenizer.budget={about.tokens}"],
        "coarse_fine": ["tokenizer=coarse_fine", f"tokenizer.size={PATCH}"],
        "csm": ["tokenizer=csm", "schedule=random", f"schedule.settings=[{sizes}]"],
        "priced": ["tokenizer=near_best", *tree, "tokenizer.price=1e-4", f"budget={about.tokens}"],
        "conservative": [
            *("tokenizer=iap", *tree, f"tokenizer.budget={about.tokens}"),
            *("decoder=conservative", f"decoder.channels=[{','.join(about.conserved)}]"),
        ],
    }
    return [*words[model], *TRAINING.get(how, [])]


def variants(name: str, about: Set, steps: int) -> Iterator[tuple[str, Variant]]:
    """Yields what is tried in the rollouts of a training."""
    base = {"patch_size": PATCH} if name == "csm" else {}
    yield PLAIN, Variant(base)
    if name == "priced":
        for share in (1, 0.75, 1.5):  # also where the price that was found is far off
            tokens = round(share * about.tokens)
            yield f"{tokens} tokens held", Variant({"tokens": tokens})
        return
    yield "jitter", Variant({**base, "jitter": 0})
    if about.conserved and name != "conservative":
        yield "sums kept", Variant(base, conserve=True)
        yield "jitter, sums kept", Variant({**base, "jitter": 0}, conserve=True)
    if name == "csm":
        yield "cyclic 8, 4, 16", Variant({"name": "cyclic", "settings": PATCHES})
        if about.ndim == 2:
            yield "cyclic, equal tokens", Variant({"name": "cyclic", "settings": EQUAL})
        turned = [[PATCH] * about.ndim, *_turned(about.ndim)]
        of_sizes = [{"patch_size": size} for size in turned]
        yield "cyclic, turned", Variant({"name": "cyclic", "settings": of_sizes})
    if name in ("uniform", "coarse_fine"):
        yield "reuse 0.1", Variant({"reuse": 0.1})
    if name == "iap":
        yield "hysteresis 0.25", Variant({"hysteresis": 0.25})
        yield "regrid 4, buffer 1", Variant({"regrid": 4, "buffer": 1})
        yield "hysteresis, reuse 0.1", Variant({"hysteresis": 0.25, "reuse": 0.1})
        unit = 2**about.ndim - 1
        more = unit * (27 // unit if about.ndim == 2 else 4)
        ends = [{"budget": about.tokens + sign * more} for sign in (1, -1)]
        knobs = {"name": "ramp", "steps": steps, "unit": unit}
        yield "budget falls", Variant({**knobs, "settings": ends})
        yield "budget rises", Variant({**knobs, "settings": ends[::-1]})


def _turned(ndim: int) -> list[list[int]]:
    """Patches of as many grid points as those of the middle size, whose axes take turns."""
    long = [FINEST, COARSEST] if ndim == 2 else [FINEST, PATCH, COARSEST]
    return [long[k:] + long[:k] for k in range(ndim)]


@cache
def all_rows() -> tuple[Row, ...]:
    """Lists all rows in the order in which they run."""
    found = []
    for name in (*MODELS, *FURTHER):
        sets = [data for data, one in SETS.items() if one.conserved or name != "conservative"]
        for data, seed in itertools.product(sets, SEEDS):
            first = 1 if name in MODELS else 2
            late = 4 if seed else 0 if data in FIRST else 2
            found.append(Row(data, name, seed, first + late))
    return tuple(sorted(found, key=lambda row: (row.wave, row.seed)))
