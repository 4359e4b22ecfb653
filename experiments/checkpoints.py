"""Trains the small models of a release: `coarse_fine` on generated sets.

    python experiments/checkpoints.py OUT [--only NAME] [key=value ...]

Each becomes OUT/NAME, a folder that `adaptok.from_pretrained` reads, with its model card, and
OUT/NAME.zip. Typed again, an interrupted training resumes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

MOST = 5_000_000  # bytes of a zip
MODELS = {
    "coarse_fine_maze": ["data=acoustic_scattering_maze"],
    "coarse_fine_euler": ["data=euler_multi_quadrants_periodicBC"],
    "coarse_fine_blast": ["experiment=coarse_fine_3d", "size.depth=2"],
}
TRAINING = ["size=tiny", "optim=cosine", "optim.lr=3e-3", "trainer.max_steps=3000", "resume=auto"]


def make(name: str, out: Path, overrides: list[str]) -> Path:
    """Trains one model and packs it; returns the zip."""
    run = out / "runs" / name
    words = [*TRAINING, *MODELS[name], f"hydra.run.dir={run}", *overrides]
    subprocess.run([sys.executable, "-m", "adaptok", "train", *words], check=True)
    shutil.copytree(run / "model", out / name, dirs_exist_ok=True)
    packed = Path(shutil.make_archive(str(out / name), "zip", out / name))
    if packed.stat().st_size > MOST:
        raise SystemExit(f"{packed} has {packed.stat().st_size:,} bytes, {MOST:,} are allowed")
    return packed


def main() -> None:
    """Makes the models that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=MODELS)
    options, overrides = parser.parse_known_args()
    for name in [options.only] if options.only else MODELS:
        print(make(name, options.out.resolve(), overrides))


if __name__ == "__main__":
    main()
