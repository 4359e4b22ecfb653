"""Programs: torch.export with a dynamic batch, ONNX, and calls after any trace."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import re

import pytest
import torch
from torch.export import Dim

import adaptok
from adaptok.cells.lengths import Equal, common, distinct, each, number, offsets_of, repeated, total

SMALL = {"ndim": 2, "in_channels": 1, "dim": 8}
CPU = torch.device("cpu")
BATCH = Dim("batch")


def exported(module, x, name="field"):
    return torch.export.export(module, (x,), dynamic_shapes={name: {0: BATCH}}).module()


def fields(b: int, history: int = 1) -> torch.Tensor:
    return torch.randn(b, history, 1, 16, 16, generator=torch.Generator().manual_seed(b))


def assert_any_batch(module, program, inputs=fields, batches=(1, 4)):
    with torch.no_grad():
        for b in batches:
            x = inputs(b)
            torch.testing.assert_close(program(x), module(x), rtol=1e-5, atol=1e-5)


# ---- lengths


@pytest.mark.parametrize("length", [0, 3])
def test_lengths_of_any_batch_equal_those_of_a_known_one(length):
    """A symbol is only made inside of a trace; a number stands for it here."""
    some, known = Equal(length, 4), repeated(length, 4)
    assert known == (length,) * 4
    for ask in (total, number, common, distinct):
        assert ask(some) == ask(known)
    assert each(some, lambda n: n + 2).length == each(known, lambda n: n + 2)[0]
    assert torch.equal(offsets_of(some, CPU), offsets_of(known, CPU))


def test_lengths_that_differ_have_no_common_one():
    assert common((2, 3)) is common(()) is common(None) is None
    assert distinct((2, 3, 2)) == (2, 3)


# ---- a dynamic batch


TOKENIZERS = {
    "ckm": {"name": "ckm", "size": 4},
    "csm": {"name": "csm"},
    "iap": {"name": "iap", "max_size": 4, "budget": 22},
    "stepwise": {"name": "iap", "max_size": 4, "budget": 28, "splits_per_step": 2},
    "matey": {"name": "matey", "sizes": (4, 8), "fraction": 0.5},
    "any score": {
        "name": "composed",
        "indicator": "laplacian",
        "embedding": "resize_zero",
        "max_size": 4,
        "marking": {"name": "budget", "budget": 22},
    },
}


@pytest.mark.parametrize(
    "name", ["uniform", *(pytest.param(n, marks=pytest.mark.slow) for n in TOKENIZERS)]
)
def test_static_tokenizers_export_for_any_batch(name):
    torch.manual_seed(0)
    own = dict(TOKENIZERS.get(name, {"name": name}))
    tokenizer = adaptok.create_tokenizer(own.pop("name"), **SMALL, **own)
    program = exported(tokenizer, fields(2))
    for b in (1, 4):
        got, expected = program(fields(b)), tokenizer(fields(b))
        torch.testing.assert_close(got.features, expected.features)
        for part in ("origin", "size", "level", "cu_seqlens"):
            assert torch.equal(getattr(got.cells, part), getattr(expected.cells, part))
        assert got.cells.lengths is None
        assert got.cells.shape == expected.cells.shape


PARTS = {
    **{f"processor {name}": {"processor": name} for name in adaptok.PROCESSORS.names()},
    **{f"decoder {name}": {"decoder": name} for name in ("cross_attention", "hmlp", "local")},
    "windows": {"decoder": {"name": "cross_attention", "window": 16}},
    "windows of two kinds": {"decoder": {"name": "cross_attention", "window": 24}},
    "iap": {"tokenizer": TOKENIZERS["iap"]},
    "ckm": {"tokenizer": TOKENIZERS["ckm"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_surrogates_export_for_any_batch(parts):
    torch.manual_seed(0)
    history = 2 if "processor" in parts else 1
    arguments = {**SMALL, "dim": 24, "depth": 1, "heads": 2, "history": history}
    model = adaptok.create_surrogate(**{"tokenizer": "uniform", **arguments, **parts}).eval()
    program = exported(model, fields(2, history))
    assert_any_batch(model, program, lambda b: fields(b, history))


# ---- what cannot be exported


@pytest.mark.parametrize("name", ["apt", "matey"])
def test_counts_that_follow_the_content_are_refused(name):
    tokenizer = adaptok.create_tokenizer(name, **SMALL)
    with pytest.raises(ValueError, match=rf"tokenizer '{name}' .*: use the tokenizer 'composed'"):
        torch.export.export(tokenizer, (torch.randn(2, 1, 1, 32, 32),))
    assert len(tokenizer(torch.randn(2, 1, 1, 32, 32)))


def test_budgets_that_need_the_batch_are_refused():
    marking = {"name": "budget", "budget": 22, "per_batch": True}
    shared = adaptok.create_tokenizer("composed", **SMALL, max_size=4, marking=marking)
    with pytest.raises(ValueError, match="per_batch"):
        exported(shared, fields(2))

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.iap = adaptok.create_tokenizer("iap", **SMALL, max_size=4)

        def forward(self, field):
            return self.iap(field, budget=[16, 22]).features

    with pytest.raises(ValueError, match="one budget for all"):
        exported(Two(), fields(2))


# ---- timm models


def wrapped(**options):
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    pool = "avg" if options.get("window") else "token"  # windows alone would cut the token off
    model = VisionTransformer(**sizes, num_classes=3, global_pool=pool)
    norm = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    budget = {"name": "budget", "budget": 10}
    return adaptok.vision.apply_apt(model, (5.0,), **{"marking": budget, **norm, **options}).eval()


def images(b: int) -> torch.Tensor:
    return torch.randn(b, 3, 16, 16, generator=torch.Generator().manual_seed(b))


def test_thresholds_are_refused_by_name_before_anything_is_traced():
    fast = wrapped(marking=None)
    with pytest.raises(ValueError, match=r"apply_apt with thresholds .*give marking="):
        torch.export.export(fast, (images(2),))
    assert fast(images(2)).shape == (2, 3)


FILLED = {"name": "threshold", "thresholds": (5.0,), "budget": 10, "fill": True}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"window": 8}, {"marking": FILLED}])
def test_wrapped_timm_models_export_for_any_batch(options):
    fast = wrapped(**options)
    fast(images(3))
    program = exported(fast, images(2), "x")
    assert fast.last_cells.batch_size == 3
    assert type(fast.last_cells.origin) is torch.Tensor
    assert_any_batch(fast, program, images)


@pytest.mark.slow
def test_wrapped_timm_models_run_in_onnxruntime(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    fast = wrapped(marking=FILLED)
    program = torch.export.export(fast, (images(2),), dynamic_shapes={"x": {0: BATCH}})
    torch.onnx.export(program, (), tmp_path / "fast.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "fast.onnx")
    for b in (1, 2, 5):
        (logits,) = session.run(None, {"x": images(b).numpy()})
        expected = fast(images(b)).detach()
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)


# ---- after any trace


def in_step(**registries) -> list[dict[str, str]]:
    """Rows with a part of each registry, in which every part is met."""
    names = [registry.names() for registry in registries.values()]
    turns = itertools.islice(zip(*map(itertools.cycle, names), strict=True), max(map(len, names)))
    return [dict(zip(registries, row, strict=True)) for row in turns]


def composed(**parts):
    return adaptok.create_tokenizer("composed", **SMALL, **parts, max_size=4)  # few levels


class Scores(torch.nn.Module):
    """A tokenizer up to the scores of its indicator."""

    def __init__(self, indicator: str) -> None:
        super().__init__()
        self.tokenizer = composed(indicator=indicator)

    def forward(self, field: torch.Tensor) -> torch.Tensor:
        return self.tokenizer.scores(field)[0]


def surrogate(**parts):
    tokenizer = {} if "tokenizer" in parts else {"tokenizer": "uniform"}
    if parts.get("decoder") == "modulated":
        tokenizer = {"tokenizer": "ckm"}
    shared = {**SMALL, "dim": 24, "depth": 1, "heads": 2, "history": 2, "history_mode": "frames"}
    return adaptok.create_surrogate(**shared, **{**parts, **tokenizer})


def together_or_alone(create, parts: dict[str, str]) -> list[torch.nn.Module]:
    """One module of all parts, or one of each where they do not go together."""
    with contextlib.suppress(ValueError):
        return [create(**parts)]
    found = []
    for key, name in parts.items():
        with contextlib.suppress(ValueError):  # it needs more than a name
            found.append(create(**{key: name}))
    return found


ROWS = [
    *((Scores, row) for row in in_step(indicator=adaptok.INDICATORS)),
    *((composed, row) for row in in_step(marking=adaptok.MARKINGS, embedding=adaptok.EMBEDDINGS)),
    *((surrogate, row) for row in in_step(tokenizer=adaptok.TOKENIZERS)),
    *((surrogate, row) for row in in_step(processor=adaptok.PROCESSORS, decoder=adaptok.DECODERS)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("create", "row"), ROWS, ids=lambda v: "-".join(v.values()) if isinstance(v, dict) else ""
)
def test_eager_calls_work_after_export_compile_and_meta(create, row):
    """Every registered part: indicators alone, a tokenizer's other parts, and whole surrogates."""
    for turn, model in enumerate(together_or_alone(create, row)):
        # A size per part, so that no constant is there before the trace.
        check_after_traces(model.eval(), 16 * (2 + (turn + sum(map(ord, str(row)))) % 5))


