"""The runner of the study of adaptivity: plan, resuming, claims and pages, on made-up rows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptivity import costs, pages, rows
from adaptivity.claims import CLAIMS, judged
from adaptivity.plan import WAVES, estimate, priced
from adaptivity.results import Results, fault
from adaptivity.rows import (
    LARGE,
    MAIN,
    Row,
    all_rows,
    candidates,
    coarse_fine,
    decided,
    helped,
    variants,
    winner,
)
from adaptivity.run import COMMAND
from studies import Command, FileLock, plan

import adaptok
from adaptok.evaluation.cost import cost_of

ERRORS = {"coarse_fine": 0.09, "uniform": 0.17, "uniform_help": 0.12}


def made_up(row: Row, **changes: Any) -> dict[str, Any]:
    """What the file of a finished row holds."""
    error = ERRORS.get(row.name, 0.13) * (1 + 0.01 * row.seed)
    return {
        **{"label": row.label, "key": row.key, "data": row.data, "name": row.name},
        **{"seed": row.seed, "model": {}, "vrmse": error, "worst": 2 * error, "tokens": 64.0},
        **{"flops": 6e7, "seconds": {"training": 0.1, "inference": 0.04}, "seconds_total": 50.0},
        "rollout": [error * step for step in range(1, 17)],
        "persistence": {"vrmse": 0.3, "rollout": [0.3] * 16},
        "curve": [[step, error * (1 + 1 / step)] for step in (50, 100, 150, 200, 250, 300)],
    } | changes


def keep(results: Results, row: Row, **changes: Any) -> None:
    study = results.read()
    known, _ = decided(row, study.done, results.widths())
    results.file(row).write_text(json.dumps(made_up(known or row, **changes)))


def row_of(label: str) -> Row:
    return next(row for row in all_rows() if row.label == label)


def test_rows_are_named_once_and_the_decisive_ones_come_first():
    rows = all_rows()
    assert len({row.label for row in rows}) == len(rows)
    waves = [row.wave for row in rows]
    assert waves == sorted(waves)
    first = {(row.data, row.name) for row in rows[:12]}
    assert {(data, "coarse_fine") for data in MAIN} <= first
    assert {row.name for row in rows if row.data in LARGE} == {
        *("coarse_fine", "coarse_fine_random", "uniform", "uniform_help")
    }
    names = {(row.data, row.name) for row in rows}
    for claim in CLAIMS:  # no misspelled name
        assert any({(d, claim.ahead), (d, claim.behind)} <= names for d in MAIN), claim


@pytest.mark.parametrize("data", ["maze", "blast"])
@pytest.mark.parametrize(
    "knobs",
    [{}, {"share": 1.0, "smooth": 0, "halo": 1, "dim": 64}, {"depth": 2, "stencil": (1, 3, 5)}],
)
def test_operations_in_closed_form_are_those_that_are_counted(data, knobs):
    about = replace(costs.SETS[data], points=16, tokens=8 if data == "blast" else 16, width=8)
    model = replace(coarse_fine(about), **knobs)
    overrides = {"size": about.patch(model.tokens), "halo": model.halo}
    built = adaptok.create_surrogate(
        ndim=about.ndim,
        in_channels=about.fields,
        constant_channels=about.constants,
        tokenizer={"name": "uniform", **overrides},
        processor={"name": "vit", "depth": about.depth, "heads": 2, "mlp_ratio": costs.MLP},
        decoder={"name": "refine", "width": 8, "share": model.share, "smooth": model.smooth}
        | {"depth": model.depth, "stencil": model.stencil},
        dim=model.dim,
    )
    space = (16,) * about.ndim
    field = torch.randn(1, 1, about.fields, *space)
    still = torch.randn(1, about.constants, *space) if about.constants else None
    cost = cost_of(built, lambda: built(field, constants=still))
    assert cost is not None
    assert cost.flops["total"] == costs.flops(model, about)


def test_help_without_adaptivity_has_the_operations_of_the_whole():
    for data in costs.SETS:
        about = costs.SETS[data]
        target = costs.flops(coarse_fine(about), about)
        for model in (candidates(data) if data in MAIN else {"": helped(about)}).values():
            assert model is not None
            assert costs.flops(model, about) == pytest.approx(target, rel=0.05)
            assert model.share == 1
        for model in (variants(data) if data in MAIN else {}).values():
            assert costs.flops(model, about) == pytest.approx(target, rel=0.05)
            assert model.share < 1


def test_the_plan_prices_rows_and_learns_from_finished_ones(tmp_path):
    results = Results(tmp_path)
    first = row_of("maze-coarse_fine-1")
    text = plan(priced(all_rows(), results.read()), 0.0, 12 * 3600, WAVES, full=True)
    assert f"{len(all_rows())} of {len(all_rows())} rows to run" in text
    assert "it fits" in text
    keep(results, first, seconds_total=3 * estimate(first))
    found = {one.row.label: one for one in priced(all_rows(), results.read())}
    assert found[first.label].done
    assert found["maze-uniform-0"].seconds == pytest.approx(3 * estimate(row_of("maze-uniform-0")))
    assert found["blast-uniform-0"].seconds == estimate(row_of("blast-uniform-0"))
    assert "does not fit" in plan(list(found.values()), 12 * 3600, 12 * 3600, WAVES, full=False)


def test_tuned_rows_wait_for_the_winner_on_the_validation_split(tmp_path):
    results = Results(tmp_path)
    tuned, seconds = row_of("euler-tuned-1"), row_of("euler-tuned_seconds-0")
    names = list(candidates("euler"))
    for name in names:
        assert decided(tuned, results.read().done, {}) == (None, "waits for the tuning")
        curve = [[300, 0.05 if name == names[2] else 0.1]]
        keep(results, row_of(f"euler-{name}-0"), curve=curve)
    study = results.read()
    assert winner("euler", study.done) == names[2]
    known, why = decided(tuned, study.done, {})
    assert known is not None
    assert (known.model, why) == (candidates("euler")[names[2]], "")
    longer, _ = decided(row_of("euler-tuned_long-1"), study.done, {})
    assert longer is not None
    assert (longer.model, longer.steps) == (known.model, 4 * known.steps)
    assert "equal seconds" in decided(seconds, study.done, {})[1]
    results.keep_width("euler", 17)
    known, _ = decided(seconds, study.done, results.widths())
    assert known is not None
    assert known.model is not None
    assert known.model.width == 17
    assert known.model.tokens == candidates("euler")[names[2]].tokens


def heed_ctrl_c() -> None:
    """SIGINT is ignored in what a shell runs behind itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def fake(work: Path, script: str, monkeypatch) -> None:
    """Replaces the process of a row by a script that gets the row's file and its content."""

    def start(_: Command, row: Row, folder: Path, __: Path) -> subprocess.Popen:
        file = Results(folder).file(row)
        words = [sys.executable, "-S", "-c", script, str(file), json.dumps(made_up(row))]
        own = {"start_new_session": True, "preexec_fn": heed_ctrl_c}
        return subprocess.Popen([*words, str(work / "calls"), row.label], **own)

    monkeypatch.setattr(Command, "start", start)


