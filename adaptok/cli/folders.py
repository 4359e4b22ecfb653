"""Keeps a run from overwriting another one in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptok.utils.keys import FIXED, NEW_RUN, differences
from adaptok.utils.locks import is_first

HYDRAS = ".hydra"  # where Hydra keeps the configuration of a run, before anything else
SHOWN = 3  # differences in a message
APART = ("hydra", "logger")  # keys whose values refer to the running job


class OtherRunError(ValueError):
    """The folder of a run holds another one; the message says how they differ."""


def check_free(folder: Path, config: DictConfig) -> None:
    """Checks that a folder holds no run, or one of the same command and configuration.

    One that resumes may be longer; one that resumes from this folder is checked by `check_resume`.

    Args:
        config: as composed for a new run, Hydra's part included.

    Raises:
        OtherRunError: it holds another run.
    """
    if not is_first() or not (folder / "config.yaml").is_file() or config.get("resume_anyway"):
        return
    resume = config.get("resume")
    if resume and Path(str(resume)).resolve().is_relative_to(folder.resolve()):
        return
    command = _command_of(folder)
    if command != config.hydra.job.config_name:
        unknown = "it does not say which command made it"
        differ = [f"it is of adaptok {command}" if command else unknown]
    else:
        roles = FIXED if resume else NEW_RUN
        was = _read(folder / HYDRAS / "config.yaml")
        differ = [*differences(was, _plain(config), roles, "there")]
    if differ:
        more = [f"and {len(differ) - SHOWN} more"] if len(differ) > SHOWN else []
        raise OtherRunError(
            f"{folder} holds another run: {'; '.join(differ[:SHOWN] + more)}. Choose another "
            "hydra.run.dir, or remove the folder"
        )


def _command_of(folder: Path) -> str | None:
    try:
        job = OmegaConf.select(OmegaConf.load(folder / HYDRAS / "hydra.yaml"), "hydra.job")
        return job.config_name
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return None


def _read(file: Path) -> dict[str, Any]:
    """Reads a YAML file of Hydra with its interpolations resolved; empty if it cannot be read."""
    try:
        content = OmegaConf.load(file)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return _plain(content) if isinstance(content, DictConfig) else {}


def _plain(config: DictConfig) -> dict[str, Any]:
    of_job = OmegaConf.masked_copy(config, [str(key) for key in config if key not in APART])
    try:
        plain: Any = OmegaConf.to_container(of_job, resolve=True)
    except OmegaConfBaseException:  # such as a mandatory value, which the run will report
        plain = OmegaConf.to_container(of_job)
    return plain
