"""Makes the objects of torch and Lightning that a user names by ``_target_``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

# What the loggers of the menu need, by class; wandb has no class there.
NEEDED = {
    "wandb": ("wandb",),
    "lightning.pytorch.loggers.TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "lightning.pytorch.loggers.MLFlowLogger": ("mlflow", "mlflow_skinny"),
}


def check_loggers(loggers: Mapping[str, Any]) -> None:
    """Checks that the packages of the loggers of the menu are installed.

    Raises:
        ValueError: names the package that is missing.
    """
    for name, node in loggers.items():
        target = node.get("_target_", name) if isinstance(node, Mapping) else None
        packages = NEEDED.get(str(target), ())
        if packages and not any(map(find_spec, packages)):
            raise ValueError(f"logger={name} needs {packages[0]}: pip install {packages[0]}")


def instantiate(key: str, node: Mapping[str, Any], **more: Any) -> Any:
    """Makes what ``{"_target_": "package.Class", **arguments}`` describes, by Hydra.

    This runs code of the user's choice: `node` must come from the user's own configuration, never
    from that of a checkpoint.

    Args:
        key: of the node, for messages.
        more: further arguments, such as ``_partial_=True``.

    Raises:
        ValueError: no ``_target_``, one that cannot be imported, or arguments that it refuses.
    """
    from hydra.errors import HydraException
    from hydra.utils import instantiate as of_hydra

    if not isinstance(node.get("_target_"), str):
        raise ValueError(f"{key} needs a _target_, such as package.Class, got {dict(node)}")
    try:
        return of_hydra({**node}, **more)
    except HydraException as error:
        raise ValueError(f"{key}: {' '.join(str(error.__cause__ or error).split())}") from error


def instantiate_each(key: str, nodes: Mapping[str, Any] | None) -> list[Any]:
    """Makes the objects of a mapping by name; keeps what is an object already."""
    return [
        instantiate(f"{key}.{name}", node) if isinstance(node, Mapping) else node
        for name, node in (nodes or {}).items()
        if node is not None
    ]
