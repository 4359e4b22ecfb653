"""MAE's recipe: each of its keys changes what is trained; batches are mixed as the labels say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("timm")

from adaptok.config import menu
from adaptok.tasks.classify import ImageData
from adaptok.tasks.classify.mixing import Mix
from adaptok.tasks.classify.run import fit_and_test_classifier

RECIPE = yaml.safe_load((menu.config_dir() / "recipe" / "mae.yaml").read_text())
# Another value of each key of the recipe; such that a training of four steps differs.
CHANGES = {
    "model.drop_path_rate": "0.9",
    "optim.lr": "0.02",
    "optim.lr_batch": "128",
    "optim.weight_decay": "5",
    "optim.betas": "[0.5,0.6]",
    "optim.decay": "exponential",
    "optim.warmup_epochs": "0.5",
    "optim.lr_start": "0.005",
    "optim.lr_min": "0.008",
    "optim.layer_decay": "0.9",
    "optim.label_smoothing": "0.5",
    "optim.ema": "0.9",
    "trainer.max_epochs": "3",
    "trainer.gradient_clip_val": "1e-4",
    "data.augment": "false",
    "data.crop_scale": "[0.9,1.0]",
    "data.auto_augment": "null",
    "data.random_erase": "0.9",
    "data.mixup": "0.1",
    "data.cutmix": "0.1",
    "data.mix": "0.1",
    "data.cutmix_share": "0.9",
    "data.interpolation": "nearest",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("one", "two"):
            (root / split / name).mkdir(parents=True)
            for i in range(8 if split == "train" else 1):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def trained(folder, out, *more: str) -> dict[str, torch.Tensor]:
    """The weights after a short training with the recipe."""
    words = ["task=classify", "recipe=mae", "model=test_vit", "model.img_size=64", "tokenizer=apt"]
    words += ["tokenizer.thresholds=[4]", "data=images", f"data.path={folder}", "optim.lr=0.01"]
    words += ["data.batch_size=8", "data.num_workers=0", "trainer.accelerator=cpu"]
    words += ["trainer.max_epochs=2", "optim.warmup_epochs=1", "optim.lr_batch=8"]
    words += ["trainer.enable_progress_bar=false", "seed=3"]
    if any(word.startswith("tokenizer=") for word in more):
        words = [word for word in words if not word.startswith("tokenizer")]
    chosen = menu.plain(menu.compose("train", [*words, *more]))
    fit_and_test_classifier(chosen, out)
    file = out / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True)["averaged_state_dict"]


def test_the_changes_are_of_all_keys():
    keys = {f"{group}.{key}" for group, node in RECIPE.items() for key in node}
    assert keys == set(CHANGES)


@pytest.mark.slow
def test_every_key_of_the_recipe_changes_what_is_trained(folder, tmp_path):
    plain = trained(folder, tmp_path / "plain")
    again = trained(folder, tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in plain.items())
    without_effect = []
    for key, value in CHANGES.items():
        other = trained(folder, tmp_path / key, f"{key}={value}")
        if all(torch.equal(value, other[name]) for name, value in plain.items()):
            without_effect.append(key)
    assert not without_effect


def pair_of(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of the first class in images of 1 and 0, as their pixels and as the labels say."""
    return images.mean((1, 2, 3)), labels[:, 0]


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_labels_are_mixed_as_the_pixels_are(mixup, cutmix):
    images = torch.ones(6, 3, 8, 8)
    images[::2] = 0
    labels = 1 - torch.arange(6) % 2  # class 0 where the image is 1
    shares = set()
    for seed in range(5):
        torch.manual_seed(seed)
        given = images.clone()
        mixed, targets = Mix(2, mixup, cutmix, 1.0, 0.5)(given, labels)
        torch.testing.assert_close(*pair_of(mixed, targets))
        assert torch.equal(given, images)
        assert set(mixed.unique().tolist()) <= {0, 1} or mixup
        shares.add(targets[0, 0].item())
    assert len(shares) > 3


def test_the_chances_of_mixing_are_kept():
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    mixed = Mix(2, 1.0, 1.0, 0.6, 0.25)
    found = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(300):
        torch.manual_seed(seed)
        x, targets = mixed(images, labels)
        assert torch.allclose(targets.sum(1), torch.ones(2))
        kept = (x == images).flatten(1).float().mean().item()
        found["none" if kept == 1 else "cutmix" if kept > 0 else "mixup"] += 1
    # Cutmix of an empty rectangle counts as none, of the whole image as mixup.
    assert 90 <= found["none"] <= 175
    assert found["mixup"] > 2 * found["cutmix"] > 20


def test_without_augmentation_nothing_is_mixed(folder):
    assert ImageData("x", folder, mixup=0.8, cutmix=1.0, augment=False).mixed is None
    assert ImageData("x", folder, mixup=0.8, mix=0.0).mixed is None
    assert ImageData("x", folder).mixed is None
    with pytest.raises(ValueError, match="mixup must be"):
        ImageData("x", folder, mixup=-1.0)


@pytest.mark.slow
def test_methods_are_measured_side_by_side(folder, tmp_path, monkeypatch):
    """The script of APT's Fig. 4, on models that were hardly trained."""
    import importlib.util

    from listed import HERE

    spec = importlib.util.spec_from_file_location("fig4", HERE / "apt_fig4" / "run.py")
    fig4 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fig4)
    monkeypatch.setattr(fig4, "REPEATS", 2)
    methods = {
        "small_base": ["tokenizer=uniform"],
        "small_apt_4": ["tokenizer.thresholds=[4]"],
        "small_tome_2": ["tokenizer=reduced", "tokenizer.reducer={name: tome, r: 2}"],
        "small_tome_adv_2": [
            "tokenizer=reduced",
            "tokenizer.reducer={name: tome, r: 2, weighted: false}",
        ],
    }
    folders = {name: tmp_path / name for name in methods}
    for name, words in methods.items():
        trained(folder, folders[name], "trainer.max_steps=1", "optim.warmup_epochs=0", *words)
    rows = fig4.measure(folders, torch.device("cpu"))
    cases = [(row["of"].removeprefix("small_"), row["attention"]) for row in rows]
    assert cases == [
        ("base", "fused"),
        ("base", "plain"),
        ("apt_4", "fused"),
        ("apt_4", "plain"),
        ("tome_2", "plain"),
        ("tome_adv_2", "fused"),
    ]
    own = {row["of"]: row for row in rows}
    assert own["small_base"]["tokens"] == 17  # 64 pixels in patches of 16, and a class token
    assert own["small_tome_2"]["tokens"] < 17
    assert own["small_tome_2"]["gflops_per_image"] < own["small_base"]["gflops_per_image"]
    assert rows[0]["speed_up"] == 1
    lines = fig4.trade_off(rows, "small_").axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [1, 1, 1, 1, 0, 0, 1, 1, 0, 0]
