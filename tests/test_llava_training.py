"""APT's recipe for LLaVA: conversations become tokens and labels; what is new trains, and the
projector."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("lightning")
pytest.importorskip("transformers", minversion="5.24")

from tiny_llava import write_llava, write_scenes

import adaptok
from adaptok.tasks.llava import (
    LlavaData,
    LlavaModule,
    adapt_llava,
    evaluate_llava,
    fit_and_test_llava,
    load_llava,
    tokens_of,
)
from adaptok.training.optim import OptimBase
from adaptok.vision import apply_apt
from adaptok.vision.hf import encode_images

APT = {"name": "apt", "thresholds": (1.0, 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("llava")
    write_scenes(root / "data", 11, seed=0)
    write_llava(root / "model", seed=0)
    return root


def loaded(folder, dtype: str = "float32"):
    return load_llava(folder / "model", dtype)


def batches(folder, processor, **more) -> LlavaData:
    knobs = {"valid": 3, "batch_size": 4, "system": "", **more}
    return LlavaData(processor, folder / "data" / "conversations.json", **knobs)


def batch_of(folder, processor):
    return next(iter(batches(folder, processor).train_dataloader()))


def test_answers_are_the_labels(folder):
    _, processor = loaded(folder)
    turns = (("<image>\nWhich colour ?", "red"), ("Which size ?", "small"))
    ids, labels = tokens_of(turns, processor.tokenizer, "")
    text = processor.tokenizer.decode(ids)
    asked = "<s> USER : <image> Which colour ? ASSISTANT : red </s>"
    assert " ".join(text.split()) == f"{asked} USER : Which size ? ASSISTANT : small </s>"
    said = [i for i, label in zip(ids, labels, strict=True) if label != -100]
    assert processor.tokenizer.decode(said).split() == ["red", "</s>", "small", "</s>"]
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
    more, _ = tokens_of(turns, processor.tokenizer, "USER")
    assert len(more) == len(ids) + 1


def test_batches_are_padded_on_the_left_and_cut(folder):
    _, processor = loaded(folder)
    data = batches(folder, processor)
    short, long = (("<image>", "red"),), (("<image>\nWhich colour ?", "red"),)
    image, _ = data.conversations[0]
    batch = data.collate([(image, short), (image, long)])
    assert batch["attention_mask"].tolist() == [[0] * 3 + [1] * 8, [1] * 11]
    assert (batch["labels"] != -100).sum(1).tolist() == [2, 2]
    assert (batch["labels"][:, -1] == processor.tokenizer.eos_token_id).all()
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    cut = batches(folder, processor, max_length=10).collate([(image, long)])
    assert cut["input_ids"].tolist() == batch["input_ids"][1:, :10].tolist()
    assert (len(data.parts["train"]), len(data.parts["valid"])) == (8, 3)


def test_new_weights_and_the_projector_are_what_is_trained(folder):
    given, processor = loaded(folder)
    module = LlavaModule(adapt_llava(given, processor, APT), OptimBase())
    moving = [name for name, p in module.named_parameters() if p.requires_grad]
    assert all(".cell_embed." in n or ".multi_modal_projector." in n for n in moving)
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in moving} == {
        "merge", "zero", "linear_1", "linear_2",
    }  # fmt: skip
    assert set(module.state_dict()) == set(moving)
    module.log_step = lambda *_: None  # type: ignore[method-assign]
    module.training_step(batch_of(folder, processor), 0).backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    whole = LlavaModule(given, OptimBase(), only="all")
    assert set(whole.state_dict()) == {n for n, _ in whole.named_parameters()}
    with pytest.raises(ValueError, match=r"train\.only must be one of all, new, got 'old'"):
        LlavaModule(given, OptimBase(), only="old")


def test_half_precision_trains_in_single(folder):
    given, processor = loaded(folder, "bfloat16")
    module = LlavaModule(adapt_llava(given, processor, APT), OptimBase())
    kinds = {(p.requires_grad, p.dtype) for p in module.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    module.log_step = lambda *_: None  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(batch_of(folder, processor), 0)
    loss.backward()
    single = LlavaModule(adapt_llava(*loaded(folder), APT), OptimBase())
    single.log_step = lambda *_: None  # type: ignore[method-assign]
    expected = single.training_step(batch_of(folder, processor), 0)
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)


def test_the_recipe_of_the_configuration_is_read():
    import omegaconf
    from listed import HERE

    recipe = omegaconf.OmegaConf.load(HERE / "apt_table3" / "recipe.yaml")
    assert (recipe.train.only, recipe.trainer.max_epochs) == ("new", 0.05)
    OptimBase(**recipe.optim)


@pytest.mark.slow
def test_an_answer_counts_where_greedy_decoding_gives_it(folder, tmp_path):
    """Against generation itself, prompt by prompt."""
    entries = json.loads((folder / "data" / "conversations.json").read_text())
    for entry in entries:
        entry["conversations"] = entry["conversations"][:2]
    file = tmp_path / "one.json"
    file.write_text(json.dumps(entries))
    given, processor = loaded(folder)
    torch.manual_seed(0)
    model = adapt_llava(given, processor, APT)
    knobs = {"images": folder / "data", "valid": 10, "batch_size": 1, "system": ""}
    data = LlavaData(processor, file, **knobs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    whole = data.collate([data.parts["valid"][i] for i in range(10)])
    for _ in range(3):  # some answers become right
        model(**encode_images(model, whole)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    hits = []
    for batch in data.loader():
        labels = batch.pop("labels")[0]
        start = int((labels != -100).nonzero()[0])
        prompt = {k: batch[k][:, :start] for k in ("input_ids", "attention_mask")}
        encoded = encode_images(model, {**prompt, "pixel_values": batch["pixel_values"]})
        out = model.generate(**encoded, max_new_tokens=len(labels) - start, do_sample=False)
        said = out[0, encoded["input_ids"].shape[1] :].tolist()
        hits.append(said == labels[start:].tolist())
    results = evaluate_llava(model, data, device="cpu")
    assert 0 < sum(hits) < len(hits)
    assert results.answers == pytest.approx(sum(hits) / len(hits))
    assert results.tokens["min"] < results.tokens["max"] <= 64
    assert results.images_per_second > 0
    assert results.loss > 0


def config_of(folder, **more) -> dict:
    path = folder / "data" / "conversations.json"
    config = {
        "seed": 0,
        "model": {"checkpoint": str(folder / "model"), "dtype": "float32"},
        "tokenizer": APT,
        "data": {"path": str(path), "valid": 3, "batch_size": 2, "system": ""},
        "train": {"only": "new", "activation_checkpointing": True},
        "optim": {"lr": 1e-2, "warmup": 0.0, "ema": 0.0},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 0.5},
    }
    return {**config, **more}


@pytest.mark.slow
def test_a_run_trains_a_share_and_leaves_a_model(folder, tmp_path):
    results = fit_and_test_llava(config_of(folder), tmp_path)
    given, processor = loaded(folder)
    trained = adaptok.from_pretrained(tmp_path / "model")
    again = evaluate_llava(trained, batches(folder, processor), device="cpu")
    assert again.loss == pytest.approx(results.loss, rel=1e-4)
    before = apply_apt(given, (1.0, 1.0), processor=processor).state_dict()
    after = trained.state_dict()
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert all("cell_embed" in k or "multi_modal_projector" in k for k in moved)
    assert any("projector" in k for k in moved)
    assert any("cell_embed.zero" in k for k in moved)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2  # half of four batches
    assert all("cell_embed" in k or "multi_modal_projector" in k for k in last["state_dict"])
    # The same folder goes on; a run with nothing to train only tests.
    more = config_of(folder)
    more["trainer"]["max_epochs"] = 1.0
    fit_and_test_llava(more, tmp_path)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    more["trainer"]["max_epochs"], more["tokenizer"] = 0, {"name": "uniform"}
    with pytest.raises(ValueError, match=r"holds another run: tokenizer\.name is apt in"):
        fit_and_test_llava(more, tmp_path)
    still = fit_and_test_llava(more, tmp_path / "still")
    assert still.tokens == {"mean": 64.0, "min": 64.0, "max": 64.0}
    load_llava(tmp_path / "still" / "model")
    more["tokenizer"] = {**APT, "name": "random"}
    assert fit_and_test_llava(more, tmp_path / "random").tokens["max"] < 64
    assert not (tmp_path / "random" / "model").exists()


@pytest.mark.slow
def test_checkpointing_of_activations_changes_no_gradient(folder):
    grads = []
    for checkpointed in (False, True):
        given, processor = loaded(folder)
        torch.manual_seed(0)  # the branch begins at random
        model = adapt_llava(given, processor, APT).train()
        if checkpointed:
            model.model.language_model.gradient_checkpointing_enable()
        module = LlavaModule(model, OptimBase())
        module.log_step = lambda *_: None  # type: ignore[method-assign]
        module.training_step(batch_of(folder, processor), 0).backward()
        grads.append([p.grad for p in module.parameters() if p.requires_grad])
    torch.testing.assert_close(*grads)


def test_random_patches_are_as_many_as_cells(folder):
    given, processor = loaded(folder)
    batch = batch_of(folder, processor)
    counts = {}
    with torch.no_grad():
        for name in ("apt", "random", "resize"):
            fast = adapt_llava(given, processor, {**APT, "name": name}).eval()
            encoded = encode_images(fast, batch)
            features = encoded["mm_encoder_outputs"]["image"].pooler_output
            counts[name] = [len(x) for x in features]
    assert counts["random"] == counts["apt"] == counts["resize"]
    assert max(counts["apt"]) < 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "the configuration has the keys"),
        ({"train": {"only": "new"}}, "train has the keys activation_checkpointing, only, got only"),
        ({"optim": {"learning_rate": 1}}, "unknown key 'optim.learning_rate'"),
        ({"data": {"file": "x"}}, "unknown key 'data.file'"),
        ({"model": {"name": "x"}}, "unknown key 'model.name'"),
        ({"trainer": {"max_epochs": -1}}, "trainer.max_epochs must be a number from 0, got -1"),
        ({"trainer": {}}, "trainer.max_epochs must be a number from 0, got None"),
    ],
)
def test_mistakes_in_a_configuration(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        fit_and_test_llava(config_of(folder, **change), tmp_path)


def test_mistakes_in_models_and_data(folder, tmp_path):
    given, processor = loaded(folder)
    with pytest.raises(ValueError, match="no LLaVA with its processor at"):
        load_llava(tmp_path)
    with pytest.raises(ValueError, match=r"model\.dtype must be one of float32"):
        load_llava(folder / "model", "int8")
    with pytest.raises(ValueError, match=r"11 conversations about images.*no batch of 9"):
        batches(folder, processor, batch_size=9)
    with pytest.raises(ValueError, match="nothing to test"):
        evaluate_llava(given, batches(folder, processor, valid=0))
