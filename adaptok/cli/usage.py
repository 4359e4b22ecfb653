"""Prints the text of ``--help``."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

COMMANDS = {
    "train": "fit a surrogate or an image classifier, test it, keep metrics and checkpoints",
    "finetune": "fine-tune a pretrained model on another data set, new fields included",
    "eval": "test a checkpoint for one or several settings: VRMSE, or accuracy",
    "tokenize": "pictures of fields, score maps and cells; needs no trained model",
    "data": "generate or check a data set; shapes, fields, persistence VRMSE",
    "demo": "IAP beside fixed patches on generated data, in minutes on two cores",
    "report": "tables and a page with interactive plots of many runs",
    "list": "tokenizers, processors, decoders ... with their knobs; what goes together",
    "bench": "run a benchmark, such as that of timm models: adaptok bench vision",
}

EXAMPLES = {
    "train": [
        "adaptok train tokenizer=iap tokenizer.budget=512 size=tiny trainer.max_steps=1000",
        "adaptok train tokenizer=composed +tokenizer/indicator=gradient tokenizer.indicator.k=2",
        "adaptok train -m tokenizer=iap,uniform seed=0,1,2      # a sweep of six runs",
        "adaptok train -m launcher=slurm tokenizer=iap,uniform seed=0,1,2 sweep=my_sweep",
        "adaptok train -m search=apt_thresholds                 # Optuna",
        "adaptok train schedule=random 'schedule.settings=[{budget: 256}, {budget: 512}]'",
        "adaptok train data=well data.name=turbulent_radiative_layer_2D data.base=/data history=4",
        "adaptok train resume=auto logger=wandb",
        "adaptok train -m model=surrogate,fno,unet,persistence",
        "adaptok train trainer.devices=2 trainer.strategy=fsdp",
        "adaptok train task=pretrain data=[shear_flow,active_matter] optim.loss=matey_nmse",
        "adaptok train --config-dir my_configs tokenizer=mine",
        "adaptok train task=classify model=vit_small_patch16_224 tokenizer=apt",
        "adaptok train task=classify data=images data.path=/data/imagenet model.pretrained=true",
        "adaptok train task=classify recipe=one_epoch model.checkpoint=weights.safetensors",
        "adaptok train task=classify train.only=new",
        "adaptok train -m task=classify tokenizer=uniform,apt,random,resize seed=0,1,2",
    ],
    "finetune": [
        "adaptok finetune ckpt=outputs/<run> data=rayleigh_benard",
        "adaptok finetune ckpt=outputs/<run> data=rayleigh_benard mode=prepost data_fraction=0.25",
        "adaptok finetune ckpt=outputs/<run> data=rayleigh_benard from_scratch=true",
    ],
    "eval": [
        "adaptok eval ckpt=outputs/<run>",
        "adaptok eval ckpt=outputs/<run> 'settings=[{budget: 256}, {budget: 512}]' steps=20",
        "adaptok eval ckpt=best.ckpt split=valid +data.batch_size=2",
        "adaptok eval ckpt=outputs/<run> steps=30 save_predictions=true video=gif",
        "adaptok eval ckpt=outputs/<run> 'settings=[{}, {thresholds: [-1, -1]}]'  # classifier",
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
        "adaptok data data=active_matter picture=active_matter.png",
        "adaptok data check data/shear_flow      # what is wrong with a file or a set, in words",
    ],
    "demo": ["adaptok demo", "adaptok demo trainer.max_steps=200"],
    "report": [
        "adaptok report outputs                 # every run below it, into outputs/report/",
        "adaptok report multirun/2026-11-21 outputs/baseline out=reports/first",
        "adaptok report outputs by=tokenizer.name,budget",
    ],
    "list": [
        "adaptok list",
        "adaptok list tokenizer",
        "adaptok list tokenizer 'i*'",
        "adaptok list backends",
        "adaptok list combinations            # what goes together, and why the rest does not",
        "adaptok list combinations 'tokenizer=iap*decoder=linear'",
        "adaptok list markdown > docs/parts.md",
    ],
    "bench": [
        "adaptok bench                        # the names",
        "adaptok bench vision --help",
        "adaptok bench vision docs/benchmarks --models vit_base_patch16_384 --sizes 384",
    ],
}

# Commands without a configuration, and their arguments.
PLAIN = {
    "list": "[kind] [pattern]",
    "bench": "[name] [arguments of the benchmark]",
    "report": "FOLDER... [out=DIR] [by=key,key]",
}
MANY = 60  # choices of a group that are not all listed

FLAGS = """\
  -m, --multirun      run every combination of comma-separated values, such as seed=0,1,2;
                      typed again, it resumes where it stopped
  --config-dir DIR    a folder of your own YAML files, such as DIR/tokenizer/mine.yaml
  --cfg job           print the composed configuration and stop
  --debug             show the traceback of an error
  -h, --help          this text"""


def main_help() -> str:
    """Makes the text of ``adaptok --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items())
    return f"""\
adaptok: adaptive tokenizers for transformers on images and PDE fields

usage: adaptok <command> [key=value ...] [flags]

commands:
{commands}

`adaptok <command> --help` lists the choices, the keys and examples."""


def command_help(command: str, overrides: Sequence[str] = ()) -> str:
    """Makes the text of ``adaptok <command> --help`` for the task among the overrides."""
    plain = command in PLAIN
    arguments = PLAIN[command] if plain else "[group=choice ...] [key=value ...] [flags]"
    lines = [f"adaptok {command}: {COMMANDS[command]}", ""]
    lines += [f"usage: adaptok {command} {arguments}", ""]
    if not plain:
        lines += [*_menu(command, overrides), "flags:", FLAGS, ""]
    return "\n".join([*lines, "examples:", *(f"  {example}" for example in EXAMPLES[command])])


def _menu(command: str, overrides: Sequence[str]) -> list[str]:
    """Lists groups with their choices, then the other keys with their defaults."""
    from omegaconf import OmegaConf

    from adaptok.config.menu import choices, compose, config_dir, default_choices, task_of

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
