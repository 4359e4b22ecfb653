"""From Python: adaptive tokens in a training loop of your own, then saved, loaded and rolled out.

python docs/gallery/library_user.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import adaptok
from adaptok.data import WellData
from adaptok.data.synthetic import generate
from adaptok.evaluation.evaluate import evaluate, rollouts
from adaptok.evaluation.results import markdown
from adaptok.models.baselines import create_baseline
from adaptok.plots.rollouts import rollout_video


def main(folder: Path) -> None:
    """Trains, tests, saves and reloads two models; writes below `folder`."""
    # 1. Data in the Well's format: generated here; any other folder of the Well works too.
    knobs = {"resolution": 16, "frames": 6, "nodes": 4, "train": 2, "valid": 1, "test": 2}
    path = generate("acoustic_scattering_maze", folder / "data", progress=False, **knobs)
    data = WellData(path=path, batch_size=4)
    data.setup()
    info = data.info

    # 2. Two models of the same fields: adaptive tokens, and a U-Net beside them.
    torch.manual_seed(0)
    common = {"ndim": info.ndim, "in_channels": len(info.fields)}
    common |= {"constant_channels": len(info.constants), "normalise": "dataset"}
    tokenizer = {"name": "iap", "budget": 22, "max_size": 8}
    models = {
        "iap": adaptok.create_surrogate(tokenizer=tokenizer, dim=48, depth=2, heads=2, **common),
        "unet": create_baseline({"name": "unet", "width": 8}, boundary=info.boundary, **common),
    }

    # 3. A training loop; fields are in physical units, the model knows the statistics.
    for name, model in models.items():
        constants = (info.constant_mean, info.constant_std)
        model.set_statistics(info.mean, info.std, info.delta_std, *constants)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        loader = data.train_dataloader()
        for epoch in range(10):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                known = {"constants": batch["constants"], "boundary": batch["boundary"]}
                error = model(batch["input"], **known) - batch["target"]
                loss = (error / info.std.view(-1, 1, 1)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        print(f"{name}: last loss {loss.item():.4f}")

    # 4. Errors as in the Well; the adaptive model with the budget that it knows and a smaller one.
    settings = {"iap": [{}, {"budget": 13}], "unet": [{}]}
    for name, model in models.items():
        results = evaluate(model, data, settings=settings[name], steps=3, device="cpu")
        print(f"\n{name}\n{markdown(results)}")
        adaptok.save_pretrained(model, folder / name, results=results)

    # 5. Anywhere else: the saved folder is enough, or the id of a model on the hub.
    model = adaptok.from_pretrained(folder / "iap")
    schedule = adaptok.create_schedule({"name": "fixed", "settings": [{"budget": 22}]})
    batch, prediction = next(iter(rollouts(model, data, "test", schedule, steps=4)))
    truth = batch["target"][0].numpy()
    film = rollout_video(truth, prediction[0].numpy(), info.fields, folder / "rollout.gif")
    print(f"film: {film}")

    # 6. The tokens themselves: features and the cells that they stand for.
    cells = model.cells(batch["input"], constants=batch["constants"], boundary=batch["boundary"])
    sizes = [tuple(size) for size in cells.size[:, 1:].unique(dim=0).tolist()]
    print(f"{len(cells)} cells in {cells.batch_size} samples, of sizes {sizes}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "gallery_library").resolve())
