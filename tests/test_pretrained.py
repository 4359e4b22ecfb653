"""Saved models: what is built again is the same, and nothing that is wrong loads."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save

import adaptok
from adaptok.evaluation.results import Results
from adaptok.models.baselines import create_baseline
from adaptok.models.pretrained import CARD, CONFIG, WEIGHTS
from adaptok.registry import TOKENIZERS
from adaptok.utils.checksums import with_checksum


def surrogate(**changes):
    options = {"ndim": 2, "in_channels": 2, "history": 2, "constant_channels": 1, "dim": 24}
    options |= {"depth": 1, "heads": 2, "normalise": "dataset"}
    parts = {"tokenizer": {"name": "iap", "budget": 16, "max_size": 8}, "decoder": "linear"}
    return adaptok.create_surrogate(**(options | parts | changes))


def test_a_surrogate_comes_back_with_weights_and_statistics(tmp_path):
    model = surrogate().eval()
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    model.set_statistics(one, two, one, one[:1], two[:1])
    assert adaptok.save_pretrained(model, tmp_path / "m") == tmp_path / "m"
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {CONFIG, WEIGHTS, CARD}
    again = adaptok.from_pretrained(tmp_path / "m")
    field, constants = torch.randn(3, 2, 2, 16, 16), torch.randn(3, 1, 16, 16)
    assert torch.equal(again(field, constants=constants), model(field, constants=constants))
    assert torch.equal(
        again(field, constants=constants, budget=7), model(field, constants=constants, budget=7)
    )
    assert not again.training
    assert again.config == model.config
    assert torch.equal(again.std, two)


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_every_tokenizer(name, tmp_path):
    tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=16)
    adaptok.save_pretrained(tokenizer, tmp_path)
    again = adaptok.from_pretrained(tmp_path)
    assert again.spec == tokenizer.spec
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("name", ["fno", "unet", "persistence"])
def test_baselines(name, tmp_path):
    model = create_baseline(name, ndim=1, in_channels=2, boundary=[[2, 2]]).eval()
    adaptok.save_pretrained(model, tmp_path)
    field = torch.randn(2, 1, 2, 32)
    assert torch.equal(adaptok.from_pretrained(tmp_path)(field), model(field))


def test_the_card_says_how_to_use_it(tmp_path):
    row = {"label": "budget=16", "seconds_per_step": 0.1, "vrmse": {"mean": 0.1234, "median": 0.1}}
    results = {"split": "test", "data": "shear_flow", "fields": ["p", "u"], "settings": [row]}
    results["persistence"] = {"vrmse": {"mean": 0.5, "median": 0.5}}
    results = Results.from_json(results)
    adaptok.save_pretrained(surrogate(), tmp_path, description="For tests.", results=results)
    card = (tmp_path / CARD).read_text()
    assert card.startswith("---\nlibrary_name: adaptok\n")
    for part in (
        "# iap",
        "For tests.",
        "budget=16   | 0.1234",
        "shear_flow",
        "p, u",
        '"max_size": 8',
    ):
        assert part in card
    code = (
        card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path))
    )
    done: dict = {}
    exec(code, done)
    assert done["frame"].shape == (1, 1, 2, 32, 32)


@pytest.mark.parametrize("kind", ["surrogate", "baseline", "system"])
def test_the_snippet_runs_for_its_own_model(kind, tmp_path):
    """Constants, grid and boundary are those of the test; 3 blocks are not said to be 8."""
    given = {"ndim": 2, "in_channels": 2, "history": 2, "constant_channels": 1}
    if kind == "surrogate":
        processor = {"name": "vit", "depth": 3, "heads": 3}
        tokenizer = {"name": "iap", "budget": 22, "max_size": 8}
        model = adaptok.create_surrogate(
            **given, dim=24, tokenizer=tokenizer, processor=processor, decoder="linear"
        )
    elif kind == "baseline":
        model = create_baseline("fno", **given, boundary=[[2, 2], [0, 0]])
    else:
        core = adaptok.create_multiphysics(
            ndim=2, fields=["p", "u"], constants=["k"], dim=24, depth=1, heads=2, history=2
        )
        model = core.system(["p", "u"], ["k"])
    results = {"split": "test", "data": "d", "fields": ["p", "u"], "settings": []}
    results |= {"persistence": {"vrmse": {"mean": 0.5, "median": 0.5}}, "grid": [16, 32]}
    results = Results.from_json(results | {"boundary": [[2, 2], [0, 0]]})
    adaptok.save_pretrained(model, tmp_path, results=results)
    card = (tmp_path / CARD).read_text()
    code = card.split("```python\n")[1].split("```")[0]
    done: dict = {}
    exec(code.replace("path/to/this/folder", str(tmp_path)), done)
    assert done["frame"].shape == (1, 1, 2, 16, 32)
    built = json.loads(card.split("```json\n")[1].split("```")[0])
    if kind == "surrogate":
        assert "depth" not in built
        assert built["processor"]["depth"] == 3


def test_only_what_knows_how_it_was_built_can_be_saved(tmp_path):
    with pytest.raises(ValueError, match=r"how this Linear was built: .* apply_reducer"):
        adaptok.save_pretrained(torch.nn.Linear(1, 1), tmp_path)
    model = surrogate(tokenizer={"name": "uniform", "size": 8})
    model.config = {**model.config, "tokenizer": {"name": "uniform", "size": torch.tensor(8)}}
    with pytest.raises(ValueError, match="JSON cannot hold"):
        adaptok.save_pretrained(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def saved(tmp_path):
    adaptok.save_pretrained(surrogate(), tmp_path)
    return tmp_path


def refused(where, match, **options):
    with pytest.raises(ValueError, match=match):
        adaptok.from_pretrained(where, **options)


def test_missing_and_damaged_files_are_named(saved, tmp_path):
    weights = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    refused(saved, r"model.safetensors is damaged")
    (saved / WEIGHTS).unlink()
    refused(saved, r"no model.safetensors in .*other files are not read")
    (saved / WEIGHTS).write_bytes(weights)
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text("{")
    refused(saved, "config.json is damaged")
    (saved / CONFIG).write_text(json.dumps(config | {"format": 99}))
    refused(saved, "format 99; this version of adaptok reads format 1")
    for kind in ("bert", ["surrogate"], {"a": 1}, None):
        (saved / CONFIG).write_text(json.dumps(config | {"kind": kind}))
        refused(saved, "must name the kind of its model, one of surrogate, baseline, tokenizer")
    (saved / CONFIG).write_text(json.dumps(config | {"tokenizer": {"name": "aip"}}))
    refused(saved, r"did you mean 'iap'")
    (saved / CONFIG).write_text(json.dumps(config | {"dim": 48}))
    refused(saved, r"does not fit its config.json: .* in the file, .* in the model.* more")
    (saved / CONFIG).unlink()
    refused(saved, r"no config.json in .*model.safetensors")


def test_a_pickle_is_never_opened(saved):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code ran')",))

    (saved / WEIGHTS).unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused(saved, "no model.safetensors")
    (saved / WEIGHTS).write_bytes(pickle.dumps(Evil()))
    refused(saved, "damaged or not a safetensors file")


def test_folders_and_ids_that_are_not_there(saved):
    refused(saved / "nowhere", "no folder .*nowhere")
    refused("nowhere", "no id on the hub")
    refused(saved, "which has no revision 'v1'", revision="v1")
    refused("group/model", "the hub does not give that model")  # the tests are offline


def test_the_folder_of_a_run_names_that_of_its_model(saved):
    (saved / "model").mkdir()
    for name in (CONFIG, WEIGHTS):
        (saved / name).rename(saved / "model" / name)
    refused(saved, r"the folder of a run: give its folder model: .*model$")
    assert adaptok.from_pretrained(saved / "model").ndim == 2


def test_the_hub_is_asked_for_two_files_of_a_revision(saved, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = adaptok.from_pretrained("group/model", revision="v1")
    assert isinstance(model, adaptok.Surrogate)
    assert asked == [("group/model", "v1", [CONFIG, WEIGHTS])]


def test_a_full_disk_leaves_nothing_that_loads(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    adaptok.save_pretrained(surrogate(), tmp_path)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        adaptok.save_pretrained(surrogate(dim=48), tmp_path)
    refused(tmp_path, "no config.json")  # not the old configuration with new weights
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("tokenizer", ["iap", {"name": "iap", "budget": 40, "max_size": 8}])
def test_a_surrogate_of_the_class_comes_back_with_its_cells(tokenizer, tmp_path):
    """On a domain that cells do not divide, where border="clip" and "split" differ."""
    sizes = {"ndim": 2, "in_channels": 1, "dim": 24, "depth": 1, "heads": 2}
    model = adaptok.Surrogate(tokenizer, **sizes).eval()
    adaptok.save_pretrained(model, tmp_path)
    again, x = adaptok.from_pretrained(tmp_path), torch.randn(1, 1, 1, 17, 22)
    assert again.tokenizer.border == model.tokenizer.border
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_of_the_weights_is_kept(dtype, tmp_path):
    model = surrogate(normalise="dataset").to(dtype).eval()
    model.decoder.requires_grad_(False)
    adaptok.save_pretrained(model, tmp_path)
    again = adaptok.from_pretrained(tmp_path)
    buffers = [[b.dtype for b in one.buffers()] for one in (model, again)]
    assert buffers[0] == buffers[1]
    assert {p.dtype for p in again.parameters()} == {dtype}
    whole = {name: value.to(torch.int8) for name, value in model.state_dict().items()}
    (tmp_path / WEIGHTS).write_bytes(with_checksum(save(whole)))  # no type of a weight
    assert {p.dtype for p in adaptok.from_pretrained(tmp_path).parameters()} == {torch.float32}
    model.processor.float()  # two types: each weight has its own
    adaptok.save_pretrained(model, tmp_path)
    again = adaptok.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].dtype == value.dtype
        assert torch.equal(again.state_dict()[name], value)


def test_a_file_of_a_saved_model_is_refused_with_its_folder(tmp_path):
    adaptok.save_pretrained(adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=8), tmp_path)
    message = rf"model.safetensors is a file: give the folder that it is in, {tmp_path}"
    for path in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        with pytest.raises(ValueError, match=message):
            adaptok.from_pretrained(path)


def test_what_can_be_saved_is_named_with_its_module(tmp_path):
    with pytest.raises(ValueError, match=r"adaptok\.models\.baselines\.create_baseline"):
        adaptok.save_pretrained(torch.nn.Linear(2, 2), tmp_path)
