"""Prints the text of ``--help``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

# What each command does, its arguments if it has no configuration, and examples; then other texts.
USAGE = yaml.safe_load(Path(__file__).with_name("usage.yaml").read_text(encoding="utf-8"))
COMMANDS: dict[str, str] = {k: v["about"] for k, v in USAGE.items() if isinstance(v, dict)}


def main_help() -> str:
    """Makes the text of ``adaptok --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items())
    return USAGE["adaptok"].format(commands=commands)


def command_help(command: str, overrides: Sequence[str] = ()) -> str:
    """Makes the text of ``adaptok <command> --help`` for the task among the overrides."""
    entry = USAGE[command]
    arguments = entry.get("arguments", "[group=choice ...] [key=value ...] [flags]")
    lines = [f"adaptok {command}: {entry['about']}", ""]
    lines += [f"usage: adaptok {command} {arguments}", ""]
    if "arguments" not in entry:
        lines += [*_menu(command, overrides), USAGE["flags"]]
    lines += [f"  {line}" for line in entry.get("keys", "").splitlines()]
    examples = [f"  {example}" for example in entry["examples"].splitlines()]
    gap = [""] if "keys" in entry else []
    return "\n".join([*lines, *gap, "examples:", *examples])


def _menu(command: str, overrides: Sequence[str]) -> list[str]:
    """Lists groups with their choices, then the other keys with their defaults."""
    from omegaconf import OmegaConf

    from adaptok.config.menu import MANY, choices, compose, config_dir, default_choices, task_of

    task = task_of(overrides)
    chosen_task = [f"task={task}"] if command == "train" else []
    config = OmegaConf.to_container(compose(command, chosen_task))
    assert isinstance(config, dict)
    lines = ["groups, with the default in brackets (the keys of a choice are group.key=value):"]
    chosen = default_choices(command, chosen_task)
    for group, default in chosen.items():
        names = [f"[{name}]" if name == default else name for name in choices(group, task)]
        if len(names) > MANY:
            names = [f"[{default}]", f"and {len(names) - 1} more of timm's names"]
        lines.append(f"  {group:<10} {' '.join(names)}")
    file = config_dir() / (f"task/{task}" if command == "train" else command)
    lines += ["", f"keys with their defaults, explained in {file}.yaml:"]
    keys = {str(key): value for key, value in config.items() if key not in chosen}
    for key, value in keys.items():
        single = isinstance(value, dict) and command != "demo"
        for name, item in value.items() if single else [("", value)]:
            lines.append(f"  {key}{'.' if name else ''}{name}={_shown(item)}")
    return [*lines, ""]


def _shown(value: object) -> str:
    """Writes a value as it is typed on the command line."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...")
