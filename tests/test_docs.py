"""README and docs: Python blocks run, `adaptok` commands exist and compose, links resolve."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from sampled import sampled

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(`{3,})(\w*)([^\n]*)\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


@dataclass(frozen=True)
class Block:
    language: str
    note: str
    text: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of one language, with the line that each starts on."""
    text = page.read_text()
    found = [
        Block(match[2], match[3].strip(), match[4], text[: match.start()].count("\n") + 2)
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language == language]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def with_python(page: Path) -> bool:
    return any(block.note != "no-run" for block in blocks(page, "python"))


def commands() -> list[tuple[str, str]]:
    """Every `adaptok ...` line of the bash blocks, long lines joined, behind its page."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            text = block.text.replace("\\\n", " ")
            lines = [line.strip() for line in text.splitlines()]
            found += [(name(page), line) for line in lines if line.startswith("adaptok ")]
    return found


SLOW = ("apt-vision.md", "apt-dense.md")  # whole models of timm, in training
BLOCKS = [
    pytest.param(page, id=name(page), marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in PAGES
    if with_python(page)
]


@pytest.mark.parametrize("page", BLOCKS)
def test_python_blocks_run(page, tmp_path, monkeypatch, drawn):
    """All blocks of a page in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": page.stem}
    for block in blocks(page, "python"):
        if block.note != "no-run":
            padding = "\n" * (block.line - 1)  # so that a traceback names the line of the page
            exec(compile(padding + block.text, str(page), "exec"), namespace)


@pytest.mark.parametrize("on_page", sampled(commands(), 6), ids=": ".join)
def test_commands_exist_and_compose(on_page):
    from adaptok import cli
    from adaptok.cli.usage import USAGE
    from adaptok.config import menu as config

    _, subcommand, *arguments = shlex.split(on_page[1], comments=True)
    longer = " ".join([subcommand, *arguments[:1]])
    subcommand = longer if longer in cli.COMMANDS else subcommand
    assert subcommand in cli.COMMANDS
    if "arguments" in USAGE[subcommand]:
        return  # these take no overrides
    overrides, folders = split_arguments(arguments)
    if (config.config_dir() / f"{subcommand}.yaml").is_file() and not folders:
        config.compose(subcommand, overrides)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Overrides, each sweep replaced by its first value, and the folders after --config-dir."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = iter(arguments)
    overrides, folders = [], []
    for word in words:
        if word == "--config-dir":
            folders.append(next(words))
        elif not word.startswith("-"):
            overrides.append(word)
    parsed = OverridesParser.create().parse_overrides(overrides)
    first = [
        f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        if override.is_sweep_override()
        else override.input_line
        for override in parsed
    ]
    return first, folders


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_resolve(page):
    prose = FENCE.sub("", page.read_text())
    targets = [link for link in LINK.findall(prose) if "://" not in link and "@" not in link]
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
        for found in re.findall(r"`(adaptok(?:\.(?!log`)\w+)+)", FENCE.sub("", page.read_text())):
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
