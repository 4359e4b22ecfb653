"""The notebooks are executed where the site is built, and a cell that fails ends that."""

from __future__ import annotations

from pathlib import Path

import yaml

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = DOCS / "notebooks"


def test_every_notebook_is_executed_by_the_site():
    site = yaml.safe_load((DOCS / "mkdocs.yml").read_text())
    (runs,) = [one["mkdocs-jupyter"] for one in site["plugins"] if "mkdocs-jupyter" in one]
    assert runs == {"include": ["notebooks/*.py"], "execute": True, "allow_errors": False}
    (pages,) = [part["Notebooks"] for part in site["nav"] if "Notebooks" in part]
    there = {f"notebooks/{path.name}" for path in NOTEBOOKS.glob("*.py")}
    assert {page for one in pages for page in one.values()} == there
