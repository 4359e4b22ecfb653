"""Pages of the documentation: Python blocks run, links resolve, names exist, the site builds."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pkgutil import resolve_name

import pytest
import yaml
from pages import PAGES, ROOT, blocks, name, prose

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
LANGUAGES = {"python", "bash", "text", "toml", "yaml"}
SLOW = ("apt-vision.md", "apt-dense.md")  # whole models of timm, in training
WITH_PYTHON = [
    pytest.param(page, id=name(page), marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in PAGES
    if any(block.reason is None for block in blocks(page, "python"))
]
NOT_RUN = [page for page in PAGES if any(block.reason for block in blocks(page, "python"))]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page, tmp_path, monkeypatch, drawn):
    """All blocks of a page in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": page.stem}
    for block in blocks(page, "python"):
        if block.reason is None:
            padding = "\n" * (block.line - 1)  # so that a traceback names the line of the page
            exec(compile(padding + block.text, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", NOT_RUN, ids=name)
def test_python_blocks_that_are_not_run_call_what_exists(page):
    """Their imports are executed, and the arguments of what they call are bound."""
    namespace: dict = {}
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), namespace)
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text)) if block.reason else ():
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if re.fullmatch(r"[\w.]+", called) and called.partition(".")[0] in namespace:
                words = {word.arg: None for word in node.keywords if word.arg}
                target = inspect.signature(eval(called, namespace))
                target.bind_partial(*node.args, **words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_of_a_known_language_and_can_be_read(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{name(page)}:{block.line}: {block.language!r}"
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language == "yaml":
            yaml.safe_load(block.text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_resolve(page):
    targets = [link for link in LINK.findall(prose(page)) if "://" not in link and "@" not in link]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert not missing
    docs = ROOT / "docs"
    if page.is_relative_to(docs):  # `make docs` builds this folder alone
        outside = [k for k in targets if not (page.parent / k).resolve().is_relative_to(docs)]
        assert not outside


def test_names_of_the_package_in_the_prose_exist():
    from adaptok.cli.listing import _kinds

    groups = {registry.group for registry in _kinds().values()}
    for page in PAGES:
        for found in re.findall(r"`(adaptok(?:\.(?!log`)\w+)+)", prose(page)):
            assert found in groups or resolve_name(found), f"{name(page)}: {found}"


def directives() -> dict[str, str]:
    """What mkdocstrings documents, and the page that says so."""
    pages = (ROOT / "docs" / "api").glob("*.md")
    found = [(t, name(p)) for p in pages for t in re.findall(r"^::: (\S+)", p.read_text(), re.M)]
    assert len(found) == len(dict(found)), "twice"
    return dict(found)


def test_every_public_name_has_its_place_in_the_api_pages():
    import adaptok

    assert not {f"adaptok.{public}" for public in adaptok.__all__} - set(directives())


@pytest.mark.parametrize("target", directives())
def test_what_the_api_pages_name_exists(target):
    resolve_name(target)


def test_every_page_is_in_the_navigation():
    def files(entries: list) -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                for below in entry.values():
                    yield from files(below if isinstance(below, list) else [below])

    docs = ROOT / "docs"
    listed = sorted(files(yaml.safe_load((docs / "mkdocs.yml").read_text())["nav"]))
    pages = [*docs.rglob("*.md"), *docs.glob("notebooks/*.py")]
    assert listed == sorted(page.relative_to(docs).as_posix() for page in pages)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """It also finds docstrings that describe a parameter which is not there."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml", reason="of the extra docs")
    pytest.importorskip("mkdocs_jupyter", reason="of the extra docs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    config = ["-f", "docs/mkdocs.yml"]  # relative as in the Makefile: mkdocs refuses the full path
    built = subprocess.run([*build, *config], capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "api" / "core" / "index.html").is_file()


def test_readme_shows_both_commands_and_a_library_example():
    shell = "".join(block.text for block in blocks(ROOT / "README.md", "bash"))
    assert "make demo" in shell
    assert blocks(ROOT / "README.md", "python")


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml", reason="of the extra docs")
    hook = runpy.run_path(str(ROOT / "docs" / "hooks" / "mathml.py"))["on_page_content"]
    inline = hook('a <span class="arithmatex">\\(x &lt; y\\)</span> b')
    assert inline.startswith("a <math")
    assert 'display="inline"' in inline
    assert inline.endswith("</math> b")
    block = hook('<div class="arithmatex">\\[H =\n\\frac{1}{2}\\]</div>')
    assert 'display="block"' in block
    assert "mfrac" in block
    assert "arithmatex" not in inline + block
