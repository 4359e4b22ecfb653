"""Checkpoints, pickles and configurations of somebody else: refused by name, nothing runs."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import small_runs
import torch
import yaml
from reliability.rows import Row, Wrong, refusal, tried

import adaptok
from adaptok.cli import main
from adaptok.report import read_runs
from adaptok.training.checkpoints import find_resume, load_surrogate, read_checkpoint

MARKER = "ran"
PART = {"ndim": 2, "in_channels": 1, "dim": 8}


def command(*words: str) -> tuple[int, str]:
    """Runs the command line in this process; an error that is not the user's raises."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(list(words))
    return code, out.getvalue()


def changed(checkpoint: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Replaces an entry, or removes it if the value is ``del``."""
    kept = {k: v for k, v in checkpoint.items() if k != key}
    return kept if value == "del" else {**kept, key: value}


def edits(checkpoint: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], bool, bool]]:
    """Edited checkpoints: contents, whether the model loads, and whether a training resumes."""
    model = checkpoint["adaptok_model"]
    nan = {k: v * torch.nan if v.is_floating_point() else v
           for k, v in checkpoint["state_dict"].items()}  # fmt: skip
    table: dict[str, tuple[str, Any, bool, bool]] = {
        "no loops": ("loops", "del", True, False),
        "loops junk": ("loops", {"a": 1}, True, False),
        "loops text": ("loops", "x", False, False),
        "no optimizer": ("optimizer_states", "del", True, False),
        "optimizer empty": ("optimizer_states", [], True, False),
        "optimizer text": ("optimizer_states", "x", False, False),
        "other lightning": ("pytorch-lightning_version", "2.0.0", True, True),
        "no version": ("pytorch-lightning_version", "del", True, False),
        "config text": ("adaptok_config", "x", False, False),
        "no config": ("adaptok_config", "del", True, False),
        "state strings": ("state_dict", {"a": "b"}, False, False),
        "state list": ("state_dict", [torch.zeros(1)], False, False),
        "no state": ("state_dict", "del", False, False),
        "other names": ("averaged_state_dict", {"a": torch.zeros(1)}, False, False),
        "averaged none": ("averaged_state_dict", None, False, False),
        "step text": ("global_step", "x", False, False),
        "epoch text": ("epoch", "x", False, False),
        "callbacks text": ("callbacks", "x", False, False),
        "model junk": ("adaptok_model", {"kind": "nope"}, False, True),
        "model without kind": ("adaptok_model", {"name": "iap"}, False, True),
        "model with another key": ("adaptok_model", {**model, "zz": 1}, False, True),
        "model text": ("adaptok_model", "x", False, False),
        "raw weights NaN": ("state_dict", nan, True, False),
    }
    return {n: (changed(checkpoint, k, v), a, b) for n, (k, v, a, b) in table.items()}


def loaded(path: Path, may: bool) -> Wrong:
    return (
        (load_surrogate(path) and None) if may else refusal(lambda: load_surrogate(path), path.name)
    )


def resumed(path: Path, may: bool, folder: Path) -> Wrong:
    """Resumes on the command line: exit 0, or one line and exit 2."""
    words = [w for w in small_runs.train() if not w.startswith("trainer=")]
    words += ["trainer=debug", "trainer.max_steps=5", "test.steps=0"]
    code, out = command("train", *words, f"resume={path}", f"hydra.run.dir={folder}")
    if code == 0:
        return None if may else "resumed without a word"
    return "refused" if may and "another" not in out else None


class Payload:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.does = (function, arguments)

    def __reduce__(self) -> Any:
        return self.does


def payloads(marker: Path) -> dict[str, Any]:
    """Objects that would create the marker when a pickle of them is loaded."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Payload(os.system, touch),
        "exec": Payload(exec, code),
        "eval": Payload(eval, code),
        "open": Payload(open, str(marker), "w"),
        "subprocess.call": Payload(
            subprocess.call, touch, 0, None, None, None, None, None, True, True
        ),
        "Popen": Payload(subprocess.Popen, ["touch", str(marker)]),
        "Path.touch": Payload(Path.touch, marker),
        "os.open": Payload(os.open, str(marker), os.O_CREAT | os.O_WRONLY),
        "shutil.copy": Payload(shutil.copyfile, __file__, str(marker)),
        "partial": Payload(functools.partial(open, str(marker), "w")),
        "torch.save": Payload(torch.save, {}, str(marker)),
        "torch.load": Payload(torch.load, str(marker)),
        "os.mkdir": Payload(os.mkdir, str(marker)),
    }


