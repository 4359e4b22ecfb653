"""Saved models: safetensors, a JSON configuration and a model card, in a folder or on the hub.

Nothing here unpickles: a file can hold wrong numbers, but no code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors
from safetensors.torch import load, save
from torch import Tensor, nn

from adaptok.models.baselines import create_baseline
from adaptok.models.multiphysics import create_multiphysics, create_system
from adaptok.models.one_step import OneStepModel
from adaptok.models.parts import SIZES, create_tokenizer
from adaptok.models.recording import CLASS, places, recorded, refusals, with_border, with_parts
from adaptok.models.surrogate import create_surrogate
from adaptok.tokens import Tokenizer, TokenizerSpec
from adaptok.utils.arguments import checked_names
from adaptok.utils.atomic import replacing
from adaptok.utils.checksums import with_checksum, wrong_checksum

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1


@runtime_checkable
class HasCard(Protocol):
    """Results that a model card can show."""

    def card(self) -> str: ...  # noqa: D102


def _vision(**config: Any) -> nn.Module:
    # Imported by name, because the core must not import timm.
    return import_module("adaptok.vision.apply").build_vision(**config)


def _hf(**config: Any) -> nn.Module:
    return import_module("adaptok.vision.hf.saving").build(**config)


BUILDERS = {
    "surrogate": create_surrogate,
    "baseline": create_baseline,
    "tokenizer": create_tokenizer,
    "multiphysics": create_multiphysics,
    "system": create_system,
    "vision": _vision,
    "hf": _hf,
}


def save_pretrained(
    model: Any,
    folder: str | Path,
    *,
    description: str = "",
    results: HasCard | None = None,
) -> Path:
    """Writes a model or a tokenizer, so that `from_pretrained` builds it again.

    Each file is complete or absent, whenever the process is killed; the configuration comes last,
    and without it nothing loads. The folder can be uploaded to the Hugging Face hub as it is.

    Args:
        model: a `Surrogate`, or what `create_multiphysics` (or one of its systems),
            `create_tokenizer` or `adaptok.models.baselines.create_baseline` built, or a model of
            timm or transformers that `adaptok.vision.apply_apt` or `apply_reducer` adapted. Parts
            of your own are noted by class and knobs; one that is ready says the arguments of its
            class by an attribute `config`, a mapping of plain values.
        folder: created if need be.
        description: a paragraph for the model card.
        results: what `adaptok.evaluation.evaluate.evaluate` returned, for the model card.

    Returns:
        The folder.

    Raises:
        ValueError: another model, parts of which nothing says how they were made, arguments that
            JSON cannot hold, or a model that its arguments do not build again.
    """
    folder, config = Path(folder), _config(model)
    if config is None:
        raise ValueError(
            f"nothing says how this {type(model).__name__} was built: what can be saved is what "
            "adaptok.create_surrogate, create_multiphysics and create_tokenizer, "
            "adaptok.models.baselines.create_baseline, and adaptok.vision.apply_apt and "
            "apply_reducer return"
        )
    if reasons := list(refusals({"model": config})):
        raise ValueError(f"the model cannot be built again from a file. {'; '.join(reasons)}")
    text = _json({"format": FORMAT, **config})
    if check := getattr(model, "check_rebuilt", None):
        check()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    card = model_card(model, description=description, results=results)
    for name, content in (
        (WEIGHTS, with_checksum(save(weights, metadata={"format": "pt"}))),
        (CARD, card.encode()),
        (CONFIG, text.encode()),
    ):
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder


def _config(model: Any) -> Mapping[str, Any] | None:
    """What `build` builds the model again from, if it knows."""
    config = getattr(model, "config", None)
    if type(config).__module__.startswith("transformers."):
        config = import_module("adaptok.vision.hf.saving").config_of(model)
    if isinstance(config, Mapping) and config.get("kind") in BUILDERS:
        return config
    if not isinstance(model, Tokenizer):
        return None
    fields = {"ndim": model.spec.ndim, "in_channels": model.spec.in_channels, "dim": model.spec.dim}
    return {"kind": "tokenizer", **recorded(model), **fields}


def _json(config: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the model was built with an argument that JSON cannot hold ({error}); use numbers, "
            "strings, lists and mappings"
        ) from error
    return text + "\n"


@checked_names
def from_pretrained(
    where: str | Path,
    *,
    revision: str | None = None,
    parts: Mapping[str, str | Callable[..., Any]] | None = None,
) -> Any:
    """Builds what `save_pretrained` wrote, weights and statistics included, in evaluation mode.

    Args:
        where: a folder, or an id on the Hugging Face hub ("group/model"; needs huggingface_hub).
        revision: branch, tag or commit on the hub.
        parts: classes (or factories, or registered names) of the parts that have none of the
            registered names, by their place: ``{"tokenizer": MyTokenizer}``, or
            ``{"tokenizer.indicator": MyIndicator}`` for a part of it. What a file says of classes
            is shown, never imported.

    Returns:
        A `Surrogate`, a `Baseline`, a `Multiphysics` model or one of its systems, a tokenizer, or a
        model that `adaptok.vision.apply_apt` or `apply_reducer` wrapped.

    Raises:
        ValueError: no such folder or id; a file is missing, damaged or of another model; a part
            whose class is not given.
    """
    folder = _find(where, revision)
    model = build(read_config(folder), folder / CONFIG, parts)
    _load(model, folder / WEIGHTS)
    return model.eval()


def build(
    config: Mapping[str, Any],
    where: str | Path,
    parts: Mapping[str, str | Callable[..., Any]] | None = None,
) -> Any:
    """Builds a model with fresh weights from the attribute ``config`` of another.

    Args:
        config: plain values, perhaps from somebody else.
        where: the file that holds it, for messages.
        parts: see `from_pretrained`.

    Raises:
        ValueError: it does not describe a model that this version builds.
    """
    kind = config.get("kind") if isinstance(config, Mapping) else None
    if not isinstance(kind, str) or kind not in BUILDERS:
        raise ValueError(f"{where} must name the kind of its model, one of {', '.join(BUILDERS)}")
    config = with_border(config, "split")
    arguments = {k: v for k, v in with_parts(config, parts or {}).items() if k != "kind"}
    try:
        return BUILDERS[kind](**arguments)
    except Exception as error:  # whatever the arguments of somebody else lead to
        raise ValueError(f"{where} does not describe a model that can be built: {error}") from error


def _find(where: str | Path, revision: str | None) -> Path:
    folder = Path(where)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{folder} is a folder, which has no revision {revision!r}")
        return folder
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give the folder that it is in, {folder.parent}")
    parts = str(where).split("/")
    if isinstance(where, Path) or len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise ValueError(f"no folder {where}, and that is no id on the hub (group/model) either")
    try:
        from huggingface_hub import snapshot_download

        files = [CONFIG, WEIGHTS]
        return Path(snapshot_download(str(where), revision=revision, allow_patterns=files))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"no folder {where}; to load it from the hub: pip install huggingface_hub"
        ) from error
    except Exception as error:  # many kinds: offline, not found, gated ... each says what it is
        at = f" at revision {revision}" if revision else ""
        raise ValueError(
            f"there is no folder {where}, and the hub does not give that model{at}: {error}"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Reads what `build` takes from a folder of `save_pretrained`.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    path = folder / CONFIG
    if not path.is_file():
        inner = folder / "model"
        if (inner / CONFIG).is_file():
            raise ValueError(f"{folder} is the folder of a run: give its folder model: {inner}")
        there = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ValueError(
            f"no {CONFIG} in {folder} (there is {there}): not saved by save_pretrained"
        )
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(config).__name__}")
    version = config.pop("format", None)
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version}; this version of adaptok reads format {FORMAT}"
        )
    return config


def _load(model: nn.Module, path: Path) -> None:
    there = read_tensors(path)
    if wrong := wrong_tensors(there, model.state_dict(), "in the file", "in the model"):
        raise ValueError(f"{path} does not fit its {CONFIG}: {wrong}")
    kinds = {there[name].dtype for name, _ in model.named_parameters()}
    if len(kinds) == 1 and (kind := kinds.pop()).is_floating_point:
        model.to(kind)  # what is not saved as well
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and there[name].is_floating_point():
            tensor.data = tensor.data.to(there[name].dtype)
    model.load_state_dict(there)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file of `save_pretrained` by name.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}; weights in other files are not read")
    try:
        content = path.read_bytes()
        there = load(content)
        damaged = wrong_checksum(content)
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    if damaged:
        raise ValueError(f"{path} is damaged: its checksum is wrong; copy it again")
    return there


def wrong_tensors(
    there: Mapping[str, Tensor], here: Mapping[str, Tensor], of_file: str, of_model: str
) -> str:
    """Says in which shapes two states differ, three of them at most; empty if they fit."""

    def shape(state: Mapping[str, Tensor], name: str) -> Any:
        return tuple(state[name].shape) if name in state else "absent"

    wrong = [
        f"{name} is {shape(there, name)} {of_file}, {shape(here, name)} {of_model}"
        for name in dict.fromkeys([*here, *there])
        if shape(there, name) != shape(here, name)
    ]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def model_card(model: Any, *, description: str = "", results: HasCard | None = None) -> str:
    """Writes the model card: what the model is, how it was built and tested, how to load it."""
    known = _config(model) or {}
    config, kind = _telling(known), known["kind"]
    count = sum(p.numel() for p in model.parameters())
    lines = ["---", "library_name: adaptok", f"tags: [adaptok, {kind}]", "---", ""]
    lines += [f"# {_title(config)}"]
    lines += ["", description] if description else []
    lines += ["", f"A {kind} for adaptok with {count:,} parameters.", "", "## Use", "", "```python"]
    own = ", ".join(f'"{place}": {name.rpartition(".")[2]}' for place, name in places(known))
    parts = f", parts={{{own}}}" if own else ""
    lines += [
        "import adaptok",
        "",
        f'model = adaptok.from_pretrained("path/to/this/folder"{parts})',
    ]
    if isinstance(model, OneStepModel):
        lines[-2:-2] = ["import torch"]
        lines += _example(model, results)
    lines += ["```", "", "## Built with", "", "```json", json.dumps(config, indent=2), "```"]
    if results is not None:
        lines += ["", "## Tested", "", results.card()]
    known = "It knows the data it was trained on: its grid spacing, time step and parameter ranges."
    return "\n".join([*lines, "", "## Limits", "", known, ""])


def _telling(known: Mapping[str, Any]) -> dict[str, Any]:
    """What a card shows of how a model was built: no default that its parts do not follow."""
    processor = known.get("processor")
    own = [key for key in SIZES if isinstance(processor, Mapping) and key in processor]
    return {k: v for k, v in known.items() if k != "kind" and k not in own}


def _example(model: OneStepModel, results: HasCard | None) -> list[str]:
    """Lines that run the model on random fields of the grid and boundary that it was tested on."""
    grid = [int(n) for n in getattr(results, "grid", ())] or _grid(model)
    space = ", ".join(map(str, grid))
    lines = [
        "# (batch, frames, fields, *space) in physical units; random here",
        f"field = torch.randn(1, {model.history}, {model.in_channels}, {space})",
    ]
    given = ["field"]
    if model.constant_channels:
        lines += [f"constants = torch.rand(1, {model.constant_channels}, {space})  # static fields"]
        given += ["constants=constants"]
    if boundary := [list(map(int, ends)) for ends in getattr(results, "boundary", ())]:
        lines += ["# at both ends of each axis: wall 0, open 1, periodic 2"]
        lines += [f"boundary = torch.tensor({boundary})"]
        given += ["boundary=boundary"]
    return [*lines, f"frame = model({', '.join(given)})  # the next one"]


def _grid(model: OneStepModel) -> list[int]:
    """A grid on which a model of unknown data runs: a few of its coarsest cells along each axis."""
    core = getattr(model, "core", model)
    spec = getattr(getattr(core, "tokenizer", None), "spec", None)
    if not isinstance(spec, TokenizerSpec):
        return [64 if model.ndim < 3 else 32] * model.ndim
    return [n * (4 if model.ndim < 3 else 2) for n in spec.sizes[0][1:]]


def _title(config: Mapping[str, Any]) -> str:
    config = config.get("model", config)
    if isinstance(config, str):  # timm's name
        return config
    part = config.get("tokenizer", config.get("baseline", config))
    return part.get("name", part.get(CLASS)) if isinstance(part, Mapping) else str(part)
