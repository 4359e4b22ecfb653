"""The page about own data: each section goes from arrays to a trained model and pictures."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import small_runs

pytest.importorskip("lightning")
pytest.importorskip("the_well")

from adaptok.cli import main
from adaptok.cli.own_data import STEPS
from adaptok.config.menu import compose
from adaptok.data import WellData, from_arrays

PAGE = Path(__file__).parents[1] / "docs" / "own-data.md"
SHORT = [*small_runs.SIZE, "trainer=debug", "optim.warmup_steps=1"]
GIVEN = ["out=own/a", "axes=trajectory,time,x", "boundary=wall"]
LEARNS = [
    "size=tiny",
    "processor.depth=2",
    "optim=cosine",
    "optim.lr=2e-3",
    "optim.warmup_steps=20",
]
LEARNS += ["trainer.max_steps=120", "trainer.val_check_interval=120"]


def sections() -> dict[str, str]:
    """The text of each section with commands, by heading."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(), flags=re.MULTILINE)
    return {k: text for k, text in zip(parts[1::2], parts[2::2], strict=True) if "```bash" in text}


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(section: str) -> list[list[str]]:
    found = [shlex.split(line) for text in fenced(section, "bash") for line in text.splitlines()]
    assert all(words[0] == "adaptok" for words in found)
    return [words[1:] for words in found]


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """An empty working folder with the arrays of the page."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for section in sections().values():
        for block in fenced(section, "python"):
            exec(block, namespace)
    return tmp_path


@pytest.mark.parametrize("name", sections())
def test_the_commands_that_make_sets_work_as_typed(arrays, capsys, name):
    section = sections()[name]
    made = [words for words in commands(section) if words[:2] == ["data", "from-arrays"]]
    assert len(made) == 1
    assert main(made[0]) == 0
    out = capsys.readouterr().out
    folder = made[0][3].removeprefix("out=")
    assert f"next: adaptok train data=well data.path={folder} size=tiny" in out
    assert main(["data", "check", folder]) == 0
    kinds = {"own/room": (45, 70), "own/burgers": (128,), "own/flow": (16, 12, 8)}
    kinds |= {"own/long": (45, 70)}
    info = WellData(path=folder).info
    assert info.shape == kinds.get(folder, (16, 16))
    assert info.name == folder.removeprefix("own/")


@pytest.mark.parametrize(("frames", "more"), [(9, ""), (8, " test.steps=7"), (2, " test.steps=1")])
def test_rollouts_are_no_longer_than_the_trajectories(tmp_path, capsys, frames, more):
    np.savez(tmp_path / "a.npz", u=np.random.default_rng(0).random((10, frames, 32)))
    words = ["axes=trajectory,time,x", "boundary=wall", f"out={tmp_path / 'own'}"]
    assert main(["data", "from-arrays", str(tmp_path / "a.npz"), *words]) == 0
    assert capsys.readouterr().out.endswith(f" size=tiny trainer.max_steps=450{more}\n")
    assert compose("train", []).test.steps == STEPS


def test_the_next_command_can_be_typed_for_any_folder(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", u=np.random.default_rng(0).random((10, 3, 32)))
    folder = tmp_path / "my sets, 1"
    words = ["axes=trajectory,time,x", "boundary=wall", f"out={folder}"]
    assert main(["data", "from-arrays", str(tmp_path / "a.npz"), *words]) == 0
    typed = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert compose("train", typed[2:]).data.path == str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [k for k, text in sections().items() if "adaptok train" in text])
def test_every_section_ends_in_a_model_and_its_pictures(arrays, capsys, name):
    """The commands as they stand, but for the length of the training and the size of the model."""
    for words in commands(sections()[name]):
        kind = words[0]
        if kind in ("train", "tokenize"):
            words += [f"hydra.run.dir={arrays / 'out' / kind}"]
        if kind == "train":
            words = [word for word in words if not word.startswith(("size=", "trainer."))]
            words += LEARNS if "steady" in name else [*SHORT, "test.steps=2"]
        assert main(words) == 0, capsys.readouterr().err
        if (picture := words[-1]).startswith("picture="):
            assert (arrays / picture.removeprefix("picture=")).is_file()
    run = arrays / "out" / "train"
    assert [*(run / "pictures").glob("*.png")]
    assert (run / "model" / "model.safetensors").is_file()
    metrics = json.loads((run / "metrics.json").read_text())
    if "steady" in name:
        error, mean_field = metrics["settings"][0]["vrmse"], metrics["persistence"]["vrmse"]
        assert error["mean"] < 0.6 * mean_field["mean"]


@pytest.mark.slow
def test_a_name_is_the_name_of_the_folder_everywhere(arrays, capsys, monkeypatch):
    """Also if it is the working folder."""
    import numpy as np

    axes = ["trajectory", "time", "channel", "x"]
    from_arrays(np.load("burgers.npy"), "own/line", axes=axes, boundary="periodic")
    monkeypatch.chdir(arrays / "own" / "line")
    words = ["train", "data=well", "data.path=.", "tokenizer=iap", "tokenizer.budget=32"]
    words += [*SHORT, "test.steps=2"]
    assert main([*words, f"hydra.run.dir={arrays / 'run'}"]) == 0
    assert "# line, test split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["from-arrays"], "one path is needed, got none: adaptok data from-arrays FILE out=FOLDER"),
        (["from-arrays", "a.npy", "b.npy"], "one path is needed, got a.npy b.npy"),
        (["from-arrays", "a.npy", "axs=x"], "unknown key 'axs' (did you mean 'axes'?); valid: out"),
        (["from-arrays", "a.npy", "out=own/a"], "axes=... must be given"),
        (["from-arrays", "a.npy", *GIVEN, "dt=fast"], "dt must be made of numbers, got 'fast'"),
        (["from-arrays", "a.npy", *GIVEN, "dt=-1"], "dt must be"),
        (["from-arrays", "a.npy", *GIVEN, "seed=0.5"], "seed must be a whole number"),
        (["from-arrays", "a.npy", *GIVEN, "splits=8,0,1"], "splits"),
        (["from-arrays", "a.npy", *GIVEN, "overwrite=maybe"], "overwrite must be true or false"),
        (["from-arrays", "a.npy", *GIVEN], "no such file: a.npy"),
        (["from-arrays", "runs/seed=0/a.npy", *GIVEN], "no such file: runs/seed=0/a.npy"),
        (["from-arays", "a.npy"], "got 'data from-arays' (did you mean"),
        (["stats"], "one path is needed, got none: adaptok data stats FOLDER"),
        (["stats", "nowhere"], "no training files"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not [*tmp_path.iterdir()]