SLEEP = "import time; time.sleep(60)"
WRITE = (
    "import sys; open(sys.argv[3], 'a').write(sys.argv[4] + '\\n');"
    "fail = 'random' in sys.argv[4]; fail or open(sys.argv[1], 'w').write(sys.argv[2]);"
    "sys.exit(3 if fail else 0)"
)


def test_a_killed_study_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    results, work = Results(tmp_path / "results"), tmp_path / "work"
    fake(tmp_path, WRITE, monkeypatch)
    rows = COMMAND.chosen("maze_256-*-[01]")
    keep(results, rows[0])
    torn = results.file(rows[1])
    torn.write_text(json.dumps(made_up(rows[1]))[:100])  # by a full disk, say
    failed = COMMAND.run(rows, results, work, hours=1.0)
    random = [row.label for row in rows if "random" in row.name]
    assert failed == random
    called = (tmp_path / "calls").read_text().split()
    assert called == [row.label for row in rows[1:]]
    assert {*results.read().done} == {row.label for row in rows} - {*random}
    assert COMMAND.run(rows, results, work, hours=1.0) == random  # they alone are tried again
    assert (tmp_path / "calls").read_text().split() == [*called, *random]
    ledger = (results.folder / "ledger.csv").read_text()
    assert ledger.count("finished") == len(called) - len(random)
    assert ledger.count("failed with 3") == 2 * len(random)
    assert "core-hours in all" in capsys.readouterr().out


def test_the_end_of_the_hours_stops_a_row_and_keeps_it_open(tmp_path, monkeypatch):
    results = Results(tmp_path / "results")
    fake(tmp_path, SLEEP, monkeypatch)
    start = time.monotonic()
    assert (
        COMMAND.run(COMMAND.chosen("maze_256-*"), results, tmp_path / "work", hours=0.3 / 3600)
        == []
    )
    assert time.monotonic() - start < 20
    assert (results.folder / "ledger.csv").read_text().count("interrupted") == 1
    assert not results.read().done
    monkeypatch.setattr(Results, "spent", lambda self: 12 * 3600.0)  # nothing is left to spend
    monkeypatch.setattr(Command, "start", lambda *_: pytest.fail("a row began"))
    assert COMMAND.run(COMMAND.chosen("maze_256-*"), results, tmp_path / "work", hours=1.0) == []