def check_after_traces(model: torch.nn.Module, side: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2 if isinstance(model, adaptok.Surrogate) else 1, 1, side, 16)
    for trace in (
        lambda: torch.export.export(model, (x,)),
        lambda: torch.compile(model, backend="eager")(x),
        lambda: copy.deepcopy(model).to("meta")(x.to("meta")),
    ):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            trace()  # a part may refuse; what it leaves behind must not matter
        with torch.no_grad():
            out = model(x)
        out = getattr(out, "features", out)
        assert type(out) is torch.Tensor
        assert out.isfinite().all()


def test_what_the_refusal_advises_is_exported():
    x, entropy = torch.randn(2, 1, 1, 32, 32), {**SMALL, "indicator": "entropy"}
    bars = {"name": "threshold", "thresholds": 5.5}
    tokenizer = adaptok.create_tokenizer("composed", **entropy, marking=bars)
    with pytest.raises(ValueError, match="per sample: give marking=") as said:
        torch.export.export(tokenizer, (x,))
    advised = [json.loads(one) for one in re.findall(r"{.*?}", str(said.value).replace("T", "t"))]
    assert [marking["name"] for marking in advised] == ["budget", "threshold"]
    for marking in advised:
        fixed = adaptok.create_tokenizer("composed", **entropy, marking=marking)
        assert torch.export.export(fixed, (x,))
