"""Track T2: image classifiers and their dense features at a share of the patches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptok.config.menu import compose, plain
from adaptok.evaluation.bench.features import dense, loss, merges
from adaptok.evaluation.cost import cost_of
from adaptok.evaluation.evaluate import device_of
from adaptok.evaluation.standings import Row
from adaptok.evaluation.standings.checking import NAME
from adaptok.tasks.bench.job import Job, Price, checkpoint_in, least_memory
from adaptok.tasks.classify import ImageData
from adaptok.tasks.classify.models import (
    build_classifier,
    build_timm,
    check_model,
    load_classifier,
)
from adaptok.tasks.classify.run import fit_and_test_classifier, image_data
from adaptok.tasks.classify.sets import find_images
from adaptok.utils.keys import quoted
from adaptok.vision.random_cells import RandomCells

DIGITS = "digits"
SEEDS = (0, 1, 2)
SHARES = (0.5, 0.25)
LEVELS = 2  # merged sizes of cells
CALIBRATED = 512  # training images that thresholds are found on
Words = list[str]


@dataclass(frozen=True)
class ImageSet:
    """Images and the model that is trained on them.

    Attributes:
        name: in rows.
        words: overrides of `adaptok train` that all methods share.
        side: of the images.
        patch: side of the patches.
        options: further ``model.options``, as text without braces.
        depth: blocks of the model.
        seconds: of one core or of a GPU, per job.
        memory: bytes.
        places: overrides that say where images and weights are.
        weights: hash of the file of weights; "" without one.
    """

    name: str
    words: tuple[str, ...]
    side: int
    patch: int
    options: str
    depth: int
    seconds: float
    memory: float
    places: tuple[str, ...] = ()
    weights: str = ""

    @property
    def patches(self) -> int:
        """Counts the patches."""
        return (self.side // self.patch) ** 2

    def cut(self, side: int, patch: int) -> Words:
        """Sets the sides of images and patches."""
        more = f", {self.options}" if self.options else ""
        return [f"model.img_size={side}", f"+model.options={{patch_size: {patch}{more}}}"]


def digits() -> ImageSet:
    """5000 digits that a package ships, and a transformer that learns them in a minute."""
    words = ["task=classify", "data=mnist_5k", "model=vit_tiny_patch16_224", "recipe=full"]
    words += ["trainer.accelerator=cpu", "trainer.max_epochs=8", "optim.warmup_epochs=1"]
    words += ["optim.lr=2e-3", "optim.lr_batch=null", "optim.layer_decay=1", "data.augment=false"]
    options = "embed_dim: 64, depth: 4, num_heads: 4"
    return ImageSet(DIGITS, tuple(words), 32, 4, options, 4, 80.0, 0.6e9)


def own_images(path: str, model: str, checkpoint: str) -> ImageSet:
    """A folder laid out as ImageNet is, and a model of timm with weights of a local file, trained
    for one epoch by the recipe of APT's paper.

    Args:
        path: of the folder.
        model: name in timm.
        checkpoint: file of weights.

    Raises:
        ValueError: a model that tokenizers are not for, a folder without images, or one whose name
            is that of the built-in images or cannot be that of a set.
    """
    import timm

    check_model(model)
    name = Path(path).resolve().name
    if name == DIGITS or not NAME.fullmatch(name):
        raise ValueError(
            f"rows are named after the folder of images, and {name!r} cannot be used: rename the "
            "folder"
        )
    blank: Any = timm.create_model(model)
    side, patch = (int(v[0]) for v in (blank.patch_embed.img_size, blank.patch_embed.patch_size))
    weights = sum(p.numel() for p in blank.parameters())
    words = ("task=classify", f"model={model}", "data=images", "recipe=one_epoch")
    images = sum(1 for _ in Path(path).glob("train/*/*"))
    if not images:
        raise ValueError(f"no images in {path}/train/<class>/")
    seconds = 6 * weights * (side // patch) ** 2 * images / 5e13
    memory = 16.0 * weights + 4e9
    places = (quoted("model.checkpoint", checkpoint), quoted("data.path", path))
    with Path(checkpoint).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    deep = len(blank.blocks)
    return ImageSet(name, words, side, patch, "", deep, seconds, memory, places, digest)


def jobs(
    quick: bool = False,
    *,
    images: str = "",
    model: str = "",
    checkpoint: str = "",
) -> list[Job]:
    """Lists the jobs.

    Args:
        quick: one share of the patches and one seed.
        images: folder laid out as ImageNet is; without one, digits.
        model: of timm, for a folder; "" for ViT-B/16.
        checkpoint: file with its weights, for a folder.

    Raises:
        ValueError: a folder without weights or weights without a folder, or one is not there.
    """
    if bool(images) != bool(checkpoint) or (model and not images):
        raise ValueError(
            "images=FOLDER and checkpoint=FILE go together, and model=NAME with both; without "
            "them digits are measured"
        )
    for path in filter(None, (images, checkpoint)):
        if not Path(path).exists():
            raise ValueError(f"{path} does not exist")
    model = model or "vit_base_patch16_224"
    about = own_images(images, model, checkpoint) if images else digits()
    seeds, shares = (SEEDS[:1], SHARES[:1]) if quick else (SEEDS, SHARES)
    found = []
    for seed in seeds:
        found += [_job(about, "chance", None, seed, None)]
        found += [_job(about, "uniform", None, seed, _plain)]
        for share in shares:
            found += [_job(about, name, share, seed, words) for name, words in METHODS.items()]
    return found


def _job(
    about: ImageSet,
    name: str,
    share: float | None,
    seed: int,
    words: Callable[[ImageSet, float], Words] | None,
) -> Job:
    chosen = [*about.words, f"seed={seed}"]
    if words is not None:
        chosen += words(about, share or 1.0)
    config: dict[str, Any] = {"set": about.name, "method": name, "words": chosen, "seed": seed}
    config["share"] = share
    config |= {"weights": about.weights} if about.weights else {}
    value = None if share is None else round(share * about.patches)
    price = Price(about.seconds if words else 1.0, least_memory() + about.memory)
    kind = "none" if share is None else "tokens"
    return Job("T2", about.name, name, kind, value, seed, config, price, about.places)


def _plain(about: ImageSet, share: float) -> Words:
    return [*about.cut(about.side, about.patch), "tokenizer=uniform"]


def _larger(about: ImageSet, share: float) -> Words:
    """Larger patches, at most as many as the tokens; the image is resampled to hold whole ones."""
    count = math.floor(about.side / about.patch * math.sqrt(share))
    patch = round(about.side / count)
    return [*about.cut(patch * count, patch), "tokenizer=uniform"]


def _smaller(about: ImageSet, share: float) -> Words:
    """Smaller images, cut into at most as many patches as the tokens."""
    count = math.floor(about.side / about.patch * math.sqrt(share))
    return [*about.cut(about.patch * count, about.patch), "tokenizer=uniform"]


def _cells(name: str, *more: str) -> Callable[[ImageSet, float], Words]:
    """Cells whose thresholds are calibrated before the training, see `calibrated`."""
    return lambda about, share: [
        *about.cut(about.side, about.patch),
        f"tokenizer={name}",
        *more,
    ]


def _reduced(about: ImageSet, share: float) -> Words:
    r, _ = merges(_Blocks(about.depth), about.patches, share)
    reducer = f"tokenizer.reducer={{name: tome, r: {r}}}"
    return [*about.cut(about.side, about.patch), "tokenizer=reduced", reducer]


class _Blocks:
    """As many blocks as a model has."""

    def __init__(self, depth: int):
        self.blocks = range(depth)


METHODS: dict[str, Callable[[ImageSet, float], Words]] = {
    "uniform": _larger,
    "lower_resolution": _smaller,
    "random": _cells("random"),
    "radial": _cells("apt", "tokenizer.indicator=radial"),
    "apt": _cells("apt"),
    "apt_variance": _cells("apt", "tokenizer.indicator={name: variance, by_area: true}"),
    "tome": _reduced,
}


def composed(job: Job) -> dict[str, Any]:
    """The configuration of a job; thresholds that it does not give are found on images."""
    return plain(compose("train", [*job.config["words"], *job.places]))


def calibrated(config: dict[str, Any], share: float | None) -> dict[str, Any]:
    """Adds thresholds that keep a share of the patches of training images, if the tokenizer has
    any.
    """
    part = config["tokenizer"]
    if share is None or "thresholds" not in part or part["thresholds"] is not None:
        return config
    node = {**config["model"], "checkpoint": None, "pretrained": False}
    model = build_timm(classes=2, **node)
    shown, _ = _first(image_data(config, model), "train", CALIBRATED)
    like = {**part, "name": "apt" if part["name"] == "random" else part["name"]}
    fast = build_classifier(model, {**like, "thresholds": [1.0] * LEVELS})
    bars = fast.calibrate(shown, share=share)
    return {**config, "tokenizer": {**part, "thresholds": [float(bar) for bar in bars]}}


def _first(data: ImageData, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a split and their classes."""
    images, labels = [], []
    for shown, classes in data.loader(split):
        images.append(shown)
        labels.append(classes)
        if sum(map(len, images)) >= count:
            break
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def measure(job: Job, work: Path) -> Row:
    """Trains and tests one row.

    Raises:
        ValueError: a part that is not installed, or a share that thresholds cannot reach.
    """
    config = composed(job)
    chance = 1 - _largest_class(config)
    if job.method == "chance":
        return job.row(metrics={"error": chance, "chance": chance, "dense_loss": None})
    config = calibrated(config, job.config["share"])
    folder = work / job.stem / job.key
    if last := checkpoint_in(folder):
        config["resume"] = str(last)
    results = fit_and_test_classifier(config, folder)
    assert results is not None, "one process"
    (setting,) = results.settings
    model = load_classifier(folder)
    images, _ = _first(image_data(config, model), "test", 64)
    cost = cost_of(model, lambda: model(images), [images])
    assert cost is not None, "benchmarks do not compile"
    seconds = {"inference": 1 / setting.images_per_second}
    if results.seconds_per_training_step:
        seconds["training"] = results.seconds_per_training_step
    tokens = float(setting.tokens["mean"])
    if hasattr(model, "reducer"):  # mean over its blocks
        tokens *= merges(model, round(tokens), job.config["share"])[1]
    node = {**config["model"], "checkpoint": None, "pretrained": False}
    whole = build_timm(classes=len(results.classes), **node)
    return job.row(
        device_of("auto"),
        tokens=tokens,
        flops=cost.flops["total"] / len(images),
        memory=cost.memory["total"],
        parameters=results.parameters,
        seconds=seconds,
        metrics={
            "error": 1 - setting.accuracy,
            "chance": chance,
            "dense_loss": dense_loss(model, whole, images),
        },
    )