def test_ctrl_c_stops_row_and_study(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    fake(tmp_path, SLEEP, monkeypatch)

    own, waits = subprocess.Popen.wait, []

    def wait(process: subprocess.Popen, timeout: float | None = None) -> int:
        waits.append(timeout)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return own(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    words = ["--rows", "maze_256-*", "--results", str(results), "--work", str(tmp_path / "work")]
    assert COMMAND.main(words) == 130
    assert len(waits) == 2  # no second row began
    assert "the same command resumes" in capsys.readouterr().err
    assert "interrupted" in (results / "ledger.csv").read_text()


def test_a_row_of_another_process_is_left_to_it(tmp_path, monkeypatch, capsys):
    results, work = Results(tmp_path / "results"), tmp_path / "work"
    monkeypatch.setattr(Command, "start", lambda *_: pytest.fail("a row ran twice"))
    work.mkdir()
    with FileLock(work / "maze_256-uniform-0.lock"):
        assert COMMAND.run(COMMAND.chosen("maze_256-uniform-0"), results, work, hours=1.0) == []
    assert "another process runs it" in capsys.readouterr().out


def test_bad_rows_are_named_and_left_out(tmp_path):
    results = Results(tmp_path)
    labels = [f"maze-{name}-{seed}" for name in ("coarse_fine", "uniform") for seed in (0, 1, 2)]
    wrong = [{"vrmse": None}, {"key": "other"}, {"curve": []}, {"flops": float("inf")}]
    for label, change in zip(labels, [*wrong, {}, {"seconds": None}], strict=True):
        keep(results, row_of(label), **change)
    results.file(row_of(labels[5])).write_text("[]")
    study = results.read()
    assert list(study.done) == ["maze-uniform-1"]
    assert study.bad["maze-coarse_fine-0"] == "without a finite vrmse"
    assert "another definition" in study.bad["maze-coarse_fine-1"]
    assert "learning curve" in study.bad["maze-coarse_fine-2"]
    assert "damaged" in study.bad["maze-uniform-2"]
    said = pages.left_out(study)
    assert all(label in said for label in labels if label != "maze-uniform-1")
    whole = made_up(row_of(labels[0]))
    assert fault(whole, row_of(labels[0])) == ""
    assert "vrmse" in fault({**whole, "vrmse": True}, row_of(labels[0]))
    assert "decide" in fault(whole, None)


def test_claims_compare_seed_by_seed():
    study = Results(Path("nowhere")).read()
    claim = next(one for one in CLAIMS if (one.ahead, one.behind) == ("coarse_fine", "uniform"))
    assert judged(claim, study, "maze") is None
    for seed, ratio in enumerate((0.5, 0.6, 0.7)):
        for name, error in (("coarse_fine", 0.1 * ratio), ("uniform", 0.1)):
            row = row_of(f"maze-{name}-{seed}")
            study.done[row.label] = made_up(row, vrmse=error, worst=error, rollout=[error] * 16)
    verdict = judged(claim, study, "maze")
    assert verdict is not None
    assert verdict.ratio == pytest.approx((0.5 * 0.6 * 0.7) ** (1 / 3))
    assert verdict.ratio == pytest.approx(verdict.worst) == pytest.approx(verdict.rollout)
    assert (verdict.seeds, verdict.said) == (3, "earned")
    last = study.done["maze-coarse_fine-2"]
    last |= {"vrmse": 0.12, "rollout": [*last["rollout"][:-1], None]}  # a diverged rollout
    verdict = judged(claim, study, "maze")
    assert verdict is not None
    assert (verdict.seeds, verdict.said, verdict.rollout) == (3, "level", None)
    last["vrmse"] = 0.5  # behind persistence
    verdict = judged(claim, study, "maze")
    assert verdict is not None
    assert (verdict.seeds, verdict.said) == (2, "earned")


def test_tables_claims_and_picture_go_into_the_pages(tmp_path):
    results, docs = Results(tmp_path / "results"), tmp_path / "docs"
    (docs / "methods").mkdir(parents=True)
    for name, part in ((pages.STUDY, "rows"), (pages.ROWS, "rows"), (pages.METHOD, "ablations")):
        (docs / name).write_text(f"before\n\n<!-- {part} -->\nold\n<!-- /{part} -->\n\nafter\n")
    for name in ("coarse_fine", "uniform", "coarse_fine_iap"):
        for seed in (0, 1):
            keep(results, row_of(f"maze-{name}-{seed}"))
    keep(results, row_of("maze-iap-0"), vrmse=0.4)
    said = pages.write(results, docs)
    text = (docs / pages.STUDY).read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "earned" in text
    every = (docs / pages.ROWS).read_text()
    assert "0.0905 ± 0.0006" in every
    assert "Behind persistence, not counted: maze-iap-0." in every
    assert "`iap`" not in text + every
    assert (docs / "images" / pages.PICTURE).is_file()
    table = (docs / pages.METHOD).read_text()
    assert "`coarse_fine_iap`" in table
    assert "1.444" in table
    assert "blast-coarse_fine (0, 1, 2)" in said
    assert "maze-uniform (2)" in said
    (docs / pages.STUDY).write_text("no place")
    with pytest.raises(ValueError, match="needs <!-- rows -->"):
        pages.write(results, docs)
    assert pages.front([(1, 3), (2, 4), (3, 2)]) == [(1, 3), (3, 2)]


def test_the_default_is_a_variant_of_the_study():
    studied = variants("maze")["coarse_fine_few_narrow_smoother"]
    tokenizer = adaptok.create_tokenizer("coarse_fine", ndim=2, in_channels=5, dim=96)
    decoder = tokenizer.spec.decoder
    assert (decoder["share"], decoder["smooth"]) == (studied.share, studied.smooth)
    assert decoder["indicator"] == studied.points
    assert tokenizer.size[0] == costs.SETS["maze"].patch(studied.tokens)
    assert decoder["width"] == pytest.approx(studied.width, rel=0.1)


def test_words_of_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit):
        COMMAND.main(["--rows", "nothing*"])
    assert "no row matches 'nothing*'" in capsys.readouterr().err
    assert COMMAND.main(["--plan", "--rows", "maze-*", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "decisive" in out
    assert "core-hours" in out


@pytest.fixture
def tiny(monkeypatch) -> Iterator[Callable[[str], costs.Set]]:
    """Replaces a set by one that trains in seconds."""

    def forget() -> None:
        rows.all_rows.cache_clear()
        rows.candidates.cache_clear()
        rows.variants.cache_clear()

    def replaced(data: str) -> costs.Set:
        more = {"nodes": 3, "pulses": 2} if data == "maze" else {}
        few = {"train": 2, "valid": 1, "test": 1, "frames": 18, "resolution": 16, **more}
        small = {"points": 16, "tokens": 64, "width": 8, "batch": 2, "depth": 1}
        monkeypatch.setitem(costs.SETS, data, replace(costs.SETS[data], generate=few, **small))
        monkeypatch.setitem(rows.MORE, data, 64)
        monkeypatch.setitem(rows.FEWER, data, 16 if data == "maze" else 8)
        forget()
        return costs.SETS[data]

    yield replaced
    forget()


@pytest.mark.slow
@pytest.mark.parametrize("data", ["maze", "blast"])
def test_rows_can_be_built(data, tmp_path, tiny):
    """All models, and one of three that are tuned, which differ in numbers alone."""
    from trainings import configured  # with lightning

    tiny(data)
    every = [(name, model) for _, name, model in rows.models(data) if model is not None]
    tuned = [*rows.candidates(data).items(), *rows.variants(data).items()]
    for name, model in [*every, *tuned[::3]]:
        row = Row(data, name, model, 0, 1)
        config, _, built = configured(row, tmp_path, 16)
        assert (type(built.decoder).__name__ == "RefineDecoder") == bool(model.width)
        assert (config["size"]["dim"], config["seed"]) == (model.dim, 0)


@pytest.mark.slow
def test_an_interrupted_row_ends_with_the_numbers_of_one_that_was_not(tmp_path, monkeypatch, tiny):
    from adaptivity import train

    from adaptok.training import SurrogateModule

    row = Row("maze", "tiny", replace(coarse_fine(tiny("maze")), dim=32), 0, 1, 12)
    whole = train.train(row, tmp_path / "whole")
    assert fault(whole, row) == ""
    assert whole["flops"] == whole["flops_expected"]
    assert [step for step, _ in whole["curve"]] == [2, 4, 6, 8, 10, 12]
    loss = SurrogateModule.loss

    def stopped(self, batch, step):
        if step == 7:
            raise KeyboardInterrupt
        return loss(self, batch, step)

    monkeypatch.setattr(SurrogateModule, "loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.train(row, tmp_path / "other")
    monkeypatch.setattr(SurrogateModule, "loss", loss)
    other = train.train(row, tmp_path / "other")
    assert [other[key] for key in ("vrmse", "worst", "rollout")] == [
        whole[key] for key in ("vrmse", "worst", "rollout")
    ]
    assert other["curve"] == whole["curve"]
