"""Set-up shared by all tests: quiet and offline, one thread, seeded, with run-time type checks."""

from __future__ import annotations

import os

# Before torch, matplotlib and the hub's client are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(MPLBACKEND="Agg", HYDRA_FULL_ERROR="1", WANDB_MODE="offline", HF_HUB_OFFLINE="1")

import random
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

# The gpu tests also run where only torch, numpy, einops, jaxtyping and pytest are installed.
if find_spec("beartype"):
    jaxtyping.install_import_hook("adaptok", "runtime_checks.after_the_call")
    from runtime_checks import keep_bytecode_apart

    keep_bytecode_apart()

if find_spec("hypothesis"):
    import hypothesis

    # Few: `make test-fast PYTEST_ARGS=--hypothesis-profile=thorough` tries many.
    hypothesis.settings.register_profile("local", deadline=None, max_examples=15)
    hypothesis.settings.register_profile(
        "ci", deadline=None, max_examples=15, derandomize=True, database=None
    )
    hypothesis.settings.register_profile("thorough", deadline=None, max_examples=200)
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

if find_spec("hydra"):
    import composing  # noqa: F401

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the gpu tests, and says why, on a machine without CUDA."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # a folder of that name is among the keywords
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> int:
    """The same random numbers in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """What a test compiled, or failed to, is forgotten: dynamo marks functions that all share."""
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    """No figure of a test, or of a page of the docs, is still open in the next one."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(autouse=True)
def registries(monkeypatch) -> None:
    """What a test registers, as the code blocks of the docs do, is gone after it."""
    import adaptok.training.optim  # noqa: F401 (registers the losses before they are copied)
    from adaptok import registry

    for part in [r for r in vars(registry).values() if isinstance(r, registry.Registry)]:
        part.names()  # loads the plug-ins, which stay
        monkeypatch.setattr(part, "_factories", dict(part._factories))


@pytest.fixture(autouse=True)
def unchecked_when_compiled(request: pytest.FixtureRequest, monkeypatch) -> None:
    """Turns the type checks off in tests with "compile" in their name: dynamo cannot trace them."""
    if "compile" not in request.node.name:
        return
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    if not find_spec("beartype"):
        return
    from runtime_checks import classes_of, unchecked

    # Switched off is not enough for methods of objects that are made inside the compiled function.
    for cls in classes_of("adaptok"):
        for name, attribute in list(vars(cls).items()):
            if unchecked(attribute) is not attribute:
                monkeypatch.setattr(cls, name, unchecked(attribute))


@pytest.fixture(scope="session", autouse=True)
def blank_pictures() -> Iterator[None]:
    """Saves one dot in place of each picture, except in tests that ask for them with `drawn`."""
    if not find_spec("matplotlib"):
        yield
        return
    import drawing

    with drawing.blank():
        yield


@pytest.fixture(scope="session", autouse=True)
def count_one_batch() -> Iterator[None]:
    """Counts the operations of one batch per evaluation: counting takes longer than running it."""
    module = sys.modules.get("adaptok.evaluation.evaluate")
    if module is None:  # no test of this session has imported it: lightning takes seconds
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COUNTED", 1)
        yield


@pytest.fixture
def drawn() -> Iterator[None]:
    """Pictures as users get them."""
    import drawing

    with drawing.drawn():
        yield


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Loads ``tests/golden/<name>.npz``: arrays computed by the papers' own code."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    return load
