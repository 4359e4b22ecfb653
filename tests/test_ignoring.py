"""What indicators do not see: constants by role, fields by name, channels by number."""

from __future__ import annotations

import pytest
import torch

import adaptok
from adaptok.config.channels import check_ignored, with_channels
from adaptok.data import FieldInfo, WellData
from adaptok.data.synthetic import SOLVERS, generate
from adaptok.plots import pictures
from adaptok.tokenizers.ignoring import as_ignore, only

STATISTICS = {k: torch.ones(2) for k in ("mean", "std", "delta_mean", "delta_std")}
STATISTICS |= {k: torch.ones(1) for k in ("constant_mean", "constant_std")}
FIELDS, CONSTANTS = ("pressure", "velocity_x"), ("density", "speed")
ONE_BUMP = {"iap": {"budget": 40}, "apt": {"thresholds": (2.0, 1.0)}, "matey": {"sizes": (4, 16)}}


def bump(row: int, column: int, side: int = 32) -> torch.Tensor:
    x = torch.zeros(1, side, side)
    x[0, row : row + 4, column : column + 4] = torch.rand(4, 4) + 1
    return x


def surrogate(name: str, **changes) -> adaptok.Surrogate:
    make = {"ndim": 2, "in_channels": 1, "constant_channels": 2, "dim": 24, "depth": 1, "heads": 2}
    tokenizer = {"name": name, **ONE_BUMP.get(name, {}), **changes.pop("knobs", {})}
    return adaptok.create_surrogate(**make | changes, tokenizer=tokenizer).eval()


@pytest.mark.parametrize("name", ["iap", "apt", "matey", "composed"])
@pytest.mark.parametrize("mode", ["fold", "frames"])
def test_a_surrogate_ignores_its_constants(name, mode):
    history = 2
    field = bump(2, 2).expand(1, history, 1, 32, 32).contiguous()
    walls = torch.cat([bump(20, 20), bump(24, 4)])[None]
    given = {"history": history, "history_mode": mode}
    model = surrogate(name, **given)
    cells = model.cells(field, constants=walls)
    other = model.cells(field, constants=walls.flip(-1))
    assert torch.equal(cells.origin, other.origin)
    without = surrogate(name, **given, constant_channels=0).cells(field)
    assert torch.equal(cells.origin, without.origin)
    # the papers' behaviour is an option
    paper = surrogate(name, **given, knobs={"ignore": []})
    seen = [paper.scored(field, w) for w in (walls, walls.flip(-1))]
    assert not torch.equal(*(paper.tokenizer.scores(x)[0] for x in seen))
    assert torch.equal(*(model.tokenizer.scores(x)[0] for x in seen))
    frames = 1 if mode == "frames" else history
    assert model.tokenizer.seen(frames + 2) == list(range(frames))


def test_a_tokenizer_alone_has_no_constants():
    field = torch.cat([bump(2, 2), bump(20, 20)])[None, None]
    make = {"ndim": 2, "in_channels": 2, "dim": 8, "budget": 40}
    alone, paper = (adaptok.create_tokenizer("iap", **make, **k) for k in ({}, {"ignore": []}))
    assert torch.equal(alone.cells(field).origin, paper.cells(field).origin)
    last = adaptok.create_tokenizer("iap", **make, ignore=[-1])
    first = adaptok.create_tokenizer("iap", **make | {"in_channels": 1})
    assert torch.equal(last.cells(field).origin, first.cells(field[:, :, :1]).origin)


def test_a_system_ignores_its_constants():
    make = {"ndim": 2, "fields": ["a", "b"], "constants": ["k"], "dim": 24, "depth": 1, "heads": 2}
    field, walls = bump(2, 2)[None, None], bump(20, 20)[None]
    origins = {}
    for ignore in ("constants", []):
        tokenizer = {"name": "iap", "budget": 40, "ignore": ignore}
        system = adaptok.create_multiphysics(**make, tokenizer=tokenizer).system(["a"], ["k"])
        origins[str(ignore)] = system.cells(field, constants=walls).origin
        assert system(field, constants=walls).isfinite().all()
    alone = adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=8, budget=40)
    assert torch.equal(origins["constants"], alone.cells(field).origin)
    assert not torch.equal(origins["constants"], origins["[]"])


