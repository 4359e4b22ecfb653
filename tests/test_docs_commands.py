"""Commands of the documentation: those of adaptok compose, others name what exists."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib

import pytest
import yaml
from pages import PAGES, ROOT, blocks, name
from sampled import sampled


def lines() -> list[tuple[str, str]]:
    """Every line of the bash blocks that can be composed, long ones joined, behind its page."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            text = block.text.replace("\\\n", " ") if block.reason is None else ""
            typed = [line.strip() for line in text.splitlines()]
            found += [(name(page), line) for line in typed if line and not line.startswith("#")]
    return found


OWN = [on_page for on_page in lines() if on_page[1].startswith("adaptok ")]
OTHERS = [on_page for on_page in lines() if not on_page[1].startswith("adaptok ")]


@pytest.mark.parametrize("on_page", sampled(OWN, 6), ids=": ".join)
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


@pytest.mark.parametrize("on_page", OTHERS, ids=": ".join)
def test_other_commands_name_what_exists(on_page):
    """Targets, experiments, benchmarks, scripts with their flags, extras. Running them is the work
    of the tests of each.
    """
    words = shlex.split(on_page[1], comments=True)
    program, *words = itertools.dropwhile(lambda word: re.match(r"[A-Z]+=", word), words)
    if program == "make":
        target, *variables = words
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        given = dict(variable.split("=", 1) for variable in variables)
        if target == "reproduce":
            folder = ROOT / "experiments" / given.pop("EXP")
            scales = yaml.safe_load((folder / "experiment.yaml").read_text())
            assert given.pop("SCALE", "small") in ("small", *scales.get("scales", ()))
            assert {*given} <= {"DRY", "ARGS"}
        elif target == "bench":
            assert all((ROOT / "benchmarks" / f"{k}.py").is_file() for k in given.values())
        else:
            assert not given
    elif program == "python":
        script = (ROOT / words[0]).read_text()
        assert all(word in script for word in words[1:] if word.startswith("-"))
    elif program == ".":
        assert words == [".venv/bin/activate"]  # where `make` puts it
        assert re.search(r"^VENV *.?= *\.venv$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = re.findall(r"\[(.+)\]", words[-1])
        assert {e for some in asked for e in some.split(",")} <= {*extras["optional-dependencies"]}
    else:
        raise AssertionError(f"{program} is not known to this test")
