"""The study of long rollouts: rows, files, what is compared and its page, on made-up rows."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from math import prod

import pytest
from rollouts import pages, rows
from rollouts.lines import aim, changes, gathered
from rollouts.plan import estimate, priced
from rollouts.results import Results, fault
from rollouts.rows import FIRST, FURTHER, MODELS, PLAIN, SETS, STEPS, Row, all_rows
from rollouts.run import COMMAND

import adaptok
from adaptok.models.schedules import create_schedule

DAMPED = {"jitter": 0.5, "jitter, sums kept": 0.4}  # errors over those as trained


def row_of(label: str) -> Row:
    return next(row for row in all_rows() if row.label == label)


def training_of(row: Row, **changes):
    return {
        **{"label": row.label, "key": row.key, "steps": 400, "parameters": 1, "curve": [[1, 0.2]]},
        **{"persistence": {"vrmse": 0.3, "rollout": [0.3] * row.steps}, "seconds_total": 50.0},
    } | changes


def test_of(row: Row, variant: str, **changes):
    error = 0.1 * (1 + 0.1 * row.seed) * (0.8 if "iap" in row.name else 1) * DAMPED.get(variant, 1)
    bands = [[0.1, 0.2, 0.3]] * 3
    return {
        **{"variant": variant, "key": row.key_of(variant), "vrmse": error, "bands": bands},
        "setting": dict(row.variants()[variant].setting),
        "rollout": [error * step for step in range(1, row.steps + 1)],
        **{"windows": {"6:12": 9 * error, "13:30": 20 * error}, "harmonics": [2.0] * row.steps},
        **{"sums": {name: [1e-7] * 3 for name in SETS[row.data].conserved}, "seconds": 0.02},
        "seconds_beside": 0.01,
        **{"tokens": [float(SETS[row.data].tokens)] * row.steps, "flicker": None, "reused": None},
    } | changes


test_of.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def keep(results: Results, row: Row, *variants: str) -> None:
    results.keep(row, training_of(row))
    for variant in variants or row.variants():
        results.keep(row, test_of(row, variant))


def test_rows_are_named_once_and_the_decisive_ones_come_first():
    every = all_rows()
    assert len({row.label for row in every}) == len(every)
    waves = [row.wave for row in every]
    assert waves == sorted(waves)
    first = {(row.data, row.name) for row in every if row.wave == 1}
    assert first == {(data, name) for data in FIRST for name in MODELS}
    assert {row.name for row in every} == {*MODELS, *FURTHER}
    assert {row.data for row in every if row.name == "conservative"} == set(FIRST)
    assert all(next(iter(row.variants())) == PLAIN for row in every)


@pytest.mark.parametrize("label", ["euler-iap-0", "shear-iap_noise-1", "blast-iap-0"])
def test_budgets_over_time_are_equal_in_all(label):
    row = row_of(label)
    about = SETS[row.data]
    ramps = [one for name, one in row.variants().items() if name.startswith("budget ")]
    assert len(ramps) == (2 if row.name == "iap" else 0)
    space = (48, 96) if row.data == "shear" else (about.generate.get("resolution", 64),) * 2
    space = (32,) * 3 if about.ndim == 3 else space
    coarse = prod(n // rows.COARSEST for n in space)
    for one in ramps:
        schedule = create_schedule(one.setting)
        budgets = [schedule(step)["budget"] for step in range(row.steps)]
        assert sum(budgets) == about.tokens * row.steps
        assert all((n - coarse) % (2**about.ndim - 1) == 0 and n >= coarse for n in budgets)


@pytest.mark.parametrize("shape", [(64, 64), (48, 96)])
def test_cycles_of_patches_have_the_tokens_of_the_middle_size(shape):
    row = row_of("euler-csm-0" if shape[0] == 64 else "shear-csm-0")
    tokens = {}
    for name, one in row.variants().items():
        patches = [s["patch_size"] for s in one.setting.get("settings", ())]
        sides = [[p] * 2 if isinstance(p, int) else p for p in patches]
        tokens[name] = [prod(n // p for n, p in zip(shape, side, strict=True)) for side in sides]
    asked = SETS[row.data].tokens
    assert sum(tokens["cyclic, equal tokens"]) == asked * len(tokens["cyclic, equal tokens"])
    assert {*tokens["cyclic, turned"]} == {asked}
    assert len(tokens["cyclic, turned"]) == 3


def test_a_row_is_open_until_all_its_tests_are_there(tmp_path):
    results, row = Results(tmp_path), row_of("maze-uniform-0")
    names = list(row.variants())
    assert names == [PLAIN, "jitter", "reuse 0.1"]
    assert COMMAND.ready(row, results)
    keep(results, row, *names[:2])
    assert COMMAND.ready(row, results)
    assert row.label not in results.read().done
    results.keep(row, test_of(row, names[2]))
    assert not COMMAND.ready(row, results)
    assert list(results.read().done) == [row.label]
    lines = results.file(row).read_text().splitlines()
    assert [json.loads(line).get("variant") for line in lines] == [None, *names]
    torn = results.file(row).read_text()[:-40]
    results.file(row).write_text(torn)
    assert COMMAND.ready(row, results)
    assert results.read().bad == {row.label: "a damaged line"}
    results.keep(row, test_of(row, names[2]))  # and now it is whole
    assert not results.read().bad


def test_lines_of_another_definition_are_named_and_left_out(tmp_path):
    results, row = Results(tmp_path), row_of("maze-iap-0")
    whole = test_of(row, "jitter")
    assert fault(whole, row) == ""
    assert fault(training_of(row), row) == ""
    assert "another definition" in fault({**whole, "key": "x"}, row)
    assert "another definition" in fault(training_of(row, key="x"), row)
    assert "none of this row" in fault({**whole, "variant": "cyclic 8, 4, 16"}, row)
    assert "without a finite vrmse" in fault({**whole, "vrmse": None}, row)
    assert "without sums" in fault({k: v for k, v in whole.items() if k != "sums"}, row)
    assert "damaged" in fault([1], row)
    keep(results, row, PLAIN)
    results.keep(row, test_of(row, "jitter"))
    text = results.file(row).read_text().replace(row.key_of("jitter"), "another")
    results.file(row).write_text(text)
    assert set(results.content(row).tests) == {PLAIN}
    assert "another definition" in pages.left_out(gathered(results), results)


def test_prices_learn_from_the_ledger(tmp_path):
    results, row = Results(tmp_path), row_of("euler-iap-0")
    assert {one.row.label: one.seconds for one in priced(all_rows(), results)}[
        row.label
    ] == estimate(row)
    keep(results, row)
    results.spend(row, estimate(row), "interrupted")
    results.spend(row, estimate(row), "finished")
    found = {one.row.label: one for one in priced(all_rows(), results)}
    assert found[row.label].done
    other = row_of("euler-iap_unroll-0")
    assert found[other.label].seconds == pytest.approx(2 * estimate(other), rel=1e-2)
    assert found["maze-iap-0"].seconds == estimate(row_of("maze-iap-0"))
    with (tmp_path / "ledger.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert "does not fit" not in COMMAND.plan(all_rows(), results, True)


def test_changes_and_the_aim_follow_from_the_tests(tmp_path):
    results = Results(tmp_path)
    for label in ("euler-uniform-0", "euler-iap-0", "euler-iap-1", "euler-iap_noise-0"):
        keep(results, row_of(label))
    csm = row_of("euler-csm-0")  # better, but not at equal tokens
    results.keep(csm, training_of(csm))
    free = test_of(csm, "cyclic 8, 4, 16", rollout=[1e-3] * STEPS, tokens=[112.0] * STEPS)
    results.keep(csm, free)
    lost = row_of("euler-coarse_fine-0")
    results.keep(lost, training_of(lost))
    results.keep(lost, test_of(lost, PLAIN, vrmse=0.31))
    found = gathered(results)
    assert found.behind == ["euler-coarse_fine-0 (as trained)"]
    assert "euler-iap (2)" in found.missing
    assert any(one.startswith("euler-csm (0: as trained, jitter, ") for one in found.missing)
    ratios = {(c.what, c.model, len(c.line.tests)): c.ratio() for c in changes(found)}
    assert ratios["jitter", "iap", 2] == pytest.approx(0.5)
    assert ratios["training: noise", "iap", 1] == pytest.approx(1.0)
    assert ratios["jitter, sums kept", "uniform", 1] == pytest.approx(0.4)
    took = {(c.what, c.model): c.seconds() for c in changes(found)}
    assert took["jitter", "iap"] == pytest.approx(2)
    assert took["training: noise", "iap"] is None
    one = aim(found, "euler")
    assert one is not None
    assert (one.today.name, one.today.variant) == ("iap", PLAIN)
    assert one.best.variant == "jitter, sums kept"
    # of the seed that both models of today have: the other one of IAP has no part in it
    assert one.ratio == pytest.approx(0.4)
    assert aim(found, "maze") is None
    test = test_of(row_of("euler-iap-1"), "jitter")
    results.keep(row_of("euler-iap-1"), {**test, "rollout": [0.1] * 20 + [None] * 44})
    line = gathered(results).lines["euler", "iap", "jitter"]
    assert line.error(20) is not None
    assert line.error() is None
    assert next(c for c in changes(gathered(results)) if c.line == line).ratio() is None


def test_tables_and_picture_go_into_the_page(tmp_path):
    results, docs = Results(tmp_path / "results"), tmp_path / "docs"
    docs.mkdir()
    (docs / pages.ROWS).write_text("<!-- rows -->\n<!-- /rows -->\n")
    (docs / pages.PAGE).write_text("before\n\n<!-- rows -->\nold\n<!-- /rows -->\n\nafter\n")
    for label in ("euler-uniform-0", "euler-iap-0", "blast-iap-0"):
        keep(results, row_of(label))
    held = row_of("euler-priced-0")
    keep(results, held, PLAIN)
    results.keep(held, test_of(held, "64 tokens held", tokens=[66.0] * 29 + [90.0]))
    said = pages.write(results, docs)
    text = (docs / pages.PAGE).read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "0.40 |" in text
    assert "yes" in text
    every = (docs / pages.ROWS).read_text()
    assert "+4.4 %" in every  # (29 * 66 + 90) / 30 / 64
    assert "41 %" in every  # 90 / 64
    assert "euler-csm (0; 1; 2)" in said
    assert (docs / "images" / pages.PICTURE).is_file()
    assert pages.write(Results(tmp_path / "none"), docs).count("Missing") == 1


@pytest.fixture
def tiny(monkeypatch):
    few = {"train": 2, "valid": 1, "test": 1, "resolution": 64, "frames": 26}
    monkeypatch.setitem(rows.SETS, "euler", replace(SETS["euler"], generate=few, batch=2))
    monkeypatch.setattr(rows, "STEPS", 24)
    monkeypatch.setattr(rows, "FEWER_STEPS", 24)
    monkeypatch.setattr(rows, "TRAINED", 4)


@pytest.mark.slow
def test_rows_can_be_built_and_have_their_settings(tmp_path, tiny):
    from trainings import configured  # with lightning

    from adaptok.evaluation.evaluate import check_settings

    for name in (*MODELS, *FURTHER):
        row = Row("euler", name, 0, 1)
        _, data, model = configured(row, tmp_path, row.steps)
        settings = [one.setting for one in row.variants().values()]
        assert len(check_settings(model, data, settings)) == len(settings)
        decoder = type(model.decoder).__name__
        assert (decoder == "ConservativeDecoder") == (name == "conservative")
        assert (decoder == "RefineDecoder") == name.startswith("coarse_fine")


@pytest.mark.slow
def test_variants_share_weights_that_are_trained_once(tmp_path, tiny, monkeypatch):
    from rollouts import train

    row = row_of("euler-uniform-0")
    results, work = Results(tmp_path / "results"), tmp_path / "work"
    own, tests = train.tested, []

    def stopped(*given):
        tests.append(given[2])
        if len(tests) == 3:
            raise KeyboardInterrupt
        return own(*given)

    monkeypatch.setattr(train, "REPEATS", 1)
    monkeypatch.setattr(train, "tested", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.main(row.label, results.folder, work)
    assert list(results.content(row).tests) == [PLAIN, "jitter"]
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("it trained again"))
    train.main(row.label, results.folder, work)
    content = results.content(row)
    assert content.complete(row)
    assert not content.bad
    plain, kept = content.tests[PLAIN], content.tests["sums kept"]
    assert plain["vrmse"] == pytest.approx(kept["vrmse"], rel=0.05)
    assert max(kept["sums"]["density"]) < 1e-6 < max(plain["sums"]["density"])
    assert content.tests["reuse 0.1"]["reused"] > 0
    assert plain["tokens"] == [64.0] * 24
    assert len(plain["bands"]) == len(plain["spectrum"]) == 3
    assert adaptok.__version__ in json.dumps(content.training)
