"""What tilings hold of a field and of its next change, at equal tokens and without training.

Run ``adaptok bench indicators [--help]``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from adaptok.cells import Cells, product
from adaptok.data.synthetic import SOLVERS
from adaptok.evaluation.bench.timing import write_results
from adaptok.evaluation.changes import Changes, changes_of, standard
from adaptok.evaluation.tilings import energy_share, optimal_errors, tiling_errors, tree_of, visible
from adaptok.registry import INDICATORS, MARKINGS, TOKENIZERS, Part, Registry
from adaptok.tokenizers import at_budget, part_at_budget
from adaptok.tokenizers.indicators import relative_errors
from adaptok.tokenizers.ladder import ladder, with_ladder
from adaptok.tokenizers.tree import composed
from adaptok.tree import Tree, sum_pyramid
from adaptok.utils.arguments import NonNegative, Positive, checked

Row = dict[str, Any]
Side = Annotated[int, Ge(2)]  # half of it is one in 3D
COLUMNS = tuple(itertools.product(("field", "change"), (0, 1)))  # what is held, by which degree
SHARES = (0.25, 0.1)
LEFT_OUT = ("composed", "given")
OTHERS = ("random", "tolerance")  # markings that at a budget are a tokenizer and another marking
NOTE = (
    "Every registered tokenizer, and every indicator with every marking, tiles the same fields "
    "into the same number of tokens; nothing is trained. `field 0`, `field 1`, `change 0` and "
    "`change 1`: the error of the best polynomial of degree 0 or 1 on each cell, for the field and "
    "for its change until the next frame (each channel in units of its spread), over that of the "
    "optimal tree, the best of as many cells per sample *for this column*, found by dynamic "
    "programming; geometric mean over {sets}. Markings that are calibrated to a mean (`threshold`, "
    "`maximum`, `price`) may give more cells to one sample than to another, and so be below 1. "
    "`25 %` and `10 %`: the part of the squared change inside that share of the blocks of two "
    "points per side, those that the indicator scores highest. `oracle` is the near-best tiling, "
    "and the choice of blocks, made from the coming change itself: what an indicator that predicts "
    "could reach. `tokens`: mean, over the wanted number; what is calibrated comes from below. The "
    "sizes of cells are those of a run with this budget. Of cells that stay beside those inside of "
    "them (`amr`) all count as tokens, and the smallest hold the field. Left out: `csm`, "
    "`dart`, whose cells are no tree, `given`, whose cells no budget decides, and "
    "the markings `random` (the tokenizer of this name) and `tolerance` (at a budget the marking "
    "`budget`)."
)


@checked
def measure(
    sets: Sequence[str] | None = None,
    *,
    resolution: Positive = 64,
    trajectories: Positive = 3,
    side: Side = 4,
    photographs: NonNegative = 6,
) -> list[Row]:
    """Measures every method on every set; one row per set and method.

    Args:
        sets: names of generated sets; None for all.
        resolution: grid points along the shortest axis in 2D; half of it in 3D and for long
            domains.
        trajectories: of each set, two frames each.
        side: of the uniform cells that are as many as the tokens, in 2D; half of it in 3D.
        photographs: of scikit-image, if it is installed; they have no change. 0 for none.

    Returns:
        Rows with "set", "kind" (reference, tokenizer or composed), "method", "tokens" and "wanted",
        errors in "field 0" to "change 1" (mean over samples) and shares in "25 %" and "10 %"; None
        for what there is not.

    Raises:
        ValueError: a number out of its range.
    """
    rows = []
    sizes = {"resolution": resolution, "trajectories": trajectories}
    for name in SOLVERS.names() if sets is None else sets:
        rows += rows_of(changes_of(name, **sizes), side)
    pictures = photographs_of(photographs, 2 * resolution) if photographs else None
    return rows + (rows_of(pictures, side) if pictures is not None else [])


def photographs_of(count: int, size: int) -> Changes | None:
    """Loads photographs as a set without changes; None without scikit-image or timm."""
    try:
        import skimage  # noqa: F401  # pyright: ignore[reportMissingImports]

        from adaptok.evaluation.bench.vision import photographs
    except ImportError:
        return None
    images, _ = photographs(count, size)
    return Changes("photographs", standard(images[:, None]), None, None)


@torch.no_grad()
def rows_of(data: Changes, side: int = 4) -> list[Row]:
    """Measures every method on one set, see `measure`."""
    bench = OnSet(data, side)
    found = [bench.tokenizer(name, bench.cells(bench.build(name))) for name in tokenizers()]
    rows = [row for row in found if row is not None]
    make, ends, wanted = bench.make, bench.ends, bench.wanted
    for label, indicator in _indicators(data):
        parts: Row = {**ends, "indicator": indicator}
        try:
            blocks = {**parts, "min_size": 1, "max_size": 2}  # what shares are made of
            shares = bench.target.shares(composed(**make, **blocks).indicator)
            for marking in [m for m in MARKINGS.names() if m not in OTHERS]:
                tokenizer = composed(**make, **parts, marking=marking)
                controls = at_budget(tokenizer, wanted, data.field, boundary=data.boundary)
                cells = tokenizer.cells(data.field, boundary=data.boundary, **controls)
                rows.append(bench.row("composed", f"{label}, {marking}", cells, shares))
        except ValueError as error:  # of others' parts, which may need more than their defaults
            warnings.warn(f"{label} is left out on {data.name}: {error}", stacklevel=2)
    oracle = bench.oracle()
    return [bench.optimal(), *rows, *([] if oracle is None else [oracle])]


def tokenizers() -> list[str]:
    """Lists the tokenizers whose cells are a tree that a budget decides."""
    return [name for name in TOKENIZERS.names() if name not in LEFT_OUT]


class OnSet:
    """What tilings of one set hold, method by method.

    Args:
        data: fields and what becomes of them.
        side: of the uniform cells that are as many as the tokens, in 2D; half of it in 3D.
    """

    def __init__(self, data: Changes, side: int = 4):
        self.data, self.target = data, _Targets(data)
        _, _, channels, *space = data.field.shape
        self.space = tuple(space)
        self.wanted = product(tuple(n // (side if len(space) < 3 else side // 2) for n in space))
        sizes = ladder(space, self.wanted)
        # the width has no part
        self.make: Row = {"ndim": len(space), "in_channels": channels, "dim": 12}
        self.ends: Row = {"min_size": sizes[0], "max_size": sizes[-1]}

    def row(
        self, kind: str, method: str, cells: Cells, shares: Row, count: int | None = None
    ) -> Row:
        """What a tiling holds; `count` cells if not all of them are in `cells`."""
        about = {"set": self.data.name, "kind": kind, "method": method}
        tokens = (len(cells) if count is None else count) / len(self.data.field)
        counts = {"tokens": tokens, "wanted": self.wanted}
        return about | counts | self.target.errors_of(cells) | shares

    def build(self, name: str) -> Any:
        """Builds a registered tokenizer that has the wanted number of tokens."""
        part = {"name": name} | _roles(TOKENIZERS, name, self.data)
        sized = with_ladder(part, self.space, self.wanted)
        return _at_budget(sized, self.make, self.wanted, self.data)

    @torch.no_grad()
    def cells(self, tokenizer: Any) -> Cells:
        """Tiles the field."""
        return tokenizer.cells(self.data.field, boundary=self.data.boundary)

    def tokenizer(self, name: str, cells: Cells) -> Row | None:
        """The row of a registered tokenizer; None if its cells on this set are no tiling."""
        shown = cells if cells.tiling or not cells.on_grid else visible(cells)
        if not shown.tiling:
            return None
        return self.row("tokenizer", name, shown, self.target.shares(None), len(cells))

    @torch.no_grad()
    def oracle(self) -> Row | None:
        """The near-best tiling of the coming change; None for a set without one."""
        if self.data.change is None:
            return None
        best, boundary = self._near_best(), self.data.boundary
        cells = best.cells(self.data.change, boundary=boundary, budget=self.wanted)
        return self.row("reference", "oracle", cells, self.target.shares(_energy))

    @torch.no_grad()
    def optimal(self) -> Row:
        """The least errors, each of a tree of its own."""
        sizes = tuple(size[1:] for size in self._near_best().spec.sizes)
        tree = Tree(self.space, sizes)
        least = {"set": self.data.name, "kind": "reference", "method": "optimal tree"}
        least |= {"tokens": self.wanted, "wanted": self.wanted}
        return least | self.target.least(tree, self.wanted) | self.target.shares(None)

    def _near_best(self) -> Any:
        return composed(**self.make, **self.ends, indicator="near_best")


def _roles(registry: Registry, name: str, data: Changes) -> Row:
    """The channels of velocity and density, for a part that asks for them, of a set that says."""
    if data.name not in SOLVERS.names():
        return {}
    fields: list[str] = list(getattr(SOLVERS.get(data.name), "field_names", ()))
    velocity = [i for i, field in enumerate(fields) if field.startswith("velocity")]
    roles: Row = {"velocity": velocity} if len(velocity) == data.field.ndim - 3 else {}
    if "density" in fields:
        roles["density"] = fields.index("density")
    return {role: channels for role, channels in roles.items() if role in registry.knobs(name)}


def _indicators(data: Changes) -> Iterator[tuple[str, Row]]:
    """Every registered indicator, in the units of the field, with every degree that it has."""
    for name in INDICATORS.names():
        known = INDICATORS.knobs(name)
        knobs: Row = {"value_range": None} if "value_range" in known else {}
        knobs |= _roles(INDICATORS, name, data)
        for degree in (0, 1) if "degree" in known else (None,):
            own = {} if degree is None else {"degree": degree}
            yield " ".join([name, *map(str, own.values())]), {"name": name, **knobs, **own}


def _at_budget(part: Part, make: Row, wanted: int, data: Changes) -> Any:
    source, knobs = TOKENIZERS.split(part)
    tokenizer = TOKENIZERS.create(source, **make, **knobs)
    found = part_at_budget(part, tokenizer, wanted, data.field, boundary=data.boundary)
    source, knobs = TOKENIZERS.split(found)
    return TOKENIZERS.create(source, **make, **knobs).eval()


class _Targets:
    """What tilings are to hold: the field and its change."""

    def __init__(self, data: Changes):
        self.data = data
        self.fields = {"field": data.field, "change": data.change}
        self.known: dict[Any, Tensor] = {}

    def errors(self, what: str, degree: int, tree: Tree) -> Tensor | None:
        """Squared errors of all nodes, computed once per tree; None without a change."""
        field, key = self.fields[what], (what, degree, tree)
        if field is None:
            return None
        if key not in self.known:
            self.known[key] = relative_errors(field, tree, degree)
        return self.known[key]

    def _columns(self, tree: Tree, error: Callable[[Tensor], Tensor]) -> Row:
        found = {(what, degree): self.errors(what, degree, tree) for what, degree in COLUMNS}
        return {
            f"{what} {degree}": None if errors is None else float(error(errors).mean())
            for (what, degree), errors in found.items()
        }

    def errors_of(self, cells: Cells) -> Row:
        """The columns of errors of a tiling."""
        tree = tree_of(cells)
        return self._columns(tree, lambda errors: tiling_errors(errors, tree, cells))

    def least(self, tree: Tree, budget: int) -> Row:
        """Those of the best tree for each column."""
        return self._columns(tree, lambda errors: optimal_errors(errors, tree, budget))

    def shares(self, score: Callable[..., Tensor] | None) -> Row:
        """The columns of shares of the change inside the blocks with the highest score."""
        change, ndim = self.data.change, self.data.field.ndim - 3
        names = [f"{100 * share:g} %" for share in SHARES]
        if change is None or score is None:
            return dict.fromkeys(names)
        tree = Tree(tuple(change.shape[3:]), ((2,) * ndim, (1,) * ndim))
        given = change if score is _energy else self.data.field
        scores = score(given, tree, boundary=self.data.boundary)
        shares = [energy_share(change, scores, tree, share) for share in SHARES]
        return {name: float(share.mean()) for name, share in zip(names, shares, strict=True)}


def _energy(field: Tensor, tree: Tree, *, boundary: Tensor | None) -> Tensor:
    """Squared values of each block: what an indicator that knows the change would say."""
    return sum_pyramid(field.square().sum((1, 2))[:, None], tree)[:, 0]


def summary(rows: Sequence[Row]) -> list[Row]:
    """One row per method: geometric means over sets of errors over the least, means of shares."""
    least = {row["set"]: row for row in rows if row["method"] == "optimal tree"}
    names = [f"{what} {degree}" for what, degree in COLUMNS]
    found = []
    for kind, method in dict.fromkeys((row["kind"], row["method"]) for row in rows):
        own = [row for row in rows if (row["kind"], row["method"]) == (kind, method)]
        row = {"method": method, "kind": kind}
        row["tokens"] = round(statistics.fmean(r["tokens"] / r["wanted"] for r in own), 3)
        for name in names:
            ratios = [r[name] / least[r["set"]][name] for r in own if r[name] is not None]
            row[name] = round(statistics.geometric_mean(ratios), 3) if ratios else None
        for name in [f"{100 * share:g} %" for share in SHARES]:
            shares = [r[name] for r in own if r[name] is not None]
            row[name] = round(statistics.fmean(shares), 3) if shares else None
        found.append(row)
    order = ("reference", "tokenizer", "composed")
    return sorted(found, key=lambda r: (order.index(r["kind"]), r["change 0"] or math.inf))


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the errors of the change, and the shares of it that indicators choose."""
    from matplotlib.figure import Figure

    shown = [r for r in rows if r["kind"] != "composed" or r["method"].endswith(", budget")]
    stars = [" *" * (row["kind"] == "composed") for row in shown]
    labels = [r["method"].removesuffix(", budget") + s for r, s in zip(shown, stars, strict=True)]
    figure = Figure(figsize=(9, 1 + 0.2 * len(shown)), layout="constrained")
    errors, shares = figure.subplots(1, 2, sharey=True)
    places = range(len(shown))
    for number, name in enumerate(("field 0", "change 0")):
        width = [r[name] or 0 for r in shown]
        errors.barh([p + 0.4 * number for p in places], width, 0.4, label=name)
    for number, share in enumerate(SHARES):
        width = [r[f"{100 * share:g} %"] or 0 for r in shown]
        shares.barh([p + 0.4 * number for p in places], width, 0.4, label=f"{100 * share:g} %")
    errors.set_yticks([p + 0.2 for p in places], labels, fontsize="small")
    errors.invert_yaxis()
    errors.axvline(1, color="0.3", ls="--", lw=1)
    errors.set(xlabel="error / error of the optimal tree (lower is better)", xlim=(0.9, None))
    shares.set(xlabel="change inside the chosen blocks (higher is better)")
    errors.legend(fontsize="small")
    shares.legend(fontsize="small")
    figure.suptitle("* an indicator with the marking budget", fontsize="small")
    figure.savefig(path, dpi=120)


def main(given: Sequence[str] | None = None) -> None:
    """Measures, writes JSON, Markdown and a picture, and prints the table."""
    parser = argparse.ArgumentParser(prog="adaptok bench indicators", description=__doc__)
    parser.add_argument("folder", nargs="?", default="docs/benchmarks", type=Path)
    parser.add_argument("--sets", nargs="+", default=None, choices=SOLVERS.names())
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--trajectories", type=int, default=3)
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--photographs", type=int, default=6)
    options = vars(parser.parse_args(given))
    folder = options.pop("folder")
    torch.set_num_threads(1)
    rows = measure(**options)
    names = list(dict.fromkeys(row["set"] for row in rows))
    note = NOTE.format(sets=f"{len(names)} sets ({', '.join(names)})")
    command = "adaptok bench indicators"
    path = write_results(folder, "indicators", summary(rows), note, plot, command)
    file = path.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sets": rows}, indent=1))
    print(path.read_text())


if __name__ == "__main__":
    main()
