"""Experiments say what they run, every key of it is read, full-size models have the papers' counts
without being built, and runs are made once, go on where they stopped, and are compared."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import listed
import measured
import pytest
import reproduce
import small_runs
import yaml
from forked import fork_in_place_of_run
from listed import expected, names, read

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments"
NAMES = names()
read_once = cache(read)
SECTIONS = ("Claim", "Command", "Deviations", "Result", "Verdict")
# What the counts of a figure's runs are checked with.
OWN = [n for n in NAMES if any(r.owner == n for r in read_once(n).runs.get("full", []))]
HEAD = ",".join(listed.EXPECTED)


@cache
def dry():
    import dry_run

    return dry_run


def test_every_folder_is_an_experiment():
    folders = {p.name for p in FOLDER.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert folders - {*NAMES} == {"adaptivity", "bench", "gpu", "reliability", "rollouts"}
    index = (FOLDER / "README.md").read_text()
    assert [n for n in NAMES if f"({n}/README.md)" not in index] == []


@pytest.mark.parametrize("name", [n for n in NAMES if read_once(n).source != "ours"])
def test_a_folder_is_complete(name):
    text = (FOLDER / name / "README.md").read_text()
    missing = [word for word in SECTIONS if f"**{word}" not in text]
    assert not missing
    assert f"EXP={name}" in text or "not reproducible here" in text
    assert len(text.splitlines()) <= 75
    assert "RESULT" not in text
    assert "VERDICT" not in text
    experiment = read(name)
    known = {run.name for runs in experiment.runs.values() for run in runs} | {""}
    for row in expected(experiment):
        assert row["source"]
        assert row["run"] in known
        assert row["value"] or row["ours"]
        if row["metric"] != "statement":
            assert all(float(row[key]) >= 0 for key in ("value", "tolerance", "ours") if row[key])
    keys = [(r["run"], r["setting"], r["metric"]) for r in expected(experiment)]
    assert len({*keys}) == len(keys) or {k[2] for k in keys} == {"statement"}
    for (one, _), (other, _) in experiment.compare:
        assert {one, other} <= known


@pytest.mark.parametrize("name", [n for n in NAMES if (FOLDER / n / "results.csv").is_file()])
def test_results_are_those_of_its_runs(name):
    path = FOLDER / name / "results.csv"
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == measured.COLUMNS
        rows = list(reader)
    assert rows
    experiment = read(name)
    for row in rows:
        runs = {r.name: r for r in experiment.runs[row["scale"]]}
        run = runs[row["run"].partition("/")[0]]
        assert int(row["seed"]) in run.seeds
        assert row["value"] == "" or float(row["value"]) == float(row["value"])
    assert measured.kept(experiment, rows) == rows


def composing(name: str) -> list[list[listed.Run]]:
    """The runs of an experiment that have a configuration, by scale."""
    found = [
        [r for r in runs if r.owner == name and r.command not in listed.WORDS]
        for runs in read_once(name).runs.values()
    ]
    return [runs for runs in found if runs]


@pytest.mark.parametrize("name", [n for n in NAMES if composing(n)])
def test_the_first_runs_compose_and_every_key_is_read(name):
    dry().composed(composing(name)[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if composing(n)])
def test_every_word_composes_and_every_key_is_read(name):
    """Of each scale the runs with an override that no run before had."""
    for runs in composing(name):
        met: set[str] = set()
        for run in runs:
            if not met.issuperset(run.words(Path("OUT"))):
                dry().composed(run)
                met.update(run.words(Path("OUT")))


@pytest.mark.parametrize(
    "wrong",
    [
        "+size.depht=3",
        "data.generate.steps=3",
        "trainer.epochs=3",
        "optim.momentum=1",
        "test.step=1",
    ],
)
def test_a_key_that_nothing_reads_is_found(wrong):
    words = ("data=acoustic_scattering_maze", wrong)
    with pytest.raises(ValueError, match=wrong.partition("=")[0].split(".")[-1].strip("+")):
        dry().composed(listed.Run("x", "train", words, (0,), "x", "x", "small"))


# Of its runs at six budgets each one takes minutes: thousands of steps of the paper's loop.
COUNTED = [name for name in OWN if name != "iap_table7"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_full_size_models_have_the_counts_of_the_paper(name):
    """Every tenth one: `make reproduce EXP=... DRY=1` counts all, in minutes."""
    chosen = [run.name for run in read(name).runs["full"]][::10]
    lines, wrong = dry().dry_run(read(name), chosen)
    assert not wrong
    assert len(lines) == len(chosen)


@pytest.mark.parametrize("name", OWN)
def test_expectations_are_of_runs_that_there_are(name):
    wanted = {row["run"] for row in dry().expected(read(name))} - {""}
    assert wanted <= {run.name for run in read(name).runs["full"]}


def test_a_dry_run_leaves_no_fake_tensors_behind():
    from torch import randn

    from adaptok import create_surrogate

    dry().dry_run(read("iap_table1"), ["sne_vit_4096"])
    model = create_surrogate(ndim=3, in_channels=6, dim=24, depth=1, heads=2, tokenizer="uniform")
    assert model(randn(1, 6, 16, 16, 16)).isfinite().all()


def test_a_wrong_count_is_found(tmp_path):
    about = {"claim": "c", "source": "s", "scales": {"full": {"runs": {"vit": []}}}}
    about["scales"]["full"]["runs"]["vit"] = [
        "data=well",
        "data.name=turbulent_radiative_layer_2D",
        "size=tiny",
        "tokenizer=uniform",
        "tokenizer.size=8",
    ]
    write(tmp_path, about, ["vit,,tokens,768,,,Table", "vit,,parameters,1000,0.5,,Table"])
    lines, wrong = dry().dry_run(read("x", tmp_path))
    assert "tokens as built: 768" in lines[0]
    assert len(wrong) == 1
    assert wrong[0].startswith("vit parameters: ")
    assert wrong[0].endswith(" in place of 1000 within 0.5")


def write(base: Path, about: dict, rows: list[str]) -> None:
    folder = base / "x"
    folder.mkdir(exist_ok=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    (folder / "expected.csv").write_text("\n".join([HEAD, *rows]) + "\n")


RUNS = {"runs": {"a": [["one=1", ["two=2"]]]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clam": "x"}, "unknown clam"),
        ({"claim": ""}, "needs a claim"),
        ({"scales": {"tiny": RUNS}}, "unknown tiny"),
        ({"scales": {"full": RUNS | {"seed": 1}}}, "unknown seed"),
        ({"scales": {"full": {"runs": {"a": {"command": "tran"}}}}}, "command is one of"),
        ({"scales": {"full": {"runs": {"a": {"arguments": []}}}}}, "adaptok train has overrides"),
        ({"runs_of": "iap_tabel1"}, "no experiment 'iap_tabel1'"),
    ],
)
def test_what_an_experiment_cannot_say(tmp_path, change, message):
    write(tmp_path, {"claim": "c", "source": "s", **change}, [])
    with pytest.raises(ValueError, match=message):
        read("x", tmp_path)


def test_overrides_are_flattened_and_places_filled_in(tmp_path):
    scale = {"seeds": [0, 3], "common": ["c=1"], **RUNS}
    scale["runs"]["b"] = {"overrides": ["ckpt={out}/a/seed_0", "x={root}/y"], "like": "a"}
    write(tmp_path, {"claim": "c", "source": "s", "scales": {"small": scale}}, [])
    a, b = read("x", tmp_path).runs["small"]
    assert a.overrides == ("c=1", "one=1", "two=2")
    assert b.words(Path("o")) == ["c=1", "ckpt=o/x/small/a/seed_0", "x=o/y"]
    assert (b.like, b.seeds) == ("a", (0, 3))
    assert b.folder(Path("o"), 3) == Path("o/x/small/b/seed_3")


def test_commands(tmp_path):
    runs = {
        "model": ["data=[a,b]", "size=iap"],
        "tested": {"command": "eval", "overrides": ["ckpt={out}/model/seed_2"]},
        "speed": {"command": "bench", "arguments": ["step", "--batch", 2]},
        "own": {"command": "script", "arguments": ["fast"]},
    }
    scale = {"seeds": [2], "runs": runs}
    write(tmp_path, {"claim": "c", "source": "s", "scales": {"full": scale}}, [])
    found = read("x", tmp_path).runs["full"]
    more = ["data.base=/disk", "trainer.devices=2"]
    words = [reproduce.command_of(run, 2, tmp_path, more)[1:] for run in found]
    out = tmp_path / "x" / "full"
    assert words[0][:4] == ["-m", "adaptok", "train", "data=[a,b]"]
    assert words[0][-4:] == ["seed=2", f"hydra.run.dir='{out}/model/seed_2'", *more]
    assert words[1][2:4] == ["eval", f"ckpt={out}/model/seed_2"]
    assert words[1][-1] == "+data.base=/disk"
    assert words[2][1:] == ["benchmarks.step", f"{out}/speed/seed_2", "--batch", "2"]
    assert words[3][2:] == [f"{out}/own/seed_2", "2", "fast"]
    last = out / "model" / "seed_2" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert reproduce.command_of(found[0], 2, tmp_path, [])[-1] == f"resume='{last}'"
    for name in ("a", "b"):
        assert measured.finished(found[0], out / "model" / "seed_2") == []
        (out / "model" / "seed_2" / name).mkdir()
        (out / "model" / "seed_2" / name / "metrics.json").touch()
    assert len(measured.finished(found[0], out / "model" / "seed_2")) == 2


def row(run: str, value: float | None, persistence: float = 1.0) -> dict:
    about = {"scale": "small", "run": run, "setting": "", "seed": 0, "metric": "vrmse"}
    return {**about, "value": value, "persistence": persistence}


def test_no_verdict_without_beating_persistence(tmp_path):
    runs = {"full": {"runs": {"A": [], "B": []}}}
    runs["small"] = {"runs": {"a": {"like": "A"}, "b": {"like": "B"}}}
    about = {"claim": "c", "source": "s", "scales": runs, "compare": [["A", "B"]]}
    write(tmp_path, about, ["A,,vrmse,0.2,,,T", "B,,vrmse,0.4,,,T"])
    experiment = read("x", tmp_path)
    good = reproduce.verdicts(experiment, "small", [row("a", 0.3), row("b", 0.6)])
    assert good == ["a / b: 0.50, in the paper 0.50"]
    bad = reproduce.verdicts(experiment, "small", [row("a", 0.3), row("b", 1.2)])
    assert bad[0] == "does not beat persistence: b"
    assert bad[1].endswith("no verdict, see persistence")
    diverged = reproduce.verdicts(experiment, "small", [row("a", None), row("b", 0.6)])
    assert diverged == ["does not beat persistence: a", "a / b: no result"]
    missing = reproduce.verdicts(experiment, "small", [row("a", 0.3)])
    assert missing == ["a / b: no result"]


def test_the_table_shows_the_last_step_of_rollouts(tmp_path):
    about = {"claim": "c", "source": "s", "metrics": ["vrmse_step_*", "nrmse"]}
    about["scales"] = {"small": {"runs": {"a": {"like": "A"}}}, "full": {"runs": {"A": []}}}
    write(tmp_path, about, ["A,,nrmse,0.75,,,T"])
    steps = [{**row("a", 0.5), "metric": f"vrmse_step_{n}"} for n in (1, 2, 10)]
    more = {**row("a", 0.25), "metric": "nrmse", "persistence": ""}
    text = reproduce.report(read("x", tmp_path), "small", [*steps, more])
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    assert ["a", "", "vrmse_step_10", "1", "0.5", "1", ""] in cells
    assert ["a", "", "nrmse", "1", "0.25", "", "0.75"] in cells
    assert len(cells) == 4  # with header and rule


def test_rows_of_other_runs_stay(tmp_path):
    path = tmp_path / "results.csv"
    measured.write_rows([row("a", 0.5), row("b", 0.25)], path)
    measured.write_rows([row("b", 0.125)], path)
    found = [(r["run"], float(r["value"])) for r in measured.read_rows(path)]
    assert found == [("a", 0.5), ("b", 0.125)]


@pytest.mark.slow
def test_an_experiment_is_run_once_and_collected(tmp_path, monkeypatch, drawn):
    fork_in_place_of_run(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    budgets = "[{budget: 10}, {budget: 22}]"
    elastic = ["schedule=random", f"schedule.settings={budgets}", f"test.settings={budgets}"]
    scale = {"common": small_runs.train(), "runs": {"fixed": [], "elastic": elastic}}
    about = {"claim": "c", "source": "s", "scales": {"small": scale}}
    write(tmp_path, about, [])
    experiment, out = read("x", tmp_path), tmp_path / "out"
    fixed, other = experiment.runs["small"]
    for run in (fixed, other):
        assert reproduce.train(run, 0, out, ["trainer.enable_progress_bar=false"])
    results = other.folder(out, 0) / "metrics.json"
    before = results.read_text()
    results.unlink()  # as if the run had been interrupted during its test
    rows = reproduce.collect(experiment, "small", out)
    assert {r["run"] for r in rows} == {"fixed"}
    stamp = (fixed.folder(out, 0) / "metrics.json").stat().st_mtime
    for run in (fixed, other):
        assert reproduce.train(run, 0, out, ["trainer.enable_progress_bar=false"])
    assert (fixed.folder(out, 0) / "metrics.json").stat().st_mtime == stamp
    again = yaml.safe_load(results.read_text())
    assert again["settings"][0]["vrmse"] == yaml.safe_load(before)["settings"][0]["vrmse"]
    rows = reproduce.collect(experiment, "small", out)
    text = reproduce.report(experiment, "small", rows)
    assert "budget=22" in text
    assert {(r["run"], r["setting"]) for r in rows if r["metric"] == "vrmse_step_2"} == {
        ("fixed", ""),
        ("elastic", "budget=10"),
        ("elastic", "budget=22"),
    }
    from pictures import draw

    draw(experiment, "small", out, tmp_path)
    for name in ("learning_curves", "rollouts", "residual_spectra"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
