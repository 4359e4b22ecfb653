"""Folders of rows from strangers: what is left out and why, and pages that no row can break."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from bench_rows import made_up

from adaptok.cli import main
from adaptok.evaluation.standings import Folder, read_folders, read_rows, write_row
from adaptok.evaluation.standings.reading import LIMIT
from adaptok.report.leaderboard import markdown, write_leaderboard

NAME = "T1-maze_64-iap-tokens64-0.json"


def left_out(folder) -> dict[str, str]:
    """Reasons by name; the one good row has to be there."""
    found = read_rows(folder)
    assert [*found.rows] == [NAME]
    return found.bad


def test_only_regular_files_of_a_sensible_size_are_read(tmp_path):
    good = write_row(made_up(), tmp_path)
    (tmp_path / "long.json").write_text(good.read_text() + " " * LIMIT)
    (tmp_path / "folder.json").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        (tmp_path / "zero.json").symlink_to("/dev/zero")
        (tmp_path / "gone.json").symlink_to("nowhere")
    bad = left_out(tmp_path)
    assert bad.pop("long.json") == f"more than {LIMIT} bytes"
    assert {*bad.values()} == {"no regular file"}
    assert len(bad) in (1, 4)


def test_names_that_are_no_text_are_shown(tmp_path):
    write_row(made_up(), tmp_path)
    try:
        (tmp_path / os.fsdecode(b"\xff.json")).write_text("{}")
        (tmp_path / "a\nb.json").write_text("{}")
    except OSError:
        pytest.skip("names of files are text here")
    assert {*left_out(tmp_path)} == {"\\udcff.json", "a\\nb.json"}
    for page in (tmp_path / "page.html", tmp_path / "page.md"):
        assert main(["leaderboard", str(tmp_path), f"out={page}"]) == 1
        assert page.is_file()


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    text = write_row(made_up(), tmp_path).read_text()
    twice = text.replace('"vrmse": 0.2', '"vrmse": 0.001, "vrmse": 0.2')
    assert twice != text
    (tmp_path / "twice.json").write_text(twice)
    assert left_out(tmp_path) == {"twice.json": "key 'vrmse' more than once"}


def test_a_file_is_called_as_its_row(tmp_path):
    shutil.copy(write_row(made_up(), tmp_path), tmp_path / "copy.json")
    assert left_out(tmp_path) == {"copy.json": f"the file of this row is called {NAME}"}


def test_a_row_counts_once_and_two_that_differ_not_at_all(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        write_row(made_up(), folder)
    assert [*read_folders([a, b, a]).rows] == [f"{a}/{NAME}"]
    write_row(made_up(tokens=65.0), b)
    found = read_folders([a, b])
    assert not found.rows
    assert found.bad == {
        f"{a}/{NAME}": f"the same was measured with other numbers: {b}/{NAME}",
        f"{b}/{NAME}": f"the same was measured with other numbers: {a}/{NAME}",
    }
    write_row(made_up(commit="def5678"), b)
    assert len(read_folders([a, b]).rows) == 2  # of two commits


def test_the_page_is_html_or_markdown_and_one(tmp_path, capsys):
    row = write_row(made_up(), tmp_path)
    before = row.read_text()
    (tmp_path / "folder.md").mkdir()
    for out in (row, tmp_path, tmp_path / "page", tmp_path / "folder.md"):
        assert main(["leaderboard", str(tmp_path), f"out={out}"]) == 2
        assert "out= is a file that ends in .html or .md, got" in capsys.readouterr().err
    words = [f"out={tmp_path / name}" for name in ("a.md", "b.md")]
    assert main(["leaderboard", str(tmp_path), *words]) == 2
    assert "adaptok leaderboard FOLDER... out=FILE" in capsys.readouterr().err
    assert row.read_text() == before
    assert not [*tmp_path.glob("?.md")]


def test_a_folder_without_rows_is_no_leaderboard(tmp_path, capsys):
    (tmp_path / "T0").mkdir()
    (tmp_path / "work").mkdir()
    words = ["leaderboard", str(tmp_path), f"out={tmp_path / 'page.md'}"]
    assert main(words) == 2
    assert capsys.readouterr().err.strip().endswith(f"no row in {tmp_path}")
    write_row(made_up(), tmp_path / "T0")
    assert main(words) == 2
    said = f"no row in {tmp_path}; there are some in {tmp_path / 'T0'}"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_markdown_of_hostile_text_is_text():
    text = "<script>alert(1)</script> | `x`\n# [a](b) *c*"
    row = made_up(method=text, set=text, hardware=text, commit=text)
    page = markdown(Folder({"a.json": row, "b.json": made_up(set=text)}))
    assert "<script" not in page
    assert "\n# [" not in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "&#60;script&#62;alert(1)" in page


def test_values_are_read_from_where_a_column_says():
    """Also in rows that nobody checked."""
    forged = {"tokens": 1, "training": 1e-9, "6:12": 0.0, "flops": 1}
    page = markdown(Folder({"a.json": made_up(metrics=forged)}))
    head, _, line = [line.strip("| ") for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in text.split("|")] for text in (head, line)]
    shown = dict(zip(*cells, strict=True))
    assert (shown["tokens"], shown["MFLOP"], shown["training, ms"]) == ("64", "40", "30")
    assert shown["steps 6:12"] == "0.95"


def test_the_page_holds_json(tmp_path):
    found = Folder({"a.json": made_up(commit="0123456789abcdef+")})
    text = write_leaderboard(found, [], tmp_path / "page.html").read_text()
    content = text.partition('id="content">')[2].partition("</script>")[0]
    (row,) = json.loads(content)["rows"]
    assert row["commit"] == "0123456789+"
    huge = Folder({"a.json": made_up(seconds={"training": 1e308})})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_leaderboard(huge, [], tmp_path / "page.html")
