"""Track T1: surrogates of PDEs, trained alike at equal tokens, operations and seconds."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.data import WellData
from adaptok.evaluation.evaluate import WINDOWS, device_of, persistence
from adaptok.evaluation.standings import Row
from adaptok.models.schedules import Schedule, create_schedule
from adaptok.tasks.bench.job import Job, Price, checkpoint_in, least_memory
from adaptok.tasks.bench.measuring import (
    cost_of_batch,
    on,
    predicted,
    rollout_of,
    step_seconds,
    tested,
    worst_decile,
)
from adaptok.tasks.bench.methods import (
    METHODS,
    REFERENCE,
    Method,
    installed,
    operations,
    tokenizer_words,
)
from adaptok.tasks.bench.own_code import code_of
from adaptok.tasks.bench.sets import SMALL, FieldSet, full_size
from adaptok.tasks.surrogate import begin, fit_surrogate, objectives
from adaptok.training import SurrogateModule
from adaptok.training.surrogate_module import Batch
from adaptok.utils.atomic import replacing
from adaptok.utils.keys import quoted

SEEDS = (0, 1, 2)
RATE = {"cpu": 35e9, "cuda": 5e13}  # operations per second, forward and backward
STEP_SECONDS, START_SECONDS = 8e-3, 6.0  # per step and per job, of loader, trainer and composition
OVER = 1.02  # operations or seconds, over those of the reference, that still count as equal
WIDEST = 768


def jobs(
    quick: bool = False, own: Sequence[str] = (), *, scale: str = "small", base: str = ""
) -> list[Job]:
    """Lists the jobs, those of a set side by side.

    Args:
        quick: two sets, one budget, one seed, equal tokens only.
        own: tokenizers by name, in place of all methods.
        scale: "small", generated sets, or "full", eight of the Well.
        base: folder of the Well's sets, for "full"; "" for ``data``.

    Raises:
        ValueError: an unknown scale, or a folder for generated sets.
    """
    if scale not in ("small", "full"):
        raise ValueError(f"scale is small or full, got {scale!r}")
    if base and scale == "small":
        raise ValueError("base=FOLDER is for the sets of the Well: scale=full")
    sets = SMALL if scale == "small" else full_size()
    places = () if scale == "small" else (quoted("data.base", base or "data"),)
    code = {name: code_of(name) for name in own}
    seeds = SEEDS[:1] if quick else SEEDS
    methods = {name: own_method(name) for name in own} or installed(METHODS)
    found: list[Job] = []
    for about in [*sets.values()][: 2 if quick else None]:
        made = [
            _job(about, name, method, kind, patch, seed)
            for seed in seeds
            for kind, patch in _budgets(about, quick)
            for name, method in methods.items()
            if _has_row(method, kind)
        ]
        found += [
            replace(job, config={**job.config, **code.get(job.method, {})}, places=places)
            for job in made
        ]
    return found


def own_method(name: str) -> Method:
    """The method of a registered tokenizer, with the decoder that suits it."""
    return Method(lambda about, patch: tokenizer_words(name, about, patch), factor=1.5)


def _budgets(about: FieldSet, quick: bool) -> Iterator[tuple[str, int | None]]:
    """What is equal, and the size of uniform cells that says how much of it."""
    middle = about.patches[1]
    yield "none", None
    for patch in [middle] if quick else about.patches:
        yield "tokens", patch
    for kind in () if quick else ("flops", "seconds"):
        yield kind, middle


def _has_row(method: Method, kind: str) -> bool:
    """Methods without tokens have one row as they are, and rows of equal operations and seconds."""
    if kind in ("none", "tokens"):
        return method.tokens == (kind == "tokens")
    return method.fitted is not None and method is not METHODS[REFERENCE]


def _job(
    about: FieldSet, name: str, method: Method, kind: str, patch: int | None, seed: int
) -> Job:
    words = [*about.words, *method.words(about, patch or about.patches[1]), f"seed={seed}"]
    config: dict[str, Any] = {"set": about.name, "method": name, "words": words, "seed": seed}
    if kind in ("flops", "seconds"):
        reference = METHODS[REFERENCE].words(about, patch or about.patches[1])
        config |= {"fitted": method.fitted, "to": kind, "of": [*about.words, *reference]}
    value = None if patch is None else about.tokens(patch)
    price = price_of(about, method if kind in ("none", "tokens") else METHODS[REFERENCE], patch)
    return Job("T1", about.name, name, kind, value, seed, config, price)


def price_of(about: FieldSet, method: Method, patch: int | None) -> Price:
    """Estimates a job: training, test and rollouts, on one core or for the Well on a GPU."""
    rate = RATE["cpu" if about.generated else "cuda"]
    each = operations(method, about, patch or about.patches[1]) / rate
    samples = about.steps * about.batch if method.fitted else 0
    seconds = START_SECONDS + each * (3 * samples + about.tested)
    seconds += about.steps * STEP_SECONDS if method.fitted else 0
    tokens = about.tokens(patch or about.patches[1])
    kept = about.batch * (tokens * about.dim * about.depth * 40 + 60 * math.prod(about.shape))
    memory = least_memory() + 2.2e9 + 4.0 * kept  # 2.9 GB were measured for --quick
    return Price(seconds, memory, about.generated)


@dataclass
class Prepared:
    """A model that is ready to be trained."""

    config: dict[str, Any]
    data: WellData
    module: SurrogateModule

    @property
    def cycle(self) -> int:
        """How many settings take turns."""
        return len(self.config["schedule"]["settings"])

    def by_turns(self) -> Schedule:
        """The settings of training, one after the other."""
        schedule = self.config["schedule"]
        name = "cyclic" if schedule["name"] == "random" else schedule["name"]
        return create_schedule({"name": name, "settings": schedule["settings"]})


def prepared(words: Sequence[str], data: str, oracle: bool = False) -> Prepared:
    """Builds set and model of a job.

    Args:
        words: overrides of `adaptok train`.
        data: folder of generated sets, where the words name no other.
        oracle: show the tokenizer the next change.
    """
    base = (
        [] if any(word.startswith("data.base=") for word in words) else [quoted("data.base", data)]
    )
    config = plain(compose("train", [*words, *base]))
    begin(config)
    module = build_data(config)
    model = build_surrogate(config, module.info)
    kind = OracleModule if oracle else SurrogateModule
    made = kind(model, *objectives(config), config, seed=config["seed"])
    return Prepared(config, module, made.to(_place(config)))


def _place(config: Mapping[str, Any]) -> torch.device:
    return device_of("cpu" if config["trainer"]["accelerator"] == "cpu" else "auto")


class OracleModule(SurrogateModule):
    """Trains and tests a surrogate whose cells are made for the true next change: what a tokenizer
    that predicts it could reach, and no model that can be used.
    """

    def predict(
        self, batch: Batch, step: int, *, ahead: int = 1, all_frames: bool = False
    ) -> Tensor:
        """Predicts on the tiling of the change until the target."""
        model, boundary = self.surrogate, batch["boundary"]
        field, constants = batch["input"], batch.get("constants")
        change = (batch["target"][:, :1] - field[:, -1:]) / model.scale(field)
        seen = model.scored(field, constants)
        frames = (seen.shape[2] - model.constant_channels) // change.shape[2]
        blank = seen.new_zeros(len(seen), 1, model.constant_channels, *seen.shape[3:])
        shown = torch.cat([*[change] * frames, blank], 2).expand_as(seen)
        cells = model.tokenizer.cells(shown, boundary=boundary)
        return model(field, constants=constants, boundary=boundary, cells=cells)


def fitted_words(job: Job, data: str) -> list[str]:
    """Returns the words of a job, with the width that brings it to the operations or seconds of the
    reference: the largest of those that do not exceed them.

    Raises:
        ValueError: even the smallest width does.
    """
    words, key = list(job.config["words"]), job.config.get("fitted")
    if key is None:
        return words
    words = [word for word in words if not word.startswith(f"{key}=")]  # Hydra adds a key once
    measure = _flops if job.config["to"] == "flops" else _training_seconds
    reference = [*job.config["of"], *job.places, f"seed={job.seed}"]
    target = OVER * measure(prepared(reference, data))
    step = 12 if key == "size.dim" else 2  # three heads of whole pairs

    def cost(units: int) -> float:
        return measure(prepared([*words, *job.places, f"{key}={units * step}"], data))

    low = largest(cost, target, WIDEST // step)
    if low == 0:
        raise ValueError(
            f"{job.method} with {key}={step} takes more {job.config['to']} than {REFERENCE}"
        )
    return [*words, f"{key}={low * step}"]


def largest(cost: Callable[[int], float], target: float, most: int) -> int:
    """Finds the largest whole number up to `most` whose cost is at most a target, of a cost that
    grows; 0 if there is none.

    It doubles first, then bisects: nothing is tried that is more than twice the result, since a
    model far above the target may need more memory than there is.
    """
    low, high = 0, 1
    while high <= most and cost(high) <= target:
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return low


def _flops(ready: Prepared) -> float:
    ready.module.schedule = ready.by_turns()
    return cost_of_batch(ready.module, ready.data, "valid", ready.cycle)[0]


def _training_seconds(ready: Prepared) -> float:
    ready.module.schedule = ready.by_turns()
    return step_seconds(ready.module, ready.data, ready.cycle)["training"]


def measure(job: Job, work: Path) -> Row:
    """Trains and tests one row; interrupted, it resumes from its last checkpoint in `work`.

    Raises:
        ValueError: a width that does not exist, a part that is not installed.
    """
    sets, folder = str(work / "data" / job.set), work / job.stem / job.key
    words, oracle = _words_kept(job, sets, folder), job.method == "oracle"
    last = checkpoint_in(folder)
    resume = [quoted("resume", last)] if last else []
    ready = prepared([*words, *job.places, *resume], sets, oracle)
    fit_surrogate(ready.module, ready.data, ready.config, folder)
    ready.module = ready.module.to(_place(ready.config))
    return job.row(_place(ready.config), **found_by(ready, job, words))


def _words_kept(job: Job, sets: str, folder: Path) -> list[str]:
    """Finds the words once: a width by seconds may be another the next time, for the same run."""
    file = folder / "words.json"
    with contextlib.suppress(OSError, ValueError):  # none yet, or a damaged one
        return json.loads(file.read_text(encoding="utf-8"))
    words = fitted_words(job, sets)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(words), encoding="utf-8")
    return words


def found_by(ready: Prepared, job: Job, words: Sequence[str]) -> dict[str, Any]:
    """Tests a trained model; returns the fields of its row."""
    data, module, oracle = ready.data, ready.module, isinstance(ready.module, OracleModule)
    model = module.surrogate
    steps = 0 if oracle else _rollout_steps(data, model.history)
    module.schedule = schedule = ready.by_turns()
    found = tested(module, data, schedule, steps, ready.cycle)
    blank = persistence(data, "test").vrmse.mean
    metrics: dict[str, Any] = {
        "vrmse": _number(found.one_step.mean()),
        "worst_decile": _number(worst_decile(found.one_step)),
        "persistence": blank,
        "transfer": None if oracle else _transfer(ready, job, found.one_step.mean()),
    }
    if job.config.get("fitted"):
        metrics["width"] = float(words[-1].split("=")[1])
    rollout = None
    if found.rollout is not None:
        rollout = rollout_of(found.rollout, model.history, WINDOWS)
    trained = any(p.requires_grad for p in model.parameters())
    timed = step_seconds(module, data, ready.cycle) if trained else _inference_alone(module, data)
    return {
        "tokens": float(found.tokens.mean()) if len(found.tokens) else None,
        "flops": float(found.flops),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": timed,
        "memory": found.memory,
        "metrics": metrics,
        "rollout": rollout,
    }


def _rollout_steps(data: WellData, history: int) -> int:
    """As many as the last window needs, or the trajectories have frames for."""
    for steps in sorted((window.stop for window in WINDOWS.values()), reverse=True):
        try:
            data.check_steps(("test",), steps, "steps")
        except ValueError:
            continue
        return steps
    return 0


def _transfer(ready: Prepared, job: Job, error: Tensor) -> float | None:
    """The error at a quarter of the tokens over that at the budget of the training; None for models
    that no budget is asked of.
    """
    if "budget" not in ready.module.surrogate.controls or job.value is None:
        return None
    quarter = {"name": "fixed", "settings": [{"budget": max(job.value // 4, 1)}]}
    module, before = ready.module, ready.module.schedule
    module.schedule = create_schedule(quarter)
    try:
        found = tested(module, ready.data, module.schedule, 0, 1)
    except ValueError:  # fewer tokens than its coarsest cells
        return None
    finally:
        module.schedule = before
    return _number(found.one_step.mean() / error)


def _inference_alone(module: SurrogateModule, data: WellData) -> dict[str, float]:
    from adaptok.evaluation.bench.timing import clock_of, paired

    place = module.surrogate.mean.device
    batch = on(place, next(iter(data.loader("train", 1))))
    took = paired({"all": lambda: predicted(module, batch, 0)}, clock=clock_of(place))["all"]
    return {"inference": max(min(took), 1e-9)}


def _number(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None