def written(where: str, payload: Any, path: Path, how: str) -> None:
    content = payload if where == "whole" else {"state_dict": {}, where: payload}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")


def unpickled(path: Path, marker: Path) -> Wrong:
    wrong = refusal(lambda: read_checkpoint(path), path.name)
    return "the code ran" if marker.exists() else wrong


TAGS = {
    "os.system": "!!python/object/apply:os.system ['touch {}']",
    "exec": "!!python/object/apply:exec [\"open('{}','w')\"]",
    "new": "!!python/object/new:os.system ['touch {}']",
    "Popen": "!!python/object/apply:subprocess.Popen [[touch, '{}']]",
    "name": "!!python/name:os.system",
    "module": "!!python/module:antigravity",
}


def tagged(text: str, place: str, folder: Path) -> Wrong:
    """Reads YAML with tags of Python in each place; nothing may run."""
    marker = folder / MARKER
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    content = f"a: {text.format(marker)}\n"
    if place == "config.yaml, report":
        (run / "config.yaml").write_text(content)
        read_runs(folder)
    elif place == "config.yaml, resume=auto":
        (run / "config.yaml").write_text(content)
        (run / "checkpoints" / "last.ckpt").touch()
        if find_resume("auto", folder / "new", folder, {"a": 1}) is not None:
            return "resumed from it"
    elif place == "--config-dir":
        (run / "mine.yaml").write_text(content)
        command("train", f"--config-dir={run}", *small_runs.train(), "trainer.max_steps=0")
    else:
        (run / "data" / "train").mkdir(parents=True)
        (run / "stats.yaml").write_text(content)
        from adaptok.data.check import check

        check(run)
    return "the code ran" if marker.exists() else None


def configurations(folder: Path) -> dict[str, str]:
    """Contents for config.json of a saved model."""
    adaptok.save_pretrained(adaptok.create_tokenizer("iap", **PART), folder)
    good = json.loads((folder / "config.json").read_text())
    many: dict[str, Any] = {
        "not an object": [],
        "null": None,
        "empty": {},
        "unknown key": {**good, "zz": 1},
        "no kind": {k: v for k, v in good.items() if k != "kind"},
        "another kind": {**good, "kind": "nope"},
        "kind is a list": {**good, "kind": []},
        "format of the future": {**good, "format": 99},
        "format text": {**good, "format": "x"},
        "made is text": {**good, "made": "x"},
        "made is null": {**good, "made": None},
        "options text": {**good, "options": "x"},
        "a target": {**good, "_target_": "os.system"},
        "a hub's model": {**good, "kind": "vision", "model": "hf-hub:a/b"},
    }
    texts = {name: json.dumps(content) for name, content in many.items()}
    return {**texts, "half": "{", "no text": "\0\0", "deep": "[" * 20_000, "nothing": ""}


def other_configuration(text: str, folder: Path) -> Wrong:
    adaptok.save_pretrained(adaptok.create_tokenizer("iap", **PART), folder)
    (folder / "config.json").write_text(text)
    return refusal(lambda: adaptok.from_pretrained(folder), "config.json")


INTERPOLATED = {
    "variable": "${oc.env:MY_SECRET}",
    "variable with default": "${oc.env:MY_SECRET,none}",
    "decoded": "${oc.decode:${oc.env:MY_SECRET}}",
    "another key": "${seed}",
}
PLACES = ("note", "name", "data.base", "logger", "callbacks")


