"""Types: what factories return, protocols, jaxtyping's import hook, pyright on a user's file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typed import user_file

import adaptok
from adaptok.registry import DECODERS, EMBEDDINGS, INDICATORS, MARKINGS, PROCESSORS

ROOT = Path(__file__).parents[1]

HOOK = """
import importlib, pkgutil, sys
import jaxtyping

with jaxtyping.install_import_hook("adaptok", "beartype.beartype"):
    import adaptok

    for module in pkgutil.walk_packages(adaptok.__path__, "adaptok."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
import torch

field = torch.randn(2, 1, 2, 16, 16)
tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=24, budget=40)
processor = adaptok.create_processor("vit", tokenizer.spec, depth=1, heads=2)
painted = adaptok.create_decoder("auto", tokenizer.spec, 2)(processor(tokenizer(field)))
part = {"name": "iap", "budget": 40}
sizes = {"dim": 24, "depth": 1, "heads": 2}
model = adaptok.create_surrogate(ndim=2, in_channels=2, tokenizer=part, **sizes)
model(field).square().mean().backward()
assert model.rollout(field, 2).shape == (2, 2, *painted.shape[2:])
try:
    tokenizer("a field")
except jaxtyping.TypeCheckError:
    print("checked")
"""


@pytest.mark.slow
def test_the_package_works_under_the_import_hook_with_beartype():
    run = [sys.executable, "-c", HOOK]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("checked")


@pytest.mark.slow
def test_a_users_file_is_clean_under_strict_pyright(tmp_path):
    pytest.importorskip("pyright")
    text = Path(user_file.__file__).read_text()
    wrong = text.replace("self.decoder(tokens)", "self.decoder(field)")
    settings = {"include": ["*.py"], "typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "-p", str(tmp_path), "--pythonpath", sys.executable]
    for content, code in ((text, 0), (wrong, 1)):
        (tmp_path / "user_file.py").write_text(content)
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == code, done.stdout


def test_that_file_runs():
    logits, after = user_file.main()
    assert logits.shape == (2, 10)
    assert after.shape == (2, 1, 2, 16, 16)


def test_protocols_can_be_asked_at_run_time():
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=24)
    assert isinstance(tokenizer, adaptok.Tokenizer)
    assert not isinstance(nn.Identity(), adaptok.Tokenizer)
    wired = {"in_channels": 2, "sizes": tokenizer.spec.sizes}
    made = [INDICATORS.build(name, **wired) for name in INDICATORS.names()]
    assert all(isinstance(each, adaptok.Indicator) for each in made)
    assert all(isinstance(MARKINGS.create(n), adaptok.Marking) for n in MARKINGS.names())
    assert not isinstance(INDICATORS.create("gradient"), adaptok.Marking)
    embedding = EMBEDDINGS.create("linear", 2, 24, tokenizer.spec.sizes)
    assert isinstance(embedding, adaptok.Embedding)
    assert isinstance(PROCESSORS.create("vit", tokenizer.spec, depth=1), adaptok.Processor)
    assert isinstance(DECODERS.create("linear", tokenizer.spec, 2), adaptok.Decoder)
    assert not isinstance(torch.zeros(1), adaptok.Decoder)
