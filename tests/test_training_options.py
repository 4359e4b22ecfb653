"""Options of training: what is optimised, memory, accumulation, checkpoints and full disks."""

from __future__ import annotations

import copy
import errno
import functools
import resource
import signal

import pytest
import small_runs
import torch
from lightning.pytorch.callbacks import Timer

from adaptok import create_schedule, create_surrogate
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.models.baselines import create_baseline
from adaptok.models.compiling import compile_model
from adaptok.registry import PROCESSORS
from adaptok.training import SurrogateModule, make_trainer
from adaptok.training.averaging import Averaging
from adaptok.training.checkpoints import check_resume, load_surrogate, read_checkpoint
from adaptok.training.optim import Optim
from adaptok.training.parallel import checkpoint_activations, repeated_blocks
from adaptok.utils.atomic import replacing
from adaptok.utils.auxiliary import report_figure, report_loss
from adaptok.utils.tables import read_metrics


def composed(*overrides):
    return plain(compose("train", [*small_runs.train(), *overrides]))


@pytest.fixture(scope="module")
def setting():
    config = composed()
    return config, build_data(config)


def module_of(config, data):
    torch.manual_seed(0)
    surrogate = build_surrogate(config, data.info)
    schedule = create_schedule(config["schedule"])
    return SurrogateModule(surrogate, Optim(**config["optim"]), schedule, config)


def fit(module, data, folder, max_steps, resume=None, **knobs):
    knobs = {"val_check_interval": 100, "log_every_n_steps": 1, "accelerator": "cpu"} | knobs
    trainer = make_trainer(folder, max_steps=max_steps, enable_progress_bar=False, **knobs)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer


def losses(folder):
    return [row["train/loss"] for row in read_metrics(folder) if "train/loss" in row]


def same(module, other, tolerance=0.0):
    for name, value in module.state_dict().items():
        there = other.state_dict()[name]
        torch.testing.assert_close(value, there, rtol=0, atol=tolerance, msg=name)


def test_all_frames_by_hand():
    """Each frame of the history predicts the next one; the last one predicts the target."""
    config = composed("history=3", "history_mode=frames", "optim.loss_frames=all")
    data = build_data(config)
    module = module_of(config, data)
    batch = next(iter(data.train_dataloader()))
    frames = torch.cat([batch["input"], batch["target"]], 1)
    known = {"constants": batch["constants"], "boundary": batch["boundary"]}
    out = module.surrogate(batch["input"], all_frames=True, **known)
    assert out.shape == frames[:, 1:].shape
    torch.testing.assert_close(out[:, -1:], module.surrogate(batch["input"], **known))
    error = (out - frames[:, 1:]) / data.info.std.view(-1, 1, 1)
    torch.testing.assert_close(module.loss(batch, 0), error.square().mean())
    last = module_of(composed("history=3", "history_mode=frames"), data)
    torch.testing.assert_close(last.loss(batch, 0), error[:, -1:].square().mean())


def test_all_frames_need_frames():
    model = create_surrogate(ndim=1, in_channels=1, history=2, dim=8, depth=1, heads=1)
    with pytest.raises(ValueError, match='all_frames needs history_mode="frames"'):
        model(torch.randn(1, 2, 1, 32), all_frames=True)


