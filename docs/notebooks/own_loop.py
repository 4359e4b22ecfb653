# %% [markdown]
# # Adaptive tokens in a training loop of your own
#
# Data, two models, a loop, errors as in the Well, saved and loaded again: from Python alone.

# %%
import tempfile
from pathlib import Path

import torch

import adaptok
from adaptok import plots
from adaptok.data import WellData
from adaptok.data.synthetic import generate
from adaptok.evaluation.evaluate import evaluate, rollouts
from adaptok.evaluation.results import markdown
from adaptok.models.baselines import create_baseline
from adaptok.plots.rollouts import rollout_video

FOLDER = Path(tempfile.mkdtemp())

# %% [markdown]
# **Data** in the Well's format: generated here; any other folder of the Well works too.

# %%
knobs = {"resolution": 16, "frames": 6, "nodes": 4, "train": 2, "valid": 1, "test": 2}
path = generate("acoustic_scattering_maze", FOLDER / "data", progress=False, **knobs)
data = WellData(path=path, batch_size=4)
data.setup()
info = data.info

# %% [markdown]
# **Two models** of the same fields: adaptive tokens, and a U-Net beside them.

# %%
torch.manual_seed(0)
common = {"ndim": info.ndim, "in_channels": len(info.fields)}
common |= {"constant_channels": len(info.constants), "normalise": "dataset"}
tokenizer = {"name": "iap", "budget": 22, "max_size": 8}
models = {
    "iap": adaptok.create_surrogate(tokenizer=tokenizer, dim=48, depth=2, heads=2, **common),
    "unet": create_baseline({"name": "unet", "width": 8}, boundary=info.boundary, **common),
}

# %% [markdown]
# **A loop.** Fields are in physical units, the model knows the statistics.

# %%
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

# %% [markdown]
# **Errors** as in the Well; the adaptive model with the budget that it knows and a smaller one.

# %%
settings = {"iap": [{}, {"budget": 13}], "unet": [{}]}
for name, model in models.items():
    results = evaluate(model, data, settings=settings[name], steps=3, device="cpu")
    print(f"{name}\n{markdown(results)}")
    adaptok.save_pretrained(model, FOLDER / name, results=results)

# %% [markdown]
# **Anywhere else** the saved folder is enough, or the id of a model on the hub.

# %%
model = adaptok.from_pretrained(FOLDER / "iap")
schedule = adaptok.create_schedule({"name": "fixed", "settings": [{"budget": 22}]})
batch, prediction = next(iter(rollouts(model, data, "test", schedule, steps=4)))
truth = batch["target"][0].numpy()
film = rollout_video(truth, prediction[0].numpy(), info.fields, FOLDER / "rollout.gif")
print(f"film: {film}")

# %% [markdown]
# **The tokens themselves**: the cells that they stand for.

# %%
cells = model.cells(batch["input"], constants=batch["constants"], boundary=batch["boundary"])
pressure = batch["input"][0, -1, 0].numpy()
plots.cells_figure(pressure, {"budget 22": cells})