def test_entropy_does_not_mix_what_is_left_into_gray():
    three, walls = torch.rand(1, 1, 3, 32, 32), torch.rand(1, 2, 32, 32)
    make = {"in_channels": 3, "history": 1, "normalise": "none", "predict": "state"}
    model = surrogate("apt", **make)
    own = surrogate("apt", **make, constant_channels=0, knobs={"color": "channels"})
    scores, _ = model.tokenizer.scores(model.scored(three, walls))
    assert torch.equal(scores, own.tokenizer.scores(own.scored(three))[0])


@pytest.mark.parametrize("channels", [[0, 1, 2, 3], [1, 2], [0, 2, 3], [3]])
def test_picking_channels(channels):
    field = torch.rand(2, 1, 4, 5)
    assert torch.equal(only(field, channels), field[:, :, channels])


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        ([3], "ignored channel 3: the field has 3 channels"),
        ([0, 1, 2], "every channel is ignored"),
        (["pressure"], "names of fields go with adaptok train"),
        ("pressure", "tokenizer 'iap': ignore must be constants or a list"),
    ],
)
def test_what_cannot_be_ignored(ignore, message):
    with pytest.raises(ValueError, match=message):
        surrogate("iap", knobs={"ignore": ignore})


def config(ignore, **changes) -> dict:
    tokenizer = {"name": "iap", "ignore": ignore}
    return {"tokenizer": tokenizer, "history": 1, "history_mode": "fold"} | changes


def test_names_become_numbers():
    def numbers(ignore, **changes):
        return with_channels(config(ignore, **changes), FIELDS, CONSTANTS)["ignore"]

    assert numbers(["density", "pressure"]) == [2, 0]
    assert numbers([-1, "pressure"], history=2) == [-1, 0, 2]
    assert numbers(["speed"], history=3) == [7]
    assert numbers(["speed"], history=3, history_mode="frames") == [3]
    assert numbers("constants") == "constants"
    with pytest.raises(ValueError, match=r"tokenizer.ignore must be .*did you mean 'density'"):
        numbers(["densty"])
    with pytest.raises(ValueError, match=r"ignore=\[4\]: ignored channel 4: the field has 4"):
        numbers([4])


def test_names_are_checked_before_a_set_is_generated():
    wrong = config(["walls"], data={"name": "acoustic_scattering_maze", "generate": {}})
    with pytest.raises(ValueError, match="got 'walls'"):
        check_ignored(wrong)
    check_ignored(config(["density"], data=wrong["data"]))
    decoder = {"name": "refine", "ignore": ["walls", "density"]}
    with pytest.raises(ValueError, match=r"decoder.ignore must be .* got 'walls'"):
        check_ignored(config(["density"], data=wrong["data"], decoder=decoder))


@pytest.mark.parametrize("name", SOLVERS.names())
def test_solvers_say_their_fields(name, tmp_path):
    knobs = {"resolution": 16, "frames": 2, "train": 1, "valid": 1, "test": 1, "start": 0.0}
    knobs |= {"frame_dt": 1e-3} | ({"nodes": 4} if "maze" in name else {})
    generate(name, tmp_path, progress=False, **knobs)
    data = WellData(name=name, base=str(tmp_path), batch_size=1)
    data.setup()
    solver = SOLVERS.get(name)
    assert (solver.field_names, solver.constant_names) == (data.info.fields, data.info.constants)


@pytest.mark.parametrize("ignore", ["constants", []])
def test_pictures_follow_the_field_that_decides(ignore):
    names = {"fields": ("a", "b"), "constants": ("k",)}
    info = FieldInfo("x", 2, (32, 32), **names, **STATISTICS, boundary=torch.zeros(2, 2).long())
    field = torch.cat([torch.zeros(1, 32, 32), bump(20, 20)])[None, None]
    batch = {"input": field, "constants": torch.rand(1, 1, 32, 32)}
    batch |= {"boundary": torch.zeros(1, 2, 2, dtype=torch.long)}
    knobs = {"ignore": ignore, "weights": [1.0, 1.0] + [1.0] * (ignore == [])}
    model = surrogate("iap", in_channels=2, constant_channels=1, knobs=knobs)
    name, values = pictures.followed(model, info, batch)
    assert name == ("b" if ignore else "k")
    drawn = batch["input"][0, 0, 1] if ignore else batch["constants"][0, 0]
    assert (values == drawn.numpy()).all()


def test_truth_values_are_no_channels():
    for value in (True, False):
        with pytest.raises(ValueError, match="a list of channels by number"):
            as_ignore([value])
