"""The rows of the study: sets, models and seeds, the decisive ones first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from adaptivity.costs import CHECKS, SETS, VALIDATED, Model, Set, fitting_width, flops

SEEDS = (0, 1, 2)
MAIN = ("maze", "euler", "blast")
LARGE = ("maze_256", "blast_64")
MORE = {"maze": 256, "euler": 256, "blast": 512}  # the second number of tokens
HELPED = ("iap", "near_best", "learned", "apt", "matey", "radial", "random")
PUBLISHED = ("iap", "ckm", "csm", "apt", "matey", "near_best", "radial", "random")
CELLS = {  # what is no tokenizer by name
    "learned": [
        "tokenizer=composed",
        "+tokenizer/indicator=learned",
        "+tokenizer/marking=budget",
    ]
}
FAR = (1, 3, 9)  # spacings of a wider stencil
WIDTHS, FEWER = (64, 96, 128), {"maze": 16, "euler": 16, "blast": 512}  # of the tuning
FEWEST = {"maze": 16, "euler": 16, "blast": 8}
LONG, ENDING = 1200, "_long"  # steps and name of the rows that train until curves are flat


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        data: name of the set.
        name: of the model, which is "tuned" for the winner of the tuning.
        model: None for a row that is decided by others (`decided`).
        seed: of weights and order.
        wave: rows run wave by wave.
        steps: of the training.
    """

    data: str
    name: str
    model: Model | None
    seed: int
    wave: int
    steps: int = 300

    @property
    def label(self) -> str:
        return f"{self.data}-{self.name}-{self.seed}"

    @property
    def key(self) -> str:
        """Hash of all that decides the numbers; of a model that is known."""
        content = json.dumps([*self.overrides(), self.seed])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def overrides(self) -> list[str]:
        """Returns what is given to `adaptok train`."""
        assert self.model is not None
        words = [
            *overrides_of_set(SETS[self.data]),
            *overrides_of(self.model, SETS[self.data], self.seed),
        ]
        words += [f"trainer.limit_val_batches={VALIDATED}", f"trainer.max_steps={self.steps}"]
        return [*words, f"trainer.val_check_interval={self.steps // CHECKS}"]


def overrides_of_set(about: Set) -> list[str]:
    """Returns set and training, the same for all its models."""
    words = [f"data={about.solver}", f"data.batch_size={about.batch}"]
    words += [f"data.generate.{knob}={value}" for knob, value in about.generate.items()]
    words += ["size=tiny", f"size.depth={about.depth}", "optim=cosine", "optim.lr=3.0e-3"]
    words += ["optim.warmup_steps=30", "trainer.accelerator=cpu"]
    return words


