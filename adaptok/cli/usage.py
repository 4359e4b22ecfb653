"""What ``--help`` prints."""

from __future__ import annotations

COMMANDS = {
    "train": "fit a surrogate, test it, keep metrics, checkpoints and pictures",
    "eval": "test a checkpoint: one-step and rollout VRMSE for one or several settings",
    "tokenize": "pictures of fields, score maps and cells; needs no trained model",
    "data": "generate or check a data set; shapes, fields, persistence VRMSE",
    "demo": "IAP beside fixed patches on generated data, in minutes on two cores",
    "list": "tokenizers, processors, decoders ... with their knobs",
}

EXAMPLES = {
    "train": [
        "adaptok train tokenizer=iap tokenizer.budget=512 size=tiny trainer.max_steps=1000",
        "adaptok train tokenizer=composed tokenizer.indicator=gradient decoder=cross_attention",
        "adaptok train -m tokenizer=iap,uniform seed=0,1,2      # a sweep of six runs",
        "adaptok train schedule=random 'schedule.settings=[{budget: 256}, {budget: 512}]'",
        "adaptok train data=well data.name=turbulent_radiative_layer_2D data.base=/data history=4",
        "adaptok train resume=auto logger=wandb",
        "adaptok train --config-dir my_configs tokenizer=mine",
    ],
    "eval": [
        "adaptok eval ckpt=outputs/<run>",
        "adaptok eval ckpt=outputs/<run> 'settings=[{budget: 256}, {budget: 512}]' steps=20",
        "adaptok eval ckpt=best.ckpt split=valid +data.batch_size=2",
    ],
    "tokenize": [
        "adaptok tokenize 'settings=[{budget: 64}, {budget: 256}, {budget: 1024}]'",
        "adaptok tokenize tokenizer=iap tokenizer.k=2 history=4 samples=[0,20]",
        "adaptok tokenize data=supernova_explosion_64 tokenizer.max_size=8",
    ],
    "data": [
        "adaptok data",
        "adaptok data data=supernova_explosion_64 data.base=/tmp/sets",
        "adaptok data data=well data.name=shear_flow data.base=/data",
    ],
    "demo": ["adaptok demo", "adaptok demo trainer.max_steps=200"],
    "list": ["adaptok list", "adaptok list tokenizer", "adaptok list tokenizer 'i*'"],
}

FLAGS = """\
  -m, --multirun      run every combination of comma-separated values, such as seed=0,1,2
  --config-dir DIR    a folder of your own YAML files, such as DIR/tokenizer/mine.yaml
  --cfg job           print the composed configuration and stop
  --debug             show the traceback of an error
  -h, --help          this text"""


def main_help() -> str:
    """Text of ``adaptok --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "adaptok: adaptive tokenizers for transformers on images and PDE fields",
            "",
            "usage: adaptok <command> [key=value ...] [flags]",
            "",
            "commands:",
            *lines,
            "",
            "`adaptok <command> --help` lists the choices, the keys and examples.",
        ]
    )


def command_help(command: str) -> str:
    """Text of ``adaptok <command> --help``."""
    examples = ["examples:", *(f"  {example}" for example in EXAMPLES[command])]
    if command == "list":
        usage = "usage: adaptok list [kind] [pattern]"
        return "\n".join([f"adaptok list: {COMMANDS['list']}", "", usage, "", *examples])
    return "\n".join(
        [
            f"adaptok {command}: {COMMANDS[command]}",
            "",
            f"usage: adaptok {command} [group=choice ...] [key=value ...] [flags]",
            "",
            *_menu(command),
            "flags:",
            FLAGS,
            "",
            *examples,
        ]
    )


def _menu(command: str) -> list[str]:
    """Groups with their choices (the default has a star), then the keys with their defaults."""
    from hydra.core.hydra_config import HydraConfig  # noqa: F401  (a clear error where it is absent)
    from omegaconf import DictConfig, OmegaConf

    from adaptok.config import choices, compose, config_dir

    config = compose(command)
    groups = [group for group in choices() if group not in ("hydra",)]
    lines = ["groups (group=choice; keys of the choice as group.key=value):"]
    files = (config_dir() / f"{command}.yaml").read_text()
    for group in groups:
        if group in config or f"- {group}: null" in files:
            names = ", ".join(choices(group))
            lines.append(f"  {group:<10} {names}")
    lines += ["", f"keys and defaults ({config_dir() / command}.yaml):"]
    for key, value in config.items():
        if key not in groups:
            text = OmegaConf.to_yaml(value).strip() if isinstance(value, DictConfig) else value
            shown = " ".join(str(text).split()) if isinstance(value, DictConfig) else text
            lines.append(f"  {key}={'null' if shown is None else shown}")
    return [*lines, ""]