def evaluated(checkpoint: dict[str, Any], place: str, value: Any, folder: Path) -> Wrong:
    """Evaluates a foreign checkpoint: no variable, no file elsewhere, no address."""
    config = yaml.safe_load(yaml.safe_dump(checkpoint["adaptok_config"]))
    node, (*parents, last) = config, place.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    torch.save({**checkpoint, "adaptok_config": config}, folder / "foreign.ckpt")
    before = {*folder.iterdir()}
    code, out = command(
        "eval", f"ckpt={folder / 'foreign.ckpt'}", "steps=0", f"hydra.run.dir={folder / 'run'}"
    )
    new = {*folder.iterdir()} - before - {folder / "run"}
    if new:
        return f"wrote {new.pop().name}"
    texts = [f.read_bytes() for f in (folder / "run").rglob("*") if f.is_file()]
    if b"hunter2" in b"".join(texts) or "hunter2" in out:
        return "the variable leaked"
    if code and not out.strip().splitlines()[-1].startswith("adaptok: error"):
        return out[-200:]
    return None


def run(folder: Path, quick: bool = False) -> list[Row]:
    """All of it; `quick`: every fifth."""
    step = 5 if quick else 1
    trained = folder / "trained"
    code, out = command("train", *small_runs.train(), f"hydra.run.dir={trained}")
    assert code == 0, out
    whole = read_checkpoint(trained)
    loads, resumes = [], []
    for name, (content, may_load, may_resume) in [*edits(whole).items()][::step]:
        path = folder / f"{name}.ckpt"
        torch.save(content, path)
        loads.append((name, lambda p=path, m=may_load: loaded(p, m)))
        place = folder / "resumed" / name
        resumes.append((name, lambda p=path, m=may_resume, f=place: resumed(p, m, f)))
    rows = [tried("edited checkpoints, load_surrogate", loads)]
    rows.append(tried("edited checkpoints, resumed", resumes))
    pickles = []
    for n, where in enumerate(("whole", "state_dict", "adaptok_config", "callbacks")):
        for how in ("zip", "legacy", "pickle"):
            marker = folder / MARKER
            for name, payload in payloads(marker).items():
                path = folder / f"{name}-{n}-{how}.ckpt"
                written(where, payload, path, how)
                label = f"{name} in {where}, {how}"
                pickles.append((label, lambda p=path, m=marker: unpickled(p, m)))
    rows.append(tried("hostile pickles", pickles[::step], "none ran"))
    places = ("config.yaml, report", "config.yaml, resume=auto", "--config-dir", "stats.yaml")
    tags = [
        (f"{name} in {place}", lambda t=text, p=place, f=folder / f"{name}-{n}": tagged(t, p, f))
        for name, text in TAGS.items()
        for n, place in enumerate(places)
    ]
    rows.append(tried("YAML with tags of Python", tags[::step], "none ran"))
    configs = [
        (name, lambda t=text, f=folder / f"config {n}": other_configuration(t, f))
        for n, (name, text) in enumerate(configurations(folder / "good").items())
    ]
    rows.append(tried("foreign config.json, from_pretrained", configs[::step]))
    os.environ["MY_SECRET"] = "hunter2"
    os.environ["ADAPTOK_DATA"] = str(small_runs.root())
    values = [(p, v) for p in PLACES for v in INTERPOLATED.values()]
    values += [("data.base", folder / "theirs"), ("data.base", "http://127.0.0.1:9/x")]
    evals = []
    for n, (place, value) in enumerate(values[::step]):
        own = folder / f"eval{n}"
        own.mkdir()
        evals.append(
            (f"{place}={value}", lambda p=place, v=str(value), f=own: evaluated(whole, p, v, f))
        )
    rows.append(tried("foreign checkpoint given to eval", evals))
    return rows
