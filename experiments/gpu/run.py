"""Everything that needs a GPU, in under nine minutes: correctness first, then the benchmarks.

python experiments/gpu/run.py OUT

Each part is a process with a time limit, so that a part that fails or hangs stops no other one.
Results appear in OUT as they come: a log per part, the benchmarks' .json and .md, and summary.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parents[2]
sys.path.insert(0, str(HERE / "experiments"))

from listed import read  # noqa: E402

MODELS = {  # APT, Table 6: model, image size, batch, share of tokens
    "vision_l": ("vit_large_patch14_clip_336", "336", "32", "0.44"),
    "vision_b": ("vit_base_patch16_384", "384", "64", "0.5"),
    "vision_h": ("vit_huge_patch14_clip_336", "336", "16", "0.5"),
}
TESTS = ["-q", "-m", "gpu", "--noconftest", "-p", "no:cacheprovider", "tests/gpu"]
SMALL = ["--device", "cuda", "--precision", "bf16"]


def parts(out: Path) -> dict[str, tuple[list[str], int]]:
    """Returns command and limit in seconds of each part, the important ones first."""
    found: dict[str, tuple[list[str], int]] = {
        "tests": (["pytest", *TESTS], 100),
        "attention": (["benchmarks.attention", str(out)], 35),
    }
    for run in read("iap_table6").runs["full"]:
        if run.name != "asm":  # the grid of am
            name, *rest = run.overrides
            found[f"step_{run.name}"] = ([f"benchmarks.{name}", str(out), *rest], 32)
    found["tokenize"] = (["benchmarks.tokenize", str(out), *SMALL, "--batch", "16"], 25)
    for name, (model, size, batch, share) in MODELS.items():
        shape = ["--models", model, "--sizes", size, "--batches", batch, "--shares", share]
        found[name] = (["adaptok.evaluation.bench.vision", str(out / name), *shape], 45)
    found |= {
        name: ([f"benchmarks.{name}", str(out)], 25) for name in ("reducers", "refine", "memory")
    }
    found["scaling"] = (["benchmarks.scaling", str(out), *SMALL, "--seconds", "1"], 40)
    return {name: ([sys.executable, "-m", *words], limit) for name, (words, limit) in found.items()}


def main(out: Path) -> None:
    """Runs the parts one after the other."""
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    lines = ["| part | seconds | result |", "|---|---|---|"]
    for name, (command, limit) in parts(out).items():
        start = time.perf_counter()
        with (out / f"{name}.log").open("w") as log:
            try:
                streams = {"stdout": log, "stderr": subprocess.STDOUT}
                done = subprocess.run(
                    command, cwd=HERE, env=environment, timeout=limit, check=False, **streams
                )
                result = "ok" if done.returncode == 0 else f"exit status {done.returncode}"
            except subprocess.TimeoutExpired:
                result = f"stopped after {limit} s"
        lines.append(f"| {name} | {time.perf_counter() - start:.0f} | {result} |")
        (out / "summary.md").write_text("\n".join(lines) + "\n")
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/gpu").resolve())
