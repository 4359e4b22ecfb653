"""Files of a run folder. What cannot be read is added to the problems."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptok.report.records import Problem
from adaptok.utils.tables import read_metrics


def read_curve(
    folder: Path, config: Mapping[str, Any], source: Path | None, problems: list[Problem]
) -> list[dict[str, float]]:
    """Rows of metrics.csv, in the order of steps; what an evaluated run logged is its source's."""
    own_config = (folder / "config.yaml").exists() or not config
    for place in (folder if own_config else folder.parent, source):
        if place is None or not place.is_dir():
            continue
        try:
            rows = [row for row in read_metrics(place) if math.isfinite(row.get("step", math.nan))]
        except (OSError, ValueError) as error:
            problems.append(Problem(place, f"metrics.csv cannot be read: {error}"))
            continue
        if rows:
            return sorted(rows, key=lambda row: row["step"])
    return []


def modified(folder: Path) -> float:
    """Time stamp of what was written last."""
    files = [folder / name for name in ("metrics.json", "failed.json", "config.yaml")]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def read_config(folder: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """config.yaml of a folder, None where there is none; a damaged one is a problem, too."""
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if it is there
        config = yaml.load((folder / "config.yaml").read_text(), loader)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError):
        config = "unreadable"
    if isinstance(config, dict):
        return config
    problems.append(Problem(folder, "config.yaml is damaged"))
    return None


def read_json(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """A mapping, None where there is no such file; a damaged one is a problem, too."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = "unreadable"
    if isinstance(content, dict):
        return content
    problems.append(Problem(path.parent, f"{path.name} is damaged or only half written"))
    return None
