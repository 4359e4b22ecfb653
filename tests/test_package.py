"""The package as a whole: what importing it costs, which way imports go, what a wheel holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from importlinter.cli import lint_imports
from jaxtyping import Float, TypeCheckError, jaxtyped
from runtime_checks import after_the_call

ROOT = Path(__file__).parents[1]
HEAVY = [
    "torch.nn.attention.flex_attention",
    "hydra",
    "omegaconf",
    "lightning",
    "pytorch_lightning",
    "torchmetrics",
    "timm",
    "torchvision",
    "the_well",
    "h5py",
    "matplotlib",
    "wandb",
    "huggingface_hub",
]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Runs a fresh interpreter and returns what it printed; `path` goes first on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_import_is_light_and_python_trains_without_the_command_line():
    show = "print(json.dumps(sorted(sys.modules)))"
    code = f"import json, sys; import adaptok; {show}; import adaptok.tasks.pretrain; {show}"
    printed = python("-W", "ignore", "-c", code, cwd=ROOT).splitlines()
    light, training = (set(json.loads(line)) for line in printed)
    assert "adaptok" in light
    assert not light.intersection(HEAVY)
    assert "adaptok.tasks.surrogate" in training
    assert not [name for name in training if name == "hydra" or name.startswith("adaptok.cli")]


@pytest.mark.slow
def test_composing_a_configuration_needs_no_lightning():
    code = "import adaptok.config.menu, sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(python("-W", "ignore", "-c", code, cwd=ROOT)))
    assert not loaded.intersection({"lightning", "the_well", "matplotlib", "timm"})


def test_the_package_has_few_entries():
    """A stranger reads them all at a glance; a new topic belongs to one of the folders."""
    entries = {path.name for path in (ROOT / "adaptok").iterdir()} - {"__pycache__"}
    assert len(entries) <= 24, sorted(entries)


def test_imports_go_one_way():
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_type_checks_come_after_our_own_errors():
    @jaxtyped(typechecker=after_the_call)
    def double(field: Float[torch.Tensor, "b c"]) -> Float[torch.Tensor, "b c"]:
        if field.ndim == 1:
            raise ValueError("field needs (b, c)")
        return field.sum() if len(field) == 3 else field * 2

    assert double(torch.ones(2, 2)).shape == (2, 2)
    with pytest.raises(ValueError, match="needs"):
        double(torch.ones(2))
    with pytest.raises(TypeCheckError):  # a wrong rank that the function did not notice
        double(torch.ones(2, 2, 2))
    with pytest.raises(TypeCheckError):  # a wrong result
        double(torch.ones(3, 2))


def test_bytecode_with_checks_never_has_the_name_of_that_without(tmp_path):
    pytest.importorskip("beartype")
    from jaxtyping._import_hook import _JaxtypingLoader

    source, plain = str(tmp_path / "m.py"), str(tmp_path / "m.cpython-311.pyc")
    _JaxtypingLoader("m", source, typechecker=None)._cache_bytecode(source, plain, b"checks")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a source distribution, so that both are complete."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    return next(folder.glob("adaptok-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-index", "--target", str(folder))
    python("-m", "pip", "install", *options, str(wheel), cwd=folder)
    return folder


@pytest.mark.slow
def test_wheel_holds_code_and_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if name.startswith("adaptok/conf/")}
    configs = {p.relative_to(ROOT).as_posix() for p in (ROOT / "conf").rglob("*.yaml")}
    assert packaged == {f"adaptok/{name}" for name in configs}
    assert "adaptok/conf/train.yaml" in packaged
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "adaptok").rglob("*.py")}
    assert modules | {"adaptok/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "experiments"))]


@pytest.mark.slow
def test_wheel_runs_outside_the_checkout(installed, tmp_path):
    code = "import adaptok; print(adaptok.__file__)"
    assert python("-c", code, cwd=tmp_path, path=installed).startswith(str(installed))
    listed = python("-m", "adaptok", "list", "tokenizers", cwd=tmp_path, path=installed)
    assert "iap" in listed
    assert "uniform" in listed
    compose = (
        "from adaptok.config.menu import compose; print(compose('train', ['tokenizer=uniform']))"
    )
    assert "uniform" in python("-c", compose, cwd=tmp_path, path=installed)