def overrides_of(model: Model, about: Set, seed: int) -> list[str]:
    """Returns the model; cells of all adaptive tokenizers come from one ladder."""
    words = [*CELLS.get(model.cells, [f"tokenizer={model.cells}"])]
    words += [f"size.dim={model.dim}", f"size.heads={model.dim // 32}"]
    if model.cells == "uniform":
        words.append(f"tokenizer.size={about.patch(model.tokens)}")
    else:
        words.append(f"budget={model.tokens}")
    if model.scores_constants:  # as the papers do
        words.append("tokenizer.ignore=[]")
    if model.halo:
        words.append(f"tokenizer.halo={model.halo}")
    if model.width:
        words += ["decoder=refine", f"decoder.width={model.width}", f"decoder.share={model.share}"]
        words.append(f"decoder.smooth={model.smooth}")
        words += [f"decoder.depth={model.depth}"] if model.depth != 1 else []
        if model.stencil != (1, 3):
            words.append(f"decoder.stencil={list(model.stencil)}".replace(" ", ""))
        if model.points == "random":  # every seed has points of its own
            blocks = (about.points // 2) ** about.ndim
            cells = blocks + round(model.share * blocks) * (2**about.ndim - 1)
            words.append(f"decoder.marking={{name:random,budget:{cells},seed:{seed}}}")
        else:
            words.append(f"decoder.indicator={model.points}")
    return words


def coarse_fine(about: Set) -> Model:
    """Returns the composition under test."""
    return Model("uniform", about.tokens, width=about.width, share=0.25, smooth=4)


def helped(about: Set, cells: str = "uniform", **knobs: Any) -> Model | None:
    """Returns a model with the dense help whose operations are those of `coarse_fine`, as uniform
    cells of this size have them; None if no width fits.
    """
    target = flops(coarse_fine(about), about)
    model = replace(Model("uniform", about.tokens, smooth=4), **knobs)
    width = fitting_width(model, about, target)
    if width is None:  # the network over the result takes too much of it
        model = replace(model, smooth=0)
        width = fitting_width(model, about, target)
    return None if width is None else replace(model, cells=cells, width=width)


@cache
def candidates(data: str) -> dict[str, Model]:
    """Returns the models without adaptivity that are tuned at the operations of `coarse_fine`."""
    about, found = SETS[data], {}
    for tokens in (about.tokens, FEWER[data]):
        for dim in WIDTHS:
            same = (tokens, dim) == (about.tokens, 96)
            name = "uniform_help" if same else f"uniform_help_{tokens}_{dim}"
            found[name] = helped(about, tokens=tokens, dim=dim)
    found["uniform_help_halo"] = helped(about, halo=3)
    found["uniform_help_no_smooth"] = helped(about, smooth=0)
    found["uniform_help_deep"] = helped(about, depth=2)
    for tokens in {about.tokens, FEWEST[data]}:
        found[f"uniform_help_{tokens}_far"] = helped(about, tokens=tokens, stencil=FAR)
        smoother = helped(about, tokens=tokens, dim=64, smooth=12)
        found[f"uniform_help_{tokens}_smoother"] = smoother
    return {name: model for name, model in found.items() if model is not None}


@cache
def variants(data: str) -> dict[str, Model]:
    """Returns the models with adaptive points that are tuned at the operations of `coarse_fine`."""
    about = SETS[data]
    changes: dict[str, dict[str, Any]] = {
        "eighth": {"share": 0.125},
        "half": {"share": 0.5},
        "deep": {"depth": 2},
        "far": {"stencil": FAR},
        "smoother": {"smooth": 8},
        "half_smoother": {"share": 0.5, "smooth": 8},
    }
    few = {"tokens": FEWEST[data]}
    more = ("eighth", "half", "far", "half_smoother")
    changes |= {"few": few} | {f"few_{name}": few | changes[name] for name in more}
    changes["few_narrow"] = few | changes["half_smoother"] | {"dim": 64}
    changes["few_narrow_smoother"] = few | {"share": 0.5, "smooth": 12, "dim": 64}
    changes["narrow_smoother"] = {"smooth": 12, "dim": 64}
    found = {"coarse_fine": coarse_fine(about)}
    for name, knobs in changes.items():
        model = helped(about, **{"share": 0.25, **knobs})
        if model is not None:
            found[f"coarse_fine_{name}"] = model
    return found


TUNED = {"tuned": candidates, "coarse_fine_tuned": variants}


def published(about: Set, cells: str) -> Model:
    """Returns a tokenizer with the linear decoder; some papers' indicators see static channels."""
    scores = cells in ("iap", "apt", "matey") and about.constants > 0
    return Model(cells, about.tokens, scores_constants=scores)


def plain_at_flops(about: Set) -> Model:
    """Returns uniform cells as published that come nearest to the operations of `coarse_fine`."""
    target = flops(coarse_fine(about), about)
    patches = [p for p in (2, 4, 8, 16, 32) if about.points % p == 0]
    every = [
        Model("uniform", about.tokens_at(patch), dim=dim)
        for patch in patches
        for dim in range(64, 257, 32)
    ]
    near = [m for m in every if flops(m, about) <= 1.05 * target]
    return max(near, key=lambda m: (m.tokens, flops(m, about)))


def ablations(about: Set) -> dict[str, Model]:
    """Returns `coarse_fine` with one part changed."""
    whole = coarse_fine(about)
    return {
        "coarse_fine_iap": replace(whole, cells="iap"),
        "coarse_fine_no_smooth": replace(whole, smooth=0),
        "coarse_fine_half_share": replace(whole, share=0.125),
        "coarse_fine_dense": replace(whole, share=1.0),
        "coarse_fine_halo": replace(whole, halo=3),
        "coarse_fine_near_best": replace(whole, points="near_best"),
        "coarse_fine_learned": replace(whole, points="learned"),  # whose network costs more
    }


def models(data: str) -> Iterator[tuple[int, str, Model | None]]:
    """Yields wave, name and model of the rows of a set."""
    about = SETS[data]
    whole, plain = coarse_fine(about), Model("uniform", about.tokens)
    if data in LARGE:
        yield 2, "coarse_fine", whole
        yield 2, "uniform_help", helped(about)
        yield 2, "uniform", plain
        yield 2, "coarse_fine_random", replace(whole, points="random")
        return
    yield 1, "coarse_fine", whole
    yield 1, "uniform", plain
    yield 1, "coarse_fine_random", replace(whole, points="random")
    yield 1, "uniform_help", helped(about)
    yield 3, "tuned_seconds", None
    yield 3, "uniform_flops", plain_at_flops(about)
    for cells in HELPED:
        yield 4, f"{cells}_help", helped(about, cells)
    for name, model in ablations(about).items():
        yield 5, name, model
    for cells in PUBLISHED:
        yield 6, cells, published(about, cells)
    if about.constants:
        yield 6, "iap_ignoring", Model("iap", about.tokens)
    more = replace(about, tokens=MORE[data])
    n = more.tokens
    yield 7, f"coarse_fine_{n}", coarse_fine(more)
    for cells in ("uniform", "iap"):
        yield 7, f"{cells}_help_{n}", helped(more, cells)
        yield 7, f"{cells}_{n}", published(more, cells)


@cache
def all_rows() -> tuple[Row, ...]:
    """Lists all rows in the order in which they run."""
    found = []
    for data in (*MAIN, *LARGE):
        for wave, name, model in models(data):
            found += [Row(data, name, model, seed, wave) for seed in SEEDS]
    for data in MAIN:
        known = {row.name for row in found if row.data == data}
        for name, options in TUNED.items():
            found += [
                Row(data, option, model, 0, 1)
                for option, model in options(data).items()
                if option not in known
            ]
            found += [Row(data, name, None, seed, 1) for seed in SEEDS[1:]]
        for name in ("coarse_fine", "uniform_help", "uniform"):
            model = next(r.model for r in found if (r.data, r.name) == (data, name))
            found.append(Row(data, f"{name}{ENDING}", model, 0, 8, LONG))
        for name in TUNED:
            found += [Row(data, f"{name}{ENDING}", None, seed, 8, LONG) for seed in SEEDS]
    order = dict.fromkeys([*TUNED, "tuned_seconds"], 1)  # after what decides them
    return tuple(sorted(found, key=lambda r: (r.wave, order.get(r.name, 0), r.seed)))


def winner(data: str, done: Mapping[str, Mapping[str, Any]], tuned: str = "tuned") -> str | None:
    """Names the option with the lowest error on the validation split; None while one misses.

    Args:
        done: finished rows by label.
        tuned: whose options, of `TUNED`.
    """
    labels = {name: f"{data}-{name}-0" for name in TUNED[tuned](data)}
    if any(label not in done for label in labels.values()):
        return None
    return min(labels, key=lambda name: done[labels[name]]["curve"][-1][1])


def decided(
    row: Row, done: Mapping[str, Mapping[str, Any]], widths: Mapping[str, int]
) -> tuple[Row | None, str]:
    """Fills in the model of a row; None, with the reason, if it is not decided yet.

    Args:
        done: finished rows by label.
        widths: of the dense help at the seconds of `coarse_fine`, by set.
    """
    if row.model is not None:
        return row, ""
    tuned = "tuned" if row.name == "tuned_seconds" else row.name.removesuffix(ENDING)
    best = winner(row.data, done, tuned)
    if best is None:
        return None, "waits for the tuning"
    model = TUNED[tuned](row.data)[best]
    if row.name == "tuned_seconds":
        if row.data not in widths:
            return None, "waits for a width of equal seconds"
        model = replace(model, width=widths[row.data])
    return replace(row, model=model), ""
