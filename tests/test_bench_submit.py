"""Tokenizers of one's own in the benchmark: submitted, checked, refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from bench_rows import made_up

from adaptok.cli import main
from adaptok.cli.bench_submit import found_tokenizer
from adaptok.config.menu import compose, plain
from adaptok.evaluation.standings import read_rows, write_row
from adaptok.registry import TOKENIZERS
from adaptok.tasks.bench import t1
from adaptok.tasks.bench.own_code import code_of

PACKAGE = '''
import functools

import adaptok


def mine(ndim, in_channels, dim, *, budget=64, min_size=None, max_size=None):
    """Cells by variance."""
    return adaptok.TOKENIZERS.create(
        "composed", ndim, in_channels, dim, indicator="variance",
        marking={"name": "budget", "budget": budget}, min_size=min_size, max_size=max_size,
    )


def liar(ndim, in_channels, dim, *, budget=64):
    """Adds noise to its tokens."""
    made = adaptok.create_tokenizer("uniform", ndim=ndim, in_channels=in_channels, dim=dim, size=4)
    embed = made.embed

    def noisy(*given, **named):
        tokens = embed(*given, **named)
        return tokens.with_features(tokens.features * float("nan"))

    made.embed = noisy
    return made


def fno(ndim, in_channels, dim, *, budget=64):
    return adaptok.create_tokenizer("iap", ndim, in_channels, dim, budget=budget)


def flat(ndim, in_channels, dim, *, budget=64):
    if ndim == 3:
        raise NotImplementedError("images only")
    return mine(ndim, in_channels, dim, budget=budget)


def nothing(ndim, in_channels, dim): ...


number = 3
short = functools.partial(mine, min_size=4)
'''


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    TOKENIZERS.names()
    monkeypatch.setattr(TOKENIZERS, "_factories", {**TOKENIZERS._factories})


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder with a module beside which commands are typed."""
    name = f"bench_package_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(PACKAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    yield tmp_path / name
    sys.modules.pop(name, None)


def test_a_submission_is_checked_measured_and_shown(package, capsys):
    target = f"{package.name}:mine"
    words = ["bench", "submit", target, "--track", "T0", "--quick", "out=sub", "only=*maze*"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "mine: keeps the promises of a tokenizer in 2D and 3D" in said
    assert "attach sub/*.json and sub/leaderboard.html" in said
    rows = read_rows("sub").rows
    assert {row.method for row in rows.values()} == {"mine"}
    assert len(rows) == 1
    assert "mine" in Path("sub/leaderboard.html").read_text()
    assert main(words) == 0
    assert "0 of 1 rows to measure" in capsys.readouterr().out
    with package.with_suffix(".py").open("a") as file:
        file.write("\n# another day\n")
    assert main(words) == 0
    assert "1 of 1 rows to measure" in capsys.readouterr().out
    jobs = t1.jobs(True, ["mine"])  # now that it is registered
    assert {(job.method, job.kind) for job in jobs} == {("mine", "tokens")}
    assert plain(compose("train", jobs[0].config["words"]))["tokenizer"]["budget"] == 64


def test_submissions_that_are_refused(package, capsys):
    def refused(target: str, *more: str) -> str:
        assert main(["bench", "submit", target, *more]) == 2
        return capsys.readouterr().err

    track = ("--track", "T0")
    assert "say which track" in refused(f"{package.name}:mine")
    assert "give the tokenizer" in refused("out=x", *track)
    assert "cannot import absent_package:x" in refused("absent_package:x", *track)
    assert f"cannot import {package.name}:absent" in refused(f"{package.name}:absent", *track)
    assert "not a class or a function" in refused(f"{package.name}:number", *track)
    assert "unknown tokenizer 'nonsense'" in refused("nonsense", *track)
    assert "liar breaks a promise in 2D" in refused(f"{package.name}:liar", *track)
    said = refused(f"{package.name}:fno", *track)
    assert "'fno' is a reference of the benchmark: give your tokenizer another name" in said
    said = refused(f"{package.name}:flat", *track)
    assert "flat does not work in 3D: NotImplementedError: images only" in said
    assert "nothing does not work in 2D" in refused(f"{package.name}:nothing", *track)
    for number, code in enumerate(("raise SystemExit(0)", "1 / 0", "def (")):
        name = f"{package.name}_{number}"
        Path(f"{name}.py").write_text(code)
        assert f"cannot import {name}:x" in refused(f"{name}:x", *track)
    assert "T0 or T1" in refused(f"{package.name}:mine", "--track", "T2")
    assert not Path("submission").exists()


def test_rows_of_others_are_no_rows_of_a_submission(package, capsys, monkeypatch):
    """Each has a folder of its own, and what else lies there is not what was measured."""
    monkeypatch.setattr("adaptok.cli.bench_submit.check", lambda name: "")
    monkeypatch.setattr("adaptok.cli.bench_submit.measured", lambda asked, jobs: 1)
    folder = Path("submission/mine/T0")
    folder.mkdir(parents=True)
    write_row(made_up(), folder)
    assert main(["bench", "submit", f"{package.name}:mine", "--track", "T0"]) == 2
    assert "no row of mine was measured" in capsys.readouterr().err
    TOKENIZERS.register("mine@2")(TOKENIZERS.get("mine"))
    with pytest.raises(ValueError, match="'mine@2' cannot be used"):
        code_of("mine@2")


def test_registered_tokenizers_are_found_by_name_and_by_object():
    assert found_tokenizer("iap") == "iap"
    assert found_tokenizer("adaptok.tokenizers.iap:iap") == "iap"


def test_code_is_told_apart_by_all_files_of_its_package(tmp_path, monkeypatch):
    folder = tmp_path / "bench_code"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (folder / "__init__.py").write_text("from bench_code.inside import new\n")
    (folder / "inside.py").write_text("def new(ndim, in_channels, dim): ...\n")
    found_tokenizer("bench_code:new")
    first = code_of("new")
    assert first["code"] == "bench_code.inside:new"
    assert code_of("new") == first
    (folder / "beside.py").write_text("power = 2\n")
    assert code_of("new")["sha256"] != first["sha256"]
    assert code_of("iap") == {}
    sys.modules.pop("bench_code")


def test_arguments_that_a_partial_fixes_are_part_of_its_code(package):
    found_tokenizer(f"{package.name}:short")
    found_tokenizer(f"{package.name}:mine")
    assert code_of("short")["sha256"] != code_of("mine")["sha256"]
