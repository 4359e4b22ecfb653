"""Folders of the user's own YAML files: ``--config-dir``."""

from __future__ import annotations

import pytest

from adaptok.cli import flags_first, main

MALFORMED = {
    "not closed": "a: [",
    "a list": "- 1\n- 2",
    "text": "just text",
    "a tab": "a:\tb: c",
    "a key twice": "name: iap\nname: apt",
    "itself": "&a [*a]",
    "a tag": "name: !!python/object:os.system x",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_named_and_only_those_who_choose_it_fail(text, tmp_path, capsys):
    (tmp_path / "tokenizer").mkdir()
    file = tmp_path / "tokenizer" / "mine.yaml"
    file.write_text(text)
    command = ["tokenize", "--cfg", "job", f"--config-dir={tmp_path}"]
    assert main([*command, "tokenizer=uniform"]) == 0
    said = capsys.readouterr()
    assert "name: uniform" in said.out
    if text != MALFORMED["a key twice"]:  # PyYAML takes the last one
        assert f"left out {file}" in said.err
    run = ["tokenize", f"--config-dir={tmp_path}", "tokenizer=mine", f"hydra.run.dir={tmp_path}/x"]
    assert main(run) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2


def test_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    assert main(["tokenize", f"--config-dir={tmp_path}/no"]) == 2
    assert f"no folder {tmp_path}/no" in capsys.readouterr().err


@pytest.fixture
def own(tmp_path) -> str:
    """The flag of a folder with a tokenizer, a size and a preset of several data sets."""
    sets = "# @package _global_\ndefaults:\n  - override /data: [shear_flow, active_matter]\n"
    texts = {"tokenizer": "defaults: [iap]\n", "size": "defaults: [tiny]\ndim: 36\n"}
    for group, text in {**texts, "experiment": sets}.items():
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / "mine.yaml").write_text(text)
    return f"--config-dir={tmp_path / 'own'}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokenizer=mine", "tokenizer.bugdet=3"], "(did you mean 'tokenizer.budget'?)"),
        (["experiment=mine"], "a list of data sets is for task=pretrain"),
        (["experiment=mine", "task=pretrain"], "a preset cannot choose several data sets"),
    ],
)
def test_mistakes_with_own_files_are_one_line(own, words, message, tmp_path, capsys):
    assert main(["train", own, *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err


def test_the_demo_finds_own_files(own, tmp_path, monkeypatch):
    seen = []

    def fit(config, folder):
        seen.append(config["size"]["dim"])
        raise ValueError("enough")

    monkeypatch.setattr("adaptok.cli.commands.fit_and_test", fit)
    assert main(["demo", own, "size=mine", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert seen == [36]


@pytest.mark.parametrize(
    "args",
    [
        ["--config-dir=a=b", "x=1", "-m", "y=2"],
        ["x=1", "--config-dir", "a=b", "-m", "y=2"],
        ["-m", "x=1", "--config-dir=a=b", "y=2"],
    ],
)
def test_overrides_may_stand_before_and_behind_flags(args):
    found = flags_first(args)
    assert sorted(found) == sorted(args)
    assert found[-2:] == ["x=1", "y=2"]
