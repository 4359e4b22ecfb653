"""Faster compositions of Hydra, once imported."""

from __future__ import annotations

import yaml
from hydra.core.config_store import ConfigStore

# Hydra reads the files of every composition anew: in C they take a fifth of the time.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # pyright: ignore

# Hydra copies its whole store for every composition, with a thousand models of timm in it where
# images are classified; the copy of what is loaded is enough.
ConfigStore.__deepcopy__ = lambda self, memo: self  # pyright: ignore