@pytest.mark.parametrize("through_time", [False, True])
def test_unrolled_loss_by_hand(through_time):
    config = composed("history=2", "optim.unroll=2", f"optim.through_time={through_time}")
    data = build_data(config)
    module = module_of(config, data)
    batch = next(iter(data.train_dataloader()))
    assert batch["target"].shape[1] == 2
    known = {"constants": batch["constants"], "boundary": batch["boundary"]}
    model, std = module.surrogate, data.info.std.view(-1, 1, 1)
    first = model(batch["input"], **known)
    fed = first if through_time else first.detach()
    second = model(torch.cat([batch["input"][:, 1:], fed], 1), **known)
    errors = [first - batch["target"][:, :1], second - batch["target"][:, 1:]]
    expected = sum((e / std).square().mean() for e in errors) / 2
    ours = module.loss(batch, 0)
    torch.testing.assert_close(ours, expected)
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        for loss in (ours, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_pushforward_has_no_gradient_through_time():
    gradients = []
    for through_time in (False, True):
        config = composed("optim.unroll=2", f"optim.through_time={through_time}")
        data = build_data(config)
        module = module_of(config, data)
        module.loss(next(iter(data.train_dataloader())), 0).backward()
        gradients.append(module.surrogate.decoder.levels[-1].weight.grad.clone())
    assert not torch.allclose(*gradients)


def test_unrolling_needs_target_frames(setting):
    _, data = setting
    module = module_of(composed("optim.unroll=3"), data)
    with pytest.raises(ValueError, match=r"optim.unroll=3 .* the data has 1: target_steps=3"):
        module.loss(next(iter(data.train_dataloader())), 0)


def test_evaluation_uses_every_window_whatever_was_unrolled(setting):
    from adaptok.evaluation.evaluate import persistence

    _, data = setting
    unrolled = build_data(composed("optim.unroll=3"))
    assert persistence(unrolled, "test") == persistence(data, "test")


@pytest.mark.parametrize("change", [{"loss_frames": "first"}, {"unroll": 0}])
def test_wrong_choices(change):
    with pytest.raises(ValueError, match="must be"):
        Optim(**change)


def test_units_of_the_prediction_need_the_squared_error():
    with pytest.raises(ValueError, match="loss_unit=prediction goes with"):
        Optim(loss="nmse", loss_unit="prediction")
    with pytest.raises(ValueError, match="loss_unit must be one of std, prediction"):
        Optim(loss_unit="change")


@pytest.mark.parametrize("normalise", ["sample", "context", "context_absolute", "dataset", "none"])
def test_the_loss_in_units_of_the_prediction_by_hand(normalise):
    """The model's raw output against what it should have been."""
    options = ["history=3", f"normalise={normalise}", "optim.loss_unit=prediction"]
    config = composed(*options)
    data = build_data(config)
    module = module_of(config, data)
    batch = next(iter(data.train_dataloader()))
    field, target = batch["input"], batch["target"]
    out = module.surrogate(field, constants=batch["constants"], boundary=batch["boundary"])
    changes = field.diff(dim=1)
    view, space = (1, 1, -1, 1, 1), (1, 3, 4)
    ratio = (data.info.delta_std / data.info.std).view(view)
    unit = {
        "sample": field.std(space, correction=0, keepdim=True) * ratio,
        "context": changes.std(space, keepdim=True) + 1e-4 * field.std(space, keepdim=True),
        "context_absolute": changes.std(space, keepdim=True) + 1e-4,
        "dataset": data.info.delta_std.view(view),
        "none": torch.ones(()),
    }[normalise]
    expected = ((out - target) / unit).square().mean()
    torch.testing.assert_close(module.loss(batch, 0), expected)


def test_accumulated_batches_are_one_large_batch(setting, tmp_path):
    config, _ = setting
    modules = []
    for size, parts in ((4, 1), (2, 2)):
        data = build_data(composed(f"data.batch_size={size}"))
        modules.append(module_of(config, data))
        fit(modules[-1], data, tmp_path / str(size), 2, accumulate_grad_batches=parts)
    same(*modules, tolerance=1e-6)
    split = modules[1]
    assert split.seconds_per_step == pytest.approx(2 * split._total_seconds / 3)  # of 4 batches


def test_checkpointed_activations_change_nothing_but_memory(setting):
    _, data = setting
    config = composed("processor.depth=3", "processor.drop_path=0.3")
    plain_module, module = module_of(config, data), module_of(config, data)
    checkpoint_activations(module.surrogate)
    assert list(module.state_dict()) == list(plain_module.state_dict())
    assert len(list(repeated_blocks(module.surrogate.processor))) == 3
    calls, batch = [0, 0], next(iter(data.train_dataloader()))
    for number, each in enumerate((plain_module, module)):
        block = each.surrogate.processor.blocks[1].mlp

        def count(*_, number=number):
            calls[number] += 1

        block.register_forward_hook(count)
        torch.manual_seed(3)
        each.loss(batch, 0).backward()
    assert calls == [1, 2]  # once more for the gradient
    pairs = zip(plain_module.parameters(), module.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_drop_path_depends_on_seed_and_step_alone(setting, tmp_path):
    _, data = setting
    config = composed("processor.depth=2", "processor.drop_path=0.5")
    modules = [module_of(config, data) for _ in range(3)]
    modules[2].seed = 1
    for number, module in enumerate(modules):
        torch.manual_seed(number)  # whatever was drawn before
        fit(module, data, tmp_path / str(number), 4)
    runs = [losses(tmp_path / str(number)) for number in range(3)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_resumed_in_mid_epoch_with_random_layers_ends_the_same(setting, tmp_path, parts):
    _, data = setting
    config = composed("processor.depth=2", "processor.drop_path=0.3")
    epoch = -(-len(data.train_dataloader()) // parts)  # the last batches make a step of their own
    whole, resumed = module_of(config, data), module_of(config, data)
    knobs = {"accumulate_grad_batches": parts}
    fit(whole, data, tmp_path / "whole", 2 * epoch + 2, **knobs)
    stop = epoch + 1
    fit(module_of(config, data), data, tmp_path / "first", stop, **knobs)
    torch.manual_seed(99)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    fit(resumed, data, tmp_path / "second", 2 * epoch + 2, resume=last, **knobs)
    assert losses(tmp_path / "second") == losses(tmp_path / "whole")[stop:]
    same(whole, resumed)


def test_average_by_hand(setting, tmp_path):
    config, data = setting
    seen = []

    class Watch(Averaging):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            seen.append([p.detach().clone() for p in pl_module.parameters()])

    module = module_of(config, data)
    trainer = make_trainer(tmp_path, ema=0.8, max_steps=4, accelerator="cpu", val_check_interval=2)
    trainer.callbacks[0].__class__ = Watch
    trainer.fit(module, datamodule=data)
    expected = seen[0]
    for weights in seen[1:]:
        expected = [0.8 * e + 0.2 * w for e, w in zip(expected, weights, strict=True)]
    for a, b in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=0, atol=1e-6)


def test_the_decay_of_the_average_is_checked():
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1"):
        Averaging(1.0)


def test_validation_is_the_mean_over_samples(setting, tmp_path):
    """Also where the last batch is smaller."""
    config, _ = setting
    data = build_data(composed("data.batch_size=3"))
    module = module_of(config, data)
    fit(module, data, tmp_path, 1, val_check_interval=1, ema=0.0)
    errors = []
    with torch.no_grad():
        for batch in data.loader("valid"):
            out = module.predict(batch, 0)
            scale = batch["target"].var((-2, -1)) + 1e-7
            errors.append(((out - batch["target"]).square().mean((-2, -1)) / scale).sqrt())
    value = next(r["val/vrmse"] for r in read_metrics(tmp_path) if "val/vrmse" in r)
    assert value == pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)


def test_a_checkpoint_alone_is_a_model(setting, tmp_path):
    config, data = setting
    module = module_of(config, data)
    fit(module, data, tmp_path, 2)
    model = load_surrogate(tmp_path)
    for name, value in module.surrogate.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    baseline = create_baseline({"name": "fno", "modes": 2, "width": 4}, ndim=2, in_channels=3)
    torch.save({"state_dict": baseline.state_dict()}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="does not say how its model was built"):
        load_surrogate(tmp_path / "other.ckpt")


def test_another_configuration_is_shown(setting, tmp_path):
    config, data = setting
    fit(module_of(config, data), data, tmp_path, 1)
    checkpoint = read_checkpoint(tmp_path)
    check_resume(checkpoint, config, tmp_path, data)
    other_set = build_data(composed("data.generate.seed=5", f"data.base={tmp_path}"))
    with pytest.raises(ValueError, match="mean and std of pressure"):
        check_resume(checkpoint, config, tmp_path, other_set)
    free = config | {"trainer": {"max_steps": 9}, "name": "other"}
    check_resume(checkpoint, free | {"data": config["data"] | {"base": "/elsewhere"}}, tmp_path)
    other = composed("seed=4", "optim.lr=0.1", "data.batch_size=1")
    with pytest.raises(ValueError, match="another configuration") as error:
        check_resume(checkpoint, other, tmp_path)
    for part in (
        "seed is 0 in the checkpoint, 4 here",
        "optim.lr is 0.0005 in the checkpoint, 0.1 here",
        "data.batch_size is 2 in the checkpoint, 1 here",
        "resume_anyway=true",
    ):
        assert part in str(error.value)


def test_a_full_disk_leaves_the_last_good_checkpoint(setting, tmp_path, monkeypatch):
    config, data = setting
    module = module_of(config, data)
    fit(module, data, tmp_path, 2, val_check_interval=2)
    place = tmp_path / "checkpoints"
    before = {path.name: path.read_bytes() for path in place.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    resume = place / "last.ckpt"
    with pytest.raises(OSError, match=r"step 4: the disk is full; the last .* step 2$"):
        fit(module, data, tmp_path, 4, val_check_interval=4, resume=resume)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert read_checkpoint(tmp_path)["global_step"] == 2


def test_a_file_that_the_system_cuts_off_leaves_the_last_good_one(tmp_path):
    """The real thing: writing fails in the middle of the file."""
    path = tmp_path / "file"
    path.write_bytes(b"good")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)), replacing(path) as temporary:
            torch.save({"weights": torch.zeros(100_000)}, temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_complete_or_absent(tmp_path):
    place = tmp_path / "set"

    def fail():
        with replacing(place) as temporary:
            temporary.mkdir()
            (temporary / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())
    for text in ("old", "new"):
        with replacing(place) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(text)
            assert not place.exists() or (place / "file").read_text() == "old"
    assert (place / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("tokenizer", ["iap", "uniform"])
@pytest.mark.parametrize("decoder", ["linear", "cross_attention"])
def test_levels_without_a_token_still_have_gradients(tokenizer, decoder):
    """Zero, not None: otherwise processes that have such a token would wait for the others."""
    knobs = {"max_size": 8, "budget": 4} if tokenizer == "iap" else {"patch_sizes": [4, 8]}
    options = {"ndim": 2, "in_channels": 1, "dim": 16, "depth": 1, "heads": 2}
    model = create_surrogate(tokenizer={"name": tokenizer, **knobs}, decoder=decoder, **options)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(1, 1, 1, 16, 16)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert any(not p.grad.any() for p in model.parameters())
    assert before.keys() == model.state_dict().keys()


class Gated(torch.nn.Module):
    """Tokens with a learned scale, whose square it reports as a loss."""

    def __init__(self, spec, *, rate=0.5):
        super().__init__()
        self.rate, self.gate = rate, torch.nn.Parameter(torch.ones(spec.dim))

    def forward(self, tokens):
        report_loss("gate", self.gate.square().mean(), weight=self.rate)
        report_figure("largest", self.gate.max())
        return tokens.replace(features=tokens.features * self.gate)


@pytest.mark.parametrize(
    "compile",
    [pytest.param(False, id="eager"), pytest.param(True, id="compiled", marks=pytest.mark.slow)],
)
def test_auxiliary_losses_are_trained_on_and_logged(setting, tmp_path, compile, monkeypatch):
    PROCESSORS.register("gated")(Gated)
    _, data = setting
    module = module_of(composed("processor=gated"), data)
    batch = next(iter(data.train_dataloader()))
    if compile:  # without code generation, which knows nothing of losses and takes long
        compile_quickly = functools.partialmethod(torch.nn.Module.compile, backend="eager")
        monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
        compile_model(module.surrogate)
    gate = module.surrogate.processor.gate
    plain_loss = module.loss(batch, 0)  # nobody collects
    (expected,) = torch.autograd.grad(plain_loss + 0.5 * gate.square().mean(), gate)
    module.log_step = lambda loss, size, auxiliary: None
    objective = module.training_step(batch, 0)
    torch.testing.assert_close(objective, plain_loss + 0.5 * gate.square().mean())
    torch.testing.assert_close(torch.autograd.grad(objective, gate)[0], expected)
    del module.log_step
    fit(module, data, tmp_path, 2)
    first = next(row for row in read_metrics(tmp_path) if "train/aux/gate" in row)
    assert first["train/aux/gate"] == first["train/aux/largest"] == 1.0
    assert first["train/loss"] == pytest.approx(plain_loss.item(), rel=1)


def test_an_optimizer_by_target():
    model = torch.nn.Linear(2, 2)
    given = {"_target_": "torch.optim.SGD", "momentum": 0.9}
    made = Optim(lr=0.1, weight_decay=0.2, optimizer=given).make_optimizer(model)
    assert isinstance(made, torch.optim.SGD)
    assert [g["weight_decay"] for g in made.param_groups] == [0.2, 0.0]
    assert {g["lr"] for g in made.param_groups} == {0.1}
    assert made.param_groups[0]["momentum"] == 0.9
    assert isinstance(Optim(optimizer=torch.optim.SGD).make_optimizer(model), torch.optim.SGD)
    assert isinstance(Optim().make_optimizer(model), torch.optim.AdamW)
    for wrong in ({"_target_": "torch.optim.SGDD"}, {"momentum": 0.9}):
        with pytest.raises(ValueError, match=r"optim\.optimizer"):
            Optim(optimizer=wrong)


def test_callbacks_and_loggers_by_target(tmp_path):
    stopping = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/vrmse"}
    timer = Timer()
    more = {"loggers": {"t": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "x"}}}
    trainer = make_trainer(tmp_path, callbacks={"a": stopping, "b": timer, "c": None}, **more)
    assert [type(c).__name__ for c in trainer.callbacks].count("EarlyStopping") == 1
    assert timer in trainer.callbacks
    assert len(trainer.loggers) == 2
    with pytest.raises(ValueError, match=r"callbacks\.a"):
        make_trainer(tmp_path, callbacks={"a": {"_target_": "nowhere.Callback"}})