def _largest_class(config: dict[str, Any]) -> float:
    """Share of the test images in the class that has the most of the training."""
    found = find_images(config["data"]["name"], config["data"].get("path")).splits
    most = torch.bincount(_labels(found["train"])).argmax()
    return float((_labels(found["test"]) == most).double().mean())


def _labels(split: Any) -> Tensor:
    """The classes of a split, of a folder without reading its images."""
    known = getattr(split, "targets", None)
    return torch.as_tensor([label for _, label in split] if known is None else known)


@torch.no_grad()
def dense_loss(model: Any, whole: Any, images: Tensor) -> float | None:
    """Loss of dense features by fewer tokens: 1 - cosine with those that the same weights give with
    all patches; None for models that always see all of them, or that drop some.

    Args:
        model: a classifier.
        whole: timm's model without a tokenizer.
        images: (b, c, h, w), normalised.
    """
    if hasattr(model, "tiling"):
        if isinstance(model.tiling, RandomCells):
            return None
        wanted = dense(model, images, thresholds=[-1.0] * LEVELS)
    elif hasattr(model, "reducer"):
        state = model.state_dict()
        whole.load_state_dict({k: v for k, v in state.items() if not k.startswith("reducer.")})
        wanted = dense(whole.eval(), images)
    else:
        return None
    return float(loss(dense(model, images), wanted).mean())
