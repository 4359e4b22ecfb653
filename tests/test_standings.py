"""Rows of the benchmark: what is no row, what is never merged, and who is ahead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_rows import made_up
from hypothesis import given
from hypothesis import strategies as st

from adaptok.cli import main
from adaptok.evaluation.standings import (
    MANDATORY,
    SCHEMA,
    anchors,
    key_of,
    missing,
    read_rows,
    row_of,
    short_commit,
    standings,
    write_row,
)
from adaptok.evaluation.standings.row import KEYS, digest_of
from adaptok.report.leaderboard import markdown


def forged(**changes):
    """The content of a row with changes, and a digest that fits them."""
    content = made_up().to_json() | changes
    return content | {"digest": digest_of(content)}


def test_a_row_comes_back_as_it_was(tmp_path):
    row = made_up()
    path = write_row(row, tmp_path)
    assert path.name == "T1-maze_64-iap-tokens64-0.json"
    assert read_rows(tmp_path).rows == {path.name: row}


@pytest.mark.parametrize("name", [*KEYS, "digest"])
def test_every_key_is_required(name):
    content = made_up().to_json()
    del content[name]
    with pytest.raises(ValueError, match=f"missing keys: {name}"):
        row_of(content)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "a|b"}, "method is at most 80 letters"),
        ({"method": "a\nb"}, "method is at most 80 letters"),
        ({"set": "<script>"}, "set is at most 80 letters"),
        ({"set": "x" * 81}, "set is at most 80 letters"),
        ({"commit": "`rm`"}, "commit is at most 80 letters"),
        ({"hardware": "cpu\n| x |"}, "hardware is one line"),
        ({"track": "T9"}, "track is 'T9', not one of T0, T1, T2"),
        ({"method": ""}, "set and method are names"),
        ({"budget": {"kind": "luck", "value": 1}}, "budget has kind"),
        ({"budget": {"kind": "tokens", "value": -1}}, "budget.value is above 0"),
        ({"budget": {"kind": "none", "value": 64}}, "budget.value must be null for kind none, and"),
        ({"budget": {"kind": "tokens", "value": None}}, "budget.value must be null for kind none"),
        ({"seed": "0"}, "seed is '0', not int or null"),
        ({"seed": True}, "seed is True"),
        ({"seed": -1}, "seed is a finite number of at least 0"),
        ({"measured": 1}, "measured is 1, not bool"),
        ({"commit": ""}, "measured, but without commit"),
        ({"versions": {}}, "without versions.adaptok"),
        ({"when": "yesterday"}, "when is a time of ISO 8601 with its zone"),
        ({"when": "2026-01-01T00:00:00"}, "when is a time of ISO 8601 with its zone"),
        ({"when": "0001-01-01T00:00:00+10:00"}, "when is a time of ISO 8601 with its zone"),
        ({"when": "9000-01-01T00:00:00+00:00"}, "when is in the future"),
        ({"measured": False}, "not measured and without a source"),
        ({"metrics": {"vrmse": 0.1}}, "metrics without worst_decile, persistence"),
        ({"metrics": {"vrmse": -1.0, "worst_decile": 1.0, "persistence": 1.0}}, "vrmse is a"),
        ({"metrics": {"vrmse": 0.9, "worst_decile": 0.1, "persistence": 1.0}}, "better than"),
        *(
            ({"metrics": made_up().metrics | {name: value}}, reason)
            for name, value, reason in (
                ("tokens", 1, "mean nothing else in a row, got 'tokens'"),
                ("training", 1e-9, "mean nothing else in a row, got 'training'"),
                ("6:12", 0.0, "mean nothing else in a row, got '6:12'"),
                ("more", "x", "metrics.more is a finite number of at least 0"),
                ("more", 1e308, "and at most 1e.100 or null, got 1e.308"),
            )
        ),
        ({"parameters": -1}, "parameters is a finite number of at least 0"),
        ({"memory": -1}, "memory is a finite number of at least 0"),
        ({"seconds": {"x": 1}}, "seconds are training, inference, cells, got 'x'"),
        ({"seconds": {"training": 1e308}}, "seconds.training is a finite number above 0 and at"),
        ({"seconds": {"training": 0}}, "seconds.training is a finite number above 0"),
        ({"rollout": {"first": 1}}, "rollout has first, errors and windows"),
        ({"rollout": {"first": 0, "errors": [], "windows": {}}}, "rollout.first is the index"),
        ({"rollout": {"first": 1, "errors": [0.1], "windows": {"0:2": 0.1}}}, "not a range within"),
        *(
            ({"rollout": {"first": 1, "errors": [value] * 2, "windows": {}}}, "an error of the")
            for value in (-0.1, 1.7e308, 10**308, "x")
        ),
        (
            {"rollout": {"first": 1, "errors": [0.1, 0.3], "windows": {"0:2": 0.1}}},
            "the window 0:2 is 0.1, the mean of its errors 0.2",
        ),
        ({"config": {"method": "another"}}, "is not that of its config"),
        *(
            ({"config": config, "key": key_of(config)}, reason)
            for config, reason in (
                ({"method": "apt"}, "method is 'apt' in config and 'iap' beside it"),
                ({"set": "digits"}, "set is 'digits' in config and 'maze_64' beside it"),
                ({"seed": 7}, "seed is 7 in config and 0 beside it"),
                ({"words": ["seed=7"]}, "seed is 0, but config.words has 'seed=7'"),
            )
        ),
        ({"more": 1}, "unknown key 'more'"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_with_the_reason(changes, reason):
    with pytest.raises(ValueError, match=reason):
        row_of(forged(**changes))


def test_numbers_that_were_changed_afterwards_are_refused():
    content = made_up().to_json()
    content["metrics"] = {**content["metrics"], "vrmse": 0.1}
    with pytest.raises(ValueError, match="changed after it was written"):
        row_of(content)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_whatever_else_a_file_holds_is_refused_in_words(content):
    with pytest.raises(ValueError, match="a row is an object"):
        row_of(content)


def test_a_bad_row_is_named_and_the_good_ones_stay(tmp_path, capsys):
    write_row(made_up(), tmp_path)
    (tmp_path / "cut.json").write_text('{"schema": 1,')
    (tmp_path / "nan.json").write_text(json.dumps(forged(tokens=float("nan"))))
    other = made_up(seed=1).to_json() | {"schema": SCHEMA + 1}
    (tmp_path / "huge.json").write_text(json.dumps(forged(tokens=10**400)))
    (tmp_path / "half.json").write_text(json.dumps(forged(method="a\ud800b")))
    (tmp_path / "newer.json").write_text(json.dumps(other))
    long = made_up().to_json() | {"schema": 10**4000}
    (tmp_path / "long.json").write_text(json.dumps(long))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    found = read_rows(tmp_path)
    assert [*found.rows] == ["T1-maze_64-iap-tokens64-0.json"]
    bad = ("cut", "nan", "long", "deep", "huge", "half")
    assert {*found.bad} == {f"{name}.json" for name in bad}
    assert len(found.bad["long.json"]) < 200
    assert "NaN is no number" in found.bad["nan.json"]
    assert found.others["newer.json"]["schema"] == SCHEMA + 1
    page = tmp_path / "page.html"
    assert main(["leaderboard", str(tmp_path), f"out={page}"]) == 1
    said = capsys.readouterr()
    assert "1 rows;" in said.out
    assert "left out" in said.err
    assert "newer.json has schema 2: listed apart" in said.err
    text = page.read_text()
    assert "cut.json" in text
    assert "newer.json: schema 2" in text
    for name in (*found.bad, "newer.json"):
        (tmp_path / name).unlink()
    assert main(["leaderboard", str(tmp_path), f"out={page}"]) == 0


def test_means_over_seeds_never_mix_commits_machines_or_configurations():
    rows = [made_up(seed=seed, metrics={"vrmse": 0.1 * (seed + 1)}) for seed in range(3)]
    (one,) = standings(rows)
    assert one.score == pytest.approx(0.2)
    assert one.spread == pytest.approx(0.1)
    assert one.marks == ()
    other = {"seed": 0, "config": {"method": "iap", "seed": 0, "steps": 7}}
    later = made_up(commit="def5678", when="2026-12-01T00:00:00+00:00", seed=0)
    more = [later, made_up(hardware="another"), made_up(**other)]
    assert len(standings([*rows, *more])) == 4
    marks = {one.first.commit: one.marks for one in standings([*rows, later])}
    assert marks["abc1234"] == ()
    assert marks["def5678"] == ("1 of 3 seeds", "commit def5678, others abc1234")
    marks = {one.first.commit: one.marks for one in standings([later, rows[0]])}
    assert marks["def5678"] == ("1 of 3 seeds",)  # as many: the newest is usual


def test_what_differs_from_most_rows_is_marked():
    rows = [made_up(seed=seed) for seed in range(3)]
    config = {"method": "iap", "seed": 0, "steps": 7}
    torch = made_up().versions | {"torch": "2.9.0"}
    for changes, mark in (
        ({"hardware": "another"}, "another machine"),
        ({"config": config}, "another configuration"),
        ({"versions": torch}, "torch 2.9.0, others 2.10.0"),
    ):
        odd = made_up(when="2026-11-02T00:00:00+00:00", **changes)
        marks = {len(one.rows): one.marks for one in standings([odd, *rows])}
        assert marks == {3: (), 1: ("1 of 3 seeds", mark)}


def test_versions_of_the_package_tell_apart_what_no_commit_does():
    later = made_up().versions | {"adaptok": "0.2.0"}
    for commit, count in (("unknown", 2), ("79ef4c0e1b", 1)):
        rows = [made_up(seed=seed, commit=commit) for seed in range(2)]
        assert len(standings([*rows, made_up(seed=2, commit=commit, versions=later)])) == count


def test_a_commit_is_one_however_far_its_hash_is_shortened():
    whole = "79ef4c0e" + "1" * 32
    names = ["79ef4c0", "79ef4c0e", whole]
    (one,) = standings([made_up(seed=i, commit=name) for i, name in enumerate(names)])
    assert (one.commit, one.marks) == (whole, ())
    assert short_commit(whole) == "79ef4c0e11"
    assert short_commit(f"{whole}+") == "79ef4c0e11+"
    assert short_commit("version 0.1.0.dev12") == "version 0.1.0.dev12"
    for pair in (["79ef4c0", "79ef4c0e+"], ["version 0.1", "version 0.1.1"], ["abc", "abcdef0"]):
        rows = [made_up(seed=i, commit=name) for i, name in enumerate(pair)]
        assert len(standings(rows)) == 2
    names = ["79ef4c0", "79ef4c0e", "79ef4c0f"]  # which of the two is not known
    assert len(standings(made_up(seed=i, commit=name) for i, name in enumerate(names))) == 3


def test_marks_say_what_a_reader_has_to_know():
    def marks(**changes):
        (one,) = standings([made_up(**changes)])
        return one.marks

    assert "no seconds" in marks(seconds=None)
    assert "no seed" in marks(seed=None)
    assert "does not beat persistence" in marks(metrics={"vrmse": 0.6, "worst_decile": 0.7})
    assert "does not beat persistence" in marks(metrics={"vrmse": None, "worst_decile": None})
    assert "does not beat chance" in marks(track="T2", metrics={"error": 0.95})
    assert "1.50 times the tokens" in marks(tokens=96.0)
    twice = [made_up(), made_up(tokens=65.0)]
    apart = standings([*twice, made_up(seed=1), made_up(seed=2)])
    assert sorted(len(one.rows) for one in apart) == [1, 1, 2]
    assert sum("a seed more than once" in one.marks for one in apart) == 2
    (one,) = standings([made_up(), made_up()])
    assert (len(one.rows), one.marks) == (1, ("1 of 3 seeds",))
    rows = [made_up(seed=seed, seconds={"training": 1.0} if seed else None) for seed in range(3)]
    (one,) = standings(rows)
    assert one.cost("training") is None
    assert one.marks == ("all seconds in 2 of 3 rows",)


def test_those_that_count_come_first_and_quoted_ones_last():
    worse = made_up(method="weak", metrics={"vrmse": 0.6, "worst_decile": 0.7})
    quoted = made_up(method="paper", measured=False, source="a paper", metrics={"vrmse": 0.01})
    good = made_up(method="good", metrics={"vrmse": 0.4, "worst_decile": 0.5})
    order = [one.first.method for one in standings([quoted, worse, good, made_up()])]
    assert order == ["iap", "good", "weak", "paper"]


def test_mandatory_rows_that_were_not_measured_are_listed():
    rows = [made_up(method=method) for method in MANDATORY["T1"] if method != "oracle"]
    assert missing(rows) == [("T1", "maze_64", "oracle")]
    assert missing(anchors()) == []


def test_anchors_are_rows_that_nobody_measured_here():
    rows = anchors()
    assert len({(row.set, row.method, row.source) for row in rows}) == len(rows) > 20
    for row in rows:
        assert row_of(row.to_json()) == row
        assert not row.measured
        assert row.source
    for one in standings(rows):
        assert one.marks[0] == "published, not measured here"
    iap = next(row for row in rows if (row.set, row.method) == ("supernova_explosion_64", "IAP"))
    assert (iap.score, iap.tokens) == (0.1794, 4096)


def test_the_rows_of_the_project_are_read_and_the_page_shows_them():
    root = Path(__file__).parents[1]
    found = read_rows(root / "experiments" / "bench" / "results")
    assert len(found.rows) >= 228
    assert not found.bad
    assert not found.others
    page = root / "docs" / "benchmarks" / "leaderboard.md"
    assert page.read_text() == markdown(found)


def test_words_of_the_command(tmp_path, capsys):
    assert main(["leaderboard", str(tmp_path)]) == 2
    assert "adaptok leaderboard FOLDER... out=FILE" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path / "absent"), "out=x.html"]) == 2
    assert "no folder" in capsys.readouterr().err
