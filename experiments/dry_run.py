"""Full-size models without data, memory or arithmetic: parameters, tokens, and one forward pass.

Builds a model on the meta device and runs one forward pass under FakeTensorMode at the real shape
and batch, on a fake GPU. Whatever would wait for the device raises.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from dry_images import count_images
from fake import DEVICE, become_fake, clear_caches, count_parameters, empty, fresh_caches, noise
from listed import HERE, WORDS, Experiment, Run, expected
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_map_only

from adaptok import create_schedule, create_tokenizer
from adaptok.cells import Cells
from adaptok.config.build import build_multiphysics, check_knobs, vocabulary_of, without_statistics
from adaptok.config.menu import check_keys, compose, plain
from adaptok.data import FieldInfo, WellData
from adaptok.data.info import set_statistics
from adaptok.data.synthetic import SOLVERS, generate
from adaptok.evaluation.evaluate import evaluate, label_of
from adaptok.tasks.bench.sets import info_of
from adaptok.training.optim import Optim

SIZE = {"dim", "depth", "heads", "mlp_ratio"}
Config = Mapping[str, Any]


@dataclass
class Counts:
    """Holds what a dry run finds.

    Attributes:
        parameters: of the model.
        tokens: per sample, by setting.
        frames: number of frames that become tokens.
        shape: of the input.
        notes: differences from a real pass.
    """

    parameters: int = 0
    tokens: dict[str, float] = field(default_factory=dict)
    frames: int = 1
    shape: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)

    def value(self, metric: str, setting: str) -> float | None:
        if metric == "parameters":
            return self.parameters
        tokens = self.tokens.get(setting)
        if tokens is None or metric not in ("tokens", "tokens_per_frame"):
            return None
        return tokens / (self.frames if metric == "tokens_per_frame" else 1)


def composed(run: Run) -> dict[str, Any]:
    """Returns the configuration of a run, and checks that every key is read.

    Raises:
        ValueError: nothing reads a key.
    """
    words = run.words(Path("OUT"))
    config = plain(compose(run.command, words))
    if any(word.startswith("+") for word in words):  # Hydra refuses what is unknown without it
        check_keys(config, run.command)
        if unknown := {*config.get("size", SIZE)} - SIZE:
            raise ValueError(f"size has no {', '.join(unknown)}")
    if run.command == "eval":
        return config
    trainer = {k: v for k, v in config["trainer"].items() if k != "compile"}
    check_knobs(L.Trainer, "trainer", trainer)
    if config.get("task") != "classify":
        check_knobs(Optim, "optim", config["optim"])
        Optim(**config["optim"])
        create_schedule(config["schedule"])
        check_knobs(evaluate, "test", config["test"])
        _check_data(config["data"], run.sets)
    return config


def _check_data(data: Config, sets: Sequence[str]) -> None:
    about = {k: v for k, v in data.items() if k not in ("format", "generate")}
    check_knobs(WellData, "data", about)
    known = {*inspect.signature(generate).parameters}
    for name in sets:
        known |= {*SOLVERS.knobs(name)} if name in SOLVERS.names() else set()
    for key in data.get("generate") or {}:
        if key not in known:
            raise ValueError(f"unknown key 'data.generate.{key}'")


def count(run: Run, config: Config) -> Counts:
    """Counts parameters and tokens of a run, in one forward pass per setting."""
    with fresh_caches():
        if config["task"] == "pretrain":
            return _pretrain(run, config)
        if config["task"] == "classify":
            parameters, tokens, shape, notes = count_images(config)
            return Counts(parameters, {"": tokens}, 1, shape, notes)
        return _surrogate(config, info_of(config["data"]["name"]))


def _surrogate(config: Config, info: FieldInfo) -> Counts:
    if config.get("budget") is not None:
        raise ValueError("a full size gives the knobs of its tokenizer: `budget` needs the data")
    with torch.device("meta"):
        model: Any = without_statistics(config, info)
    found = Counts(parameters=count_parameters(model))
    batch, history = config["data"]["batch_size"], config["history"]
    shape = (batch, history, len(info.fields), *info.shape)
    found.shape = shape
    make = _cell_maker(config, info, model.history_mode)
    settings = [s for s in config["test"]["settings"] if "name" not in s]
    every = config["optim"].get("loss_frames") == "all"
    with FakeTensorMode(allow_non_fake_inputs=True):
        become_fake(model)
        constants = empty(batch, len(info.constants), *info.shape) if info.constants else None
        boundary = torch.tensor(info.boundary.tolist(), device=DEVICE).expand(batch, -1, -1)
        for setting in settings:
            label = label_of(setting) if setting else ""
            with _counted(model, found, label, batch, make, setting):
                more = {"constants": constants, "boundary": boundary, "all_frames": every}
                try:
                    out = model(empty(*shape), **more, **setting)
                except DynamicOutputShapeException:
                    _real_pass(config, info, found, make, setting)
                    continue
            wanted = (batch, history if every else 1, len(info.fields), *info.shape)
            assert tuple(out.shape) == wanted, f"{tuple(out.shape)} in place of {wanted}"
    return found


def _real_pass(config: Config, info: FieldInfo, found: Counts, make: Any, setting: Config) -> None:
    """Runs one sample on the CPU, for models with shapes that depend on values."""
    assert not info.constants
    found.notes.append("shapes depend on the data: a real pass of one sample")
    with torch._subclasses.fake_tensor.unset_fake_temporarily(), torch.no_grad():
        clear_caches()
        model: Any = without_statistics(config, info).eval()
        set_statistics(model, info)
        frames = noise(1, config["history"], len(info.fields), *info.shape)
        with _counted(model, found, label_of(setting) if setting else "", 1, make, setting):
            out = model(frames, boundary=info.boundary, **setting)
        assert out.shape[2:] == frames.shape[2:], f"{tuple(out.shape)}"
        clear_caches()


def _pretrain(run: Run, config: Config) -> Counts:
    """Counts one model for all sets of ``data=[a,b]``, in a pass at the shape of each."""
    infos = [info_of(name) for name in run.sets]
    lead = config["data"].get("max_lead", 1)
    config = {**config, "vocabulary": vocabulary_of(infos, lead)}
    with torch.device("meta"):
        model = build_multiphysics(config)
    found = Counts(parameters=count_parameters(model))
    batch, history = config["data"]["batch_size"], config["history"]
    makers = [_cell_maker(config, info, model.history_mode) for info in infos]
    with FakeTensorMode(allow_non_fake_inputs=True):
        become_fake(model)
        for info, make in zip(infos, makers, strict=True):
            system = model.system(info.fields, info.constants)
            become_fake(system)
            constants = empty(batch, len(info.constants), *info.shape) if info.constants else None
            boundary = torch.tensor(info.boundary.tolist(), device=DEVICE).expand(batch, -1, -1)
            with _counted(model, found, info.name, batch, make, {}):
                frames = empty(batch, history, len(info.fields), *info.shape)
                system(frames, constants=constants, boundary=boundary)
    return found


def _cell_maker(config: Config, info: FieldInfo, history_mode: str) -> Any:
    """Returns a function that makes real cells of noise, if their number depends on the data."""
    knobs = dict(config["tokenizer"])
    name = knobs.pop("name")
    fold = history_mode == "fold"
    history, c = config["history"], len(info.fields) * (config["history"] if fold else 1)
    c += len(info.constants)

    def cells(batch: int, control: Config) -> Cells:
        tokenizer = create_tokenizer(name, ndim=info.ndim, in_channels=c, dim=8, **knobs)
        field = noise(1, 1 if fold else history, c, *info.shape)
        field = field.repeat(batch, *[1] * (field.ndim - 1))
        return tokenizer.cells(field, boundary=info.boundary, **control)

    return cells


@contextmanager
def _counted(
    model: Any, found: Counts, label: str, batch: int, make: Any, setting: Config
) -> Iterator[None]:
    """Counts the rows that reach the processor; if their number depends on the data, the cells
    are those of noise.
    """

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        tokens = args[0]
        found.tokens[label] = tokens.features.shape[0] / batch
        found.frames = tokens.cells.shape[0] // tokens.cells.sizes[-1][0]

    if getattr(model, "processor", None) is None:  # a baseline
        yield
        return
    handle = model.processor.register_forward_pre_hook(note)
    own = model.tokenizer.cells
    control = {k: v for k, v in setting.items() if k in model.tokenizer.controls}

    def of_noise(*args: Any, **kwargs: Any) -> Cells:
        try:
            return own(*args, **kwargs)
        except torch._subclasses.fake_tensor.DataDependentOutputException:
            found.notes.append("number of cells depends on the data: cells of noise")
            with torch._subclasses.fake_tensor.unset_fake_temporarily():
                cells = make(batch, control)
            return tree_map_only(Tensor, lambda t: t.to(DEVICE), cells)

    model.tokenizer.cells = of_noise
    try:
        yield
    finally:
        handle.remove()
        del model.tokenizer.cells


def dry_run(experiment: Experiment, only: list[str] | None = None) -> tuple[list[str], list[str]]:
    """Does a dry run of every full-size run of an experiment.

    Returns:
        A line per run, and disagreements with expected.csv.
    """
    rows = [r for r in expected(experiment) if r["metric"] in CHECKED]
    lines, wrong, seen = [], [], set()
    for run in experiment.runs.get("full", []):
        if only and run.name not in only:
            continue
        seen.add(run.name)
        if run.owner != experiment.name:
            lines.append(f"{run.name}: see {run.owner}")
            continue
        if run.command == "script" and (of_script := scripted(run)):
            found = of_script
        elif run.command in WORDS:
            lines.append(f"{run.name}: adaptok {run.command} {' '.join(run.overrides)}")
            continue
        else:
            config = composed(run)
            if run.command != "train":
                lines.append(f"{run.name}: composes; its model is that of a checkpoint")
                continue
            found = count(run, config)
        tokens = ", ".join(f"{k or 'as built'}: {v:g}" for k, v in found.tokens.items())
        note = f" ({'; '.join(dict.fromkeys(found.notes))})" if found.notes else ""
        lines.append(f"{run.name}: {found.parameters} parameters, tokens {tokens}{note}")
        wrong += [w for row in rows if row["run"] == run.name if (w := differs(row, found))]
    if seen and not only:
        unknown = {r["run"] for r in expected(experiment)} - seen - {""}
        wrong += [f"expected.csv: no run {name!r}" for name in sorted(unknown)]
    return lines, wrong


def scripted(run: Run) -> Counts | None:
    """Counts a run by the ``dry_run`` of its folder's ``run.py``; None if that counts nothing."""
    path = HERE / run.owner / "run.py"
    spec = importlib.util.spec_from_file_location(f"{run.owner}_run", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    counted = getattr(script, "dry_run", lambda _: None)(run.overrides)
    if counted is None:
        return None
    parameters, tokens, note = counted
    return Counts(parameters=parameters, tokens={"": tokens}, notes=[note] * bool(note))


CHECKED = ("tokens", "tokens_per_frame", "parameters")


def differs(row: Mapping[str, str], found: Counts) -> str:
    """Says what is wrong with a count; empty if nothing is."""
    ours = found.value(row["metric"], row["setting"])
    where = " ".join(filter(None, (row["run"], row["setting"], row["metric"])))
    if ours is None:
        return f"{where}: not counted"
    if row["ours"]:
        good, wanted = ours == float(row["ours"]), f"{row['ours']} (ours)"
    else:
        value, tolerance = float(row["value"]), float(row["tolerance"] or 0)
        good, wanted = abs(ours - value) <= tolerance * value, f"{row['value']} within {tolerance}"
    return "" if good else f"{where}: {ours:g} in place of {wanted}"
