"""A training run in a process of its own, for tests of several processes and of kills.

Tokens per sample depend on the sample; some batches leave the finest level without any.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from adaptok import TOKENIZERS, TreeTokenizer, create_schedule
from adaptok.cells import Cells
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.tokenizers import iap
from adaptok.training import SurrogateModule, make_trainer
from adaptok.training.optim import Optim
from adaptok.training.parallel import checkpoint_activations


class Uneven(TreeTokenizer):
    """Samples with more kinetic energy get more tokens, the others the least there can be."""

    def cells(self, field, *, boundary=None, **control) -> Cells:
        energy = field.square().mean(tuple(range(1, field.ndim)))
        budget = torch.where(energy > 1.0, 22, 4) + 3 * (energy > 1.5)
        return super().cells(field, boundary=boundary, budget=budget)


@TOKENIZERS.register("uneven")
def uneven(ndim: int, in_channels: int, dim: int, *, max_size: int = 8) -> TreeTokenizer:
    tokenizer = iap(ndim, in_channels, dim, max_size=max_size, budget=22)
    tokenizer.__class__ = Uneven
    return tokenizer


def main(folder: str, options: dict) -> None:
    torch.set_num_threads(1)
    resume, overrides = options.pop("resume", None), options.pop("overrides")
    only_validate = options.pop("only_validate", False)
    config = plain(compose("train", overrides))
    torch.manual_seed(0)
    data = build_data(config)
    surrogate = build_surrogate(config, data.info)
    if options.pop("checkpoint_activations", False):
        checkpoint_activations(surrogate)
    counts: list[list[int]] = []
    surrogate.processor.register_forward_pre_hook(
        lambda _, args: counts.append(args[0].cells.cu_seqlens.diff().tolist())
    )
    module = SurrogateModule(
        surrogate, Optim(**config["optim"]), create_schedule(config["schedule"]), config
    )
    knobs = {"log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}
    trainer = make_trainer(folder, ema=0.9, **(knobs | options))
    work = trainer.validate if only_validate else trainer.fit
    work(module, datamodule=data, ckpt_path=resume, weights_only=True)
    place = Path(folder) / f"counts_{trainer.global_rank}.json"
    place.write_text(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
