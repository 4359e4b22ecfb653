"""Tracks of the benchmark: their jobs and prices, the runner, and one of each kind measured."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_rows import made_up
from filelock import FileLock
from omegaconf import OmegaConf
from sampled import sampled

from adaptok.cli import main
from adaptok.cli.bench_track import OPTIONS, chosen, measured, parsed
from adaptok.cli.usage import command_help
from adaptok.config.menu import compose, plain
from adaptok.evaluation.evaluate import evaluate
from adaptok.evaluation.standings import MANDATORY, Row, missing, read_rows
from adaptok.tasks.bench import measuring, methods, t0, t1, t2
from adaptok.tasks.bench.full import dry
from adaptok.tasks.bench.job import Job, Price, checkpoint_in
from adaptok.tasks.bench.measuring import rollout_of, worst_decile
from adaptok.tasks.bench.runner import price_list, run
from adaptok.tasks.bench.sets import SMALL, FieldSet, full_size, info_of

TINY = FieldSet(
    name="tiny",
    data="acoustic_scattering_maze",
    shape=(16, 16),
    channels=5,
    patches=(2, 4, 8),
    words=(
        *("data=acoustic_scattering_maze", "data.batch_size=2", "size=tiny", "size.depth=1"),
        *("data.generate.resolution=16", "data.generate.nodes=4", "data.generate.train=2"),
        *("data.generate.valid=1", "data.generate.test=2", "data.generate.frames=14"),
        *("trainer.accelerator=cpu", "trainer.max_steps=4", "trainer.val_check_interval=2"),
        *("size.dim=24", "size.heads=2", "optim=cosine", "optim.warmup_steps=1"),
    ),
    frames=1,
    batch=2,
    steps=4,
    dim=24,
    depth=1,
    heads=2,
    width=8,
    widths={"lower_resolution": 4, "cnextunet": 4, "fno": 4, "tfno": 4},
    tested=26,
    generated=1.0,
)


def job_of(name: str, seed: int = 0, **config: Any) -> Job:
    content = {"method": name, "seed": seed, **config}
    return Job("T1", "maze_64", name, "tokens", 64, seed, content, Price(60.0, 2e9))


def as_row(job: Job, work: Path) -> Row:
    return made_up(
        method=job.method, seed=job.seed, config=dict(job.config), key=job.key, budget=job.budget
    )


def test_what_is_measured_is_skipped_and_what_fails_stops_no_other(tmp_path, capsys):
    jobs = [job_of("iap"), job_of("bad"), job_of("uniform")]
    seen: list[str] = []

    def measure(job: Job, work: Path) -> Row:
        seen.append(job.method)
        print("epoch 1")
        if job.method == "bad":
            raise ValueError("no such\npart")
        return as_row(job, work)

    assert run(jobs, tmp_path, measure) == {"T1-maze_64-bad-tokens64-0": "ValueError: no such part"}
    said = capsys.readouterr().out
    assert "2/3 T1-maze_64-bad-tokens64-0: failed: ValueError: no such part" in said
    assert "epoch" not in said
    assert "epoch 1" in (tmp_path / "work" / "T1-maze_64-iap-tokens64-0.log").read_text()
    assert [*read_rows(tmp_path).rows] == [f"{jobs[i].stem}.json" for i in (0, 2)]
    run(jobs, tmp_path, measure)
    assert seen == ["iap", "bad", "uniform", "bad"]


def test_rows_that_are_damaged_or_of_another_configuration_are_measured_again(tmp_path):
    seen: list[str] = []

    def measure(job: Job, work: Path) -> Row:
        seen.append(job.key)
        return as_row(job, work)

    run([job_of("iap")], tmp_path, measure)
    run([job_of("iap", steps=7)], tmp_path, measure)
    assert len({*seen}) == 2
    (tmp_path / f"{job_of('iap').stem}.json").write_text("{")
    run([job_of("iap", steps=7)], tmp_path, measure)
    assert len(seen) == 3


def test_a_row_that_another_process_measures_is_left_to_it(tmp_path, capsys):
    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / f"{job_of('iap').stem}.lock"):
        assert run([job_of("iap")], tmp_path, as_row) == {}
    assert "another process measures it" in capsys.readouterr().out
    assert not read_rows(tmp_path).rows


def test_the_price_learns_from_what_finished_jobs_took(tmp_path):
    jobs = [job_of("iap"), job_of("uniform"), job_of("random")]
    first = price_list(jobs, tmp_path / "absent")
    assert "3 of 3 rows to measure: about 0.05 hours of one core or GPU, 2.0 GB of memory" in first
    run(jobs[:1], tmp_path, as_row)
    noted = tmp_path / "work" / "seconds.csv"
    assert re.fullmatch(r"T1,60\.00,0\.\d\d\n", noted.read_text())
    noted.write_text("T1,60.00,120.00\nT0,60.00,6.00\ngarbage\nT1,60.00,nan\n\xff")
    later = price_list(jobs, tmp_path)
    assert "2 of 3 rows to measure: about 0.07 hours" in later
    assert "1/3" in later


def test_sets_are_generated_once_in_the_price(tmp_path):
    """Whichever rows are chosen."""
    jobs = [job for job in t1.jobs(True) if job.set == "maze_64"]
    alone, all_of_it = price_list(jobs[-1:], tmp_path), price_list(jobs, tmp_path)
    hours = [float(re.findall(r"about ([\d.]+) hours", said)[0]) for said in (alone, all_of_it)]
    shared = SMALL["maze_64"].generated
    assert hours[0] == pytest.approx((shared + jobs[-1].price.seconds) / 3600, abs=5e-3)
    whole = shared + sum(job.price.seconds for job in jobs)
    assert hours[1] == pytest.approx(whole / 3600, abs=5e-3)


def test_rows_that_would_end_too_late_are_left(tmp_path, capsys):
    jobs = [job_of("iap"), job_of("uniform")]
    assert run(jobs, tmp_path, as_row, hours=0.01) == {}
    assert "would end after 0.01 hours" in capsys.readouterr().out
    assert not read_rows(tmp_path).rows
    run(jobs, tmp_path, as_row, hours=0.02)
    assert len(read_rows(tmp_path).rows) == 2


def test_a_row_of_another_schema_is_never_overwritten(tmp_path):
    file = tmp_path / f"{job_of('iap').stem}.json"
    file.write_text('{"schema": 9}')
    failed = run([job_of("iap")], tmp_path, as_row)
    assert "a row of another schema: move it" in failed[job_of("iap").stem]
    assert file.read_text() == '{"schema": 9}'


def test_a_checkpoint_that_is_cut_off_is_no_checkpoint(tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert checkpoint_in(tmp_path) is None
    last.parent.mkdir()
    torch.save({"weights": torch.ones(1000)}, last)
    assert checkpoint_in(tmp_path) == last
    last.write_bytes(last.read_bytes()[:-100])
    assert checkpoint_in(tmp_path) is None


def test_where_the_sets_are_decides_nothing():
    here, there = (t1.jobs(True, scale="full", base=base) for base in ("/data", "/mnt/my disk"))
    assert [job.key for job in here] == [job.key for job in there]
    (place,) = there[0].places
    config = plain(compose("train", [*there[0].config["words"], place]))
    assert config["data"]["base"] == "/mnt/my disk"


@pytest.mark.parametrize("module", [t0, t1, t2])
def test_quick_jobs_are_some_of_all_and_have_the_mandatory_methods(module):
    every, quick = module.jobs(), module.jobs(quick=True)
    assert len({job.stem for job in every}) == len(every)
    assert {(job.stem, job.key) for job in quick} <= {(job.stem, job.key) for job in every}
    assert {job.seed for job in quick} == {0}
    assert {job.seed for job in every} == {0, 1, 2}
    track = every[0].track
    absent = {*MANDATORY[track]} - {job.method for job in quick}
    assert absent <= {name for name, m in methods.METHODS.items() if m.needs}  # not installed


@pytest.mark.parametrize("module", [t0, t1, t2])
def test_seeds_of_a_job_have_one_definition(module):
    found: dict[tuple, set[str]] = {}
    for job in module.jobs():
        row = made_up(method=job.method, seed=job.seed, config=dict(job.config))
        found.setdefault((job.set, job.method, job.kind, job.value), set()).add(row.definition)
    assert {len(definitions) for definitions in found.values()} == {1}
    assert len({one for own in found.values() for one in own}) == len(found)


def test_budgets_are_equal_tokens_operations_and_seconds():
    jobs = [job for job in t1.jobs() if job.set == "maze_64" and job.seed == 0]
    kinds = {(job.kind, job.value) for job in jobs}
    tokens = {("tokens", 256), ("tokens", 64), ("tokens", 16)}
    assert kinds == tokens | {("none", None), ("flops", 64), ("seconds", 64)}
    named = {job.method for job in jobs if job.kind == "flops"}
    assert {"uniform", "random", "radial", "oracle", "fno", "csm_cyclic"} <= named
    assert not {"persistence", methods.REFERENCE} & named


@pytest.mark.parametrize("name", sampled(methods.METHODS, 8))
def test_words_of_every_method_compose(name):
    for about in [SMALL["blast_32"], full_size()["turbulent_radiative_layer_2D"]]:
        words = methods.METHODS[name].words(about, about.patches[1])
        config = plain(compose("train", [*about.words, *words, "seed=3"]))
        if name == "random":
            assert config["tokenizer"]["seed"] == 3
        if "budget" in config["tokenizer"] and config["model"]["name"] == "surrogate":
            assert config["tokenizer"]["budget"] == about.tokens(about.patches[1])


@pytest.mark.parametrize("name", ["iap", "lower_resolution", "fno", "cnextunet"])
def test_a_width_is_found_for_models_of_every_kind(name, monkeypatch):
    """Only composed: the width itself is the cost, and 100 that of a model without this knob."""
    key = methods.METHODS[name].fitted
    monkeypatch.setattr(t1, "prepared", lambda words, data: plain(compose("train", words)))

    def cost(config) -> float:
        return OmegaConf.select(OmegaConf.create(config), key.strip("+")) or 100

    monkeypatch.setattr(t1, "_flops", cost)
    job = next(j for j in t1.jobs() if (j.kind, j.method) == ("flops", name))
    words = t1.fitted_words(job, "data")
    assert [word for word in words if word.startswith(f"{key}=")] == words[-1:]
    about = SMALL[job.set]
    target = about.dim if key == "size.dim" else 100
    width = int(words[-1].partition("=")[2])
    assert width <= t1.OVER * target < width + (12 if key == "size.dim" else 4)


@pytest.mark.slow
def test_operations_in_closed_form_are_those_that_are_counted():
    """Exactly for uniform cells; the help is uniform too."""
    from torch.utils.flop_counter import FlopCounterMode

    from adaptok.config.build import without_statistics

    about = SMALL["maze_64"]
    for name in ("uniform", "coarse_fine"):
        method = methods.METHODS[name]
        config = plain(compose("train", [*about.words, *method.words(about, 8)]))
        info = info_of("acoustic_scattering_maze")
        model: Any = without_statistics(config, info)
        constants = torch.zeros(1, 2, 64, 64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.rand(1, 1, 3, 64, 64), constants=constants)
        counted = counter.get_total_flops()
        assert methods.operations(method, about, 8) == pytest.approx(counted, rel=0.15), name


@pytest.mark.slow
@pytest.mark.parametrize("data", ["supernova_explosion_64", "shear_flow"])
def test_models_of_the_full_size_are_built_without_data(data):
    quick = t1.jobs(True, scale="full", base="/nowhere")
    assert len({job.set for job in quick}) == 2
    jobs = t1.jobs(scale="full", base="/nowhere")
    assert len({job.set for job in jobs}) == 8
    chosen = {(j.method, j.kind): j for j in jobs if j.set == data}
    for method in ("iap", "coarse_fine", "ckm_cyclic", "lower_resolution"):
        kind = "none" if method == "lower_resolution" else "tokens"
        assert dry(chosen[method, kind]) > 1e6
    with pytest.raises(ValueError, match="scale is small or full"):
        t1.jobs(scale="huge")


def test_budgets_of_the_full_size_are_those_of_the_papers():
    sets = full_size()
    found = {name: [one.tokens(patch) for patch in one.patches] for name, one in sets.items()}
    flat, deep = [4096, 1024, 256], [4096, 512, 64]
    for name in ("active_matter", "viscoelastic_instability", "rayleigh_benard"):
        assert found[name] == flat
    assert found["supernova_explosion_64"] == found["turbulence_gravity_cooling"] == deep
    assert found["turbulent_radiative_layer_2D"] == [3072, 768, 192]


def test_a_width_is_the_largest_whose_cost_is_not_above_the_target():
    tried = []

    def square(n: int) -> float:
        tried.append(n)
        return n * n

    for target in range(1, 40):
        tried.clear()
        wanted = max([n for n in range(21) if n * n <= target], default=0)
        assert t1.largest(square, target, 20) == wanted
        assert max(tried) <= 2 * wanted  # a much larger model may not fit into memory
    assert t1.largest(lambda n: 1.0 + n, 1, 20) == 0
    assert t1.largest(lambda n: n, 100, 20) == 20


def test_windows_and_worst_decile_against_their_definitions():
    errors = torch.rand(23)
    assert worst_decile(errors) == pytest.approx(sum(sorted(errors.tolist())[-2:]) / 2)
    assert worst_decile(errors[:3]) == errors[:3].max()
    steps = torch.rand(5, 12)
    made = rollout_of(steps, 4, {"6:12": slice(6, 12), "13:30": slice(13, 30)})
    assert made["first"] == 4
    assert {*made["windows"]} == {"6:12"}
    assert made["windows"]["6:12"] == pytest.approx(steps[:, 6:12].mean().item())
    steps[0, 7] = float("inf")
    assert rollout_of(steps, 4, {"6:12": slice(6, 12)})["windows"]["6:12"] is None


def test_a_track_without_training_from_the_command_line(tmp_path, capsys):
    """Also what it prints first, and that the second time nothing is measured."""
    words = ["bench", "run", "T0", f"out={tmp_path}", "--quick", "only=*maze-[iou]*"]
    assert main([*words, "--plan"]) == 0
    assert not list(tmp_path.iterdir())
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.index("rows to measure") < said.index("1/4 T0-acoustic_scattering_maze")
    rows = read_rows(tmp_path)
    assert not rows.bad
    errors = {row.method: row.score for row in rows.rows.values()}
    assert {*errors} == {"optimal tree", "oracle", "iap", "uniform"}
    assert errors["optimal tree"] <= errors["oracle"] < errors["iap"] < errors["uniform"]
    for row in rows.rows.values():
        assert row.tokens == 256
        assert (row.seconds is None) == (row.method in ("optimal tree", "oracle"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert main(words) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    absent = {method for _, _, method in missing(rows.rows.values())}
    assert absent == {*MANDATORY["T0"]} - {*errors}


def test_a_row_without_training_is_the_same_again():
    job = next(job for job in t0.jobs(True) if job.method == "msvit")
    first = t0.measure(job, Path("unused"))
    torch.manual_seed(7)
    assert t0.measure(job, Path("unused")).metrics == first.metrics


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "give one track of T0, T1, T2, got none"),
        (["T0", "T1", "out=x"], "give one track"),
        (["T7", "out=x"], "track must be one of T0, T1, T2, got 'T7'"),
        (["T0"], "give the folder of the rows: out=FOLDER"),
        (
            ["T0", "out=x", "scale=full"],
            "option of T0 must be one of out, only, hours, got 'scale'",
        ),
        (["T0", "out=x", "--quik"], "flag must be one of --quick, --plan"),
        (["T0", "out=x", "only=none"], "no row matches 'none'"),
        (["T0", "out=x", "hours=-1"], "hours must be a number above 0, got '-1'"),
        (["T0", f"out={__file__}"], "is a file; give a folder"),
        (
            ["T1", "out=x", "scale=full", "base=y", "only=*shear*"],
            "sets that are not there: shear_flow. Choose",
        ),
        (["T2", "out=x", "images=y"], "checkpoint=FILE"),
        (["T2", "out=x", "model=vit_tiny_patch16_224"], "without them digits are measured"),
        (["T2", "out=x", "checkpoint=z"], "without them digits are measured"),
        (["T2", "out=x", "images=y", "checkpoint=z"], "y does not exist"),
        (
            ["T1", "out=x", "base=y", "--plan"],
            "base=FOLDER is for the sets of the Well: scale=full",
        ),
    ],
)
def test_words_that_are_refused(words, reason, capsys):
    assert main(["bench", "run", *words]) == 2
    assert reason in capsys.readouterr().err


def test_folders_of_images(tmp_path, monkeypatch):
    """An own folder is never taken for the digits; its words stand for any path."""
    (tmp_path / "weights, 1.pt").touch()
    for name in ("my images", "digits", "images@2"):
        (tmp_path / name / "train" / "a").mkdir(parents=True)
        (tmp_path / name / "train" / "a" / "1.png").touch()
    monkeypatch.chdir(tmp_path / "my images")
    given = {"model": "vit_tiny_patch16_224", "checkpoint": str(tmp_path / "weights, 1.pt")}
    jobs = t2.jobs(True, images=".", **given)
    made = {job.method: job for job in jobs}
    assert made["tome"].set == "my images"
    config = t2.composed(made["tome"])
    assert config["data"]["path"] == "."
    assert config["model"]["checkpoint"] == given["checkpoint"]
    assert config["tokenizer"]["reducer"]["r"] == 15  # in each of 12 blocks
    shutil.copytree(tmp_path / "my images", tmp_path / "disk" / "my images")
    moved = t2.jobs(True, images=str(tmp_path / "disk" / "my images"), **given)
    assert [job.key for job in moved] == [job.key for job in jobs]
    (tmp_path / "weights, 1.pt").write_bytes(b"others")
    others = t2.jobs(True, images=".", **given)
    assert not {job.key for job in others} & {job.key for job in jobs}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty/train/<class>/"):
        t2.jobs(True, images=str(tmp_path / "empty"), **given)
    for name in ("digits", "images@2"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be used: rename the folder"):
            t2.jobs(True, images=f"../{name}", **given)
    for wrong in ("nosuch", "resnet18"):
        with pytest.raises(ValueError, match=f"unknown model '{wrong}'"):
            t2.jobs(True, images=".", **{**given, "model": wrong})


def test_commands_of_the_documentation_are_understood():
    from test_docs_commands import OWN

    lines = [shlex.split(line, comments=True) for _, line in OWN]
    typed = [words[3:] for words in lines if words[1:3] == ["bench", "run"]]
    assert {parsed(words).track for words in typed} == {"T0", "T1", "T2"}
    assert any(words[1:3] == ["bench", "submit"] for words in lines)


def test_the_help_names_every_option():
    said = command_help("bench run")
    for option in {option for options in OPTIONS.values() for option in options}:
        assert re.search(rf"^  {option} ", said, re.MULTILINE), option


def test_options_reach_the_track():
    asked = parsed(["T1", "out=rows", "scale=full", "base=/data", "--quick"])
    assert (asked.track, asked.out, asked.quick, asked.plan) == ("T1", Path("rows"), True, False)
    assert asked.options == {"scale": "full", "base": "/data"}


def test_the_command_for_the_page_can_be_typed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adaptok.cli.bench_track.run", lambda *_: {})
    asked = parsed(["T0", f"out={tmp_path / 'my rows'}"])
    assert measured(asked, chosen(asked)) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[2:] == [str(asked.out), f"out={asked.out / 'leaderboard.html'}"]


@pytest.fixture
def tiny(monkeypatch) -> Callable[..., list[Job]]:
    """Jobs of track T1 on a set and a training of seconds."""
    monkeypatch.setattr(t1, "SMALL", {"tiny": TINY})
    return t1.jobs


@pytest.mark.slow
def test_every_method_of_t1_is_measured(tmp_path, tiny):
    jobs = [job for job in tiny(True) if job.method != "tfno"]
    assert run(jobs, tmp_path, t1.measure) == {}
    found = read_rows(tmp_path)
    assert len(found.rows) == len(jobs)
    assert not found.bad
    rows = {row.method: row for row in found.rows.values()}
    assert rows["persistence"].score == rows["persistence"].metrics["persistence"]
    assert rows["oracle"].rollout is None
    for name in ("uniform", "iap", "ckm_cyclic", "fno"):
        rollout = rows[name].rollout
        assert rollout is not None
        assert rollout["first"] == 1
        assert len(rollout["errors"]) == 12
        assert {*rollout["windows"]} == {"6:12"}
    for name in ("uniform", "uniform_help", "coarse_fine", "random", "radial", "iap"):
        assert rows[name].tokens == pytest.approx(16, abs=3)
    assert rows["ckm_cyclic"].tokens < 16
    assert rows["iap"].metrics["transfer"] is not None
    assert rows["uniform"].metrics["transfer"] is None


@pytest.mark.slow
def test_a_row_that_was_interrupted_resumes_and_has_the_same_numbers(tmp_path, tiny, monkeypatch):
    """In a folder whose name has to be quoted; a width that was found stays."""
    (job,) = [job for job in tiny(True) if job.method == "iap"]
    whole = t1.measure(job, tmp_path / "whole")
    fitted = iter([[*job.config["words"], f"size.dim={dim}"] for dim in (24, 36)])
    rows = tmp_path / "rows, of jürgen's (1)"
    job = replace(job, config={**job.config, "fitted": "size.dim"})
    monkeypatch.setattr(t1, "fitted_words", lambda *_: next(fitted))
    with monkeypatch.context() as patch:

        def stop(*_: Any) -> dict[str, Any]:
            raise KeyboardInterrupt

        patch.setattr(t1, "found_by", stop)
        with pytest.raises(KeyboardInterrupt):
            run([job], rows, t1.measure)
    assert not read_rows(rows).rows
    assert run([job], rows, t1.measure) == {}
    (again,) = read_rows(rows).rows.values()
    assert again.metrics == {**whole.metrics, "width": 24.0}
    assert again.rollout == whole.rollout
    log = (rows / "work" / f"{job.stem}.log").read_text()
    assert "resuming from" in log


@pytest.mark.slow
def test_equal_operations_are_those_of_the_reference_and_seconds_are_found(tmp_path, tiny):
    every = [job for job in tiny() if job.seed == 0 and job.method == "uniform"]
    reference = next(j for j in tiny() if (j.method, j.value) == (methods.REFERENCE, 16))
    target = t1._flops(t1.prepared(reference.config["words"], str(tmp_path)))
    for job in [job for job in every if job.kind == "flops"]:
        words = t1.fitted_words(job, str(tmp_path))
        key, width = words[-1].split("=")
        own = t1._flops(t1.prepared(words, str(tmp_path)))
        assert key == "size.dim"
        above = t1._flops(t1.prepared([*words, f"{key}={int(width) + 12}"], str(tmp_path)))
        assert own <= t1.OVER * target < above
    (job,) = [j for j in every if (j.kind, j.method) == ("seconds", "uniform")]
    assert t1.fitted_words(job, str(tmp_path))[-1].startswith("size.dim=")


@pytest.mark.slow
def test_errors_are_those_of_the_evaluation(tmp_path, tiny):
    job = next(job for job in tiny(True) if job.method == "iap")
    ready = t1.prepared(job.config["words"], str(tmp_path))
    found = measuring.tested(ready.module, ready.data, ready.by_turns(), 12, 1)
    model = ready.module.surrogate
    wanted = evaluate(model, ready.data, steps=12, device="cpu").settings[0]
    assert found.one_step.mean().item() == pytest.approx(wanted.metrics["vrmse"].mean, rel=1e-5)
    assert found.rollout is not None
    assert wanted.rollout is not None
    torch.testing.assert_close(found.rollout.mean(0), torch.tensor(wanted.rollout.mean))
    assert found.flops == wanted.flops["total"]


@pytest.mark.slow
def test_everything_is_measured_in_the_precision_of_evaluations(tmp_path, tiny, monkeypatch):
    """That of training on CUDA: errors, operations and memory, seconds."""
    job = next(job for job in tiny(True) if job.method == "iap")
    ready, seen = t1.prepared(job.config["words"], str(tmp_path)), []
    half = torch.autocast("cpu", torch.bfloat16)
    for module in (measuring, sys.modules[evaluate.__module__]):
        monkeypatch.setattr(module, "precision", lambda _: half)
    ready.module.surrogate.processor.register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    measuring.tested(ready.module, ready.data, ready.by_turns(), 6, 1)
    measuring.step_seconds(ready.module, ready.data, 1)
    assert seen
    assert all(seen)


@pytest.mark.slow
def test_a_model_without_weights_is_timed_where_it_is(tmp_path, tiny, monkeypatch):
    job = next(job for job in tiny(True) if job.method == "persistence")
    ready, seen = t1.prepared(job.config["words"], str(tmp_path)), set()
    module = ready.module.to("meta")
    monkeypatch.setattr(
        module, "predict", lambda batch, _: seen.add(batch["input"].device.type) or batch["input"]
    )
    assert t1._inference_alone(module, ready.data)["inference"] > 0
    assert seen == {"meta"}


@pytest.mark.slow
def test_the_oracle_sees_the_next_change_and_nothing_else(tmp_path, tiny):
    job = next(job for job in tiny(True) if job.method == "oracle")
    ready = t1.prepared(job.config["words"], str(tmp_path), oracle=True)
    batch = next(iter(ready.data.loader("test", 1)))
    model, seen = ready.module.surrogate, []
    model.processor.register_forward_pre_hook(lambda _, given: seen.append(given[0].cells))
    ready.module.predict(batch, 0)
    change = torch.zeros_like(batch["target"][:, :1])
    change[..., :4, :4] = torch.rand(4, 4)
    ready.module.predict({**batch, "target": batch["input"] + change}, 0)
    first, second = (cells.origin[cells.level == cells.level.max()] for cells in seen)
    assert not torch.equal(seen[0].origin, seen[1].origin)
    assert len(first)
    assert (second[:, -2:] < 8).all()
    assert len(second)


@pytest.mark.slow
def test_a_folder_of_images_and_weights_make_jobs_of_timm(tmp_path):
    pytest.importorskip("timm")
    weights, images = tmp_path / "vit.safetensors", tmp_path / "images"
    weights.touch()
    (images / "train" / "cat").mkdir(parents=True)
    (images / "train" / "cat" / "1.png").touch()
    chosen = {"images": str(images), "model": "vit_tiny_patch16_224", "checkpoint": str(weights)}
    jobs = t2.jobs(True, **chosen)
    values = {job.method: job.value for job in jobs if job.kind == "tokens"}
    assert {*values.values()} == {98}
    for job in jobs:
        config = t2.composed(job)
        assert config["data"]["path"] == str(images)
        if job.method == "lower_resolution":
            assert config["model"]["img_size"] == 9 * 16  # at most half of 14 x 14
        if job.method == "tome":
            assert config["tokenizer"]["reducer"]["r"] == 15
    with pytest.raises(ValueError, match="absent does not exist"):
        t2.jobs(**{**chosen, "checkpoint": "absent"})


@pytest.mark.slow
def test_images_are_measured(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip("mlxtend")
    short = ["trainer.max_epochs=1", "+trainer.limit_train_batches=2", "optim.warmup_epochs=0"]

    def words(given: list[str]) -> list[str]:
        kept = [w for w in given if not w.startswith(("trainer.max_epochs", "optim.warmup"))]
        return [*kept, *short]

    quick = t2.jobs(quick=True)
    jobs = [job for job in quick if job.method != "apt_variance"]
    jobs = [job for job in jobs if (job.method, job.kind) != ("uniform", "none")]
    for job in jobs:
        monkeypatch.setitem(job.config, "words", words(job.config["words"]))
    assert run(jobs, tmp_path, t2.measure) == {}
    rows = {row.method: row for row in read_rows(tmp_path).rows.values()}
    assert rows["chance"].score == pytest.approx(0.9)
    for name in ("apt", "tome", "radial"):
        assert rows[name].tokens == pytest.approx(32, rel=0.15), name
        assert 0 < rows[name].metrics["dense_loss"] < 1
    for name in ("uniform", "lower_resolution"):
        assert rows[name].tokens == 25
        assert rows[name].metrics["dense_loss"] is None
    assert rows["random"].tokens == pytest.approx(rows["apt"].tokens)
