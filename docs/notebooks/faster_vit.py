# %% [markdown]
# # A pretrained ViT with fewer tokens
#
# Any ViT, CLIP, SigLIP, DINO or EVA model of timm. Here with random weights, since a page of
# documentation downloads nothing: with `pretrained=True` it is all the same.

# %%
import time

import timm
import torch

import adaptok
from adaptok import plots
from adaptok.evaluation.bench.vision import photographs

torch.set_num_threads(1)
model = timm.create_model("vit_small_patch16_224", pretrained=False).eval()
fast = adaptok.vision.apply_apt(model, thresholds=(5.5, 4.0))

photos, _ = photographs(4, 224)  # (4, 3, 224, 224), 0..1
x = (photos - 0.5) / 0.5  # normalised as `model.pretrained_cfg` says

# %% [markdown]
# **How many tokens?** The paper's thresholds keep most patches of such small photographs;
# `calibrate` finds those that keep a share.

# %%
with torch.inference_mode():
    fast(x)
    print("paper's thresholds:", fast.last_cells.lengths, "of 196")
    half = fast.calibrate(x, share=0.5)
    fast(x, thresholds=half)
    print(f"{half}:", fast.last_cells.lengths)
    print(fast.tokens_per_level())

# %%
gray = 255 * photos[0].mean(0).numpy()
with torch.inference_mode():
    tilings = {}
    for share in (0.75, 0.5, 0.25):
        fast(x, thresholds=fast.calibrate(x, share=share))
        tilings[f"{share:.0%}"] = fast.last_cells.samples(0, 1)
plots.cells_figure(gray, tilings, image=True)

# %% [markdown]
# **How fast?** Seconds of a forward pass, side by side. Measure on your own machine and batch
# before you believe a table: `adaptok bench vision --models vit_base_patch16_384`.


# %%
def seconds(call, repeats: int = 5) -> float:
    """Median time of a call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


with torch.inference_mode():
    plain = seconds(lambda: model(x))
    for share in (1.0, 0.5, 0.25):
        bars = (-1.0, -1.0) if share == 1 else fast.calibrate(x, share=share)
        apt = seconds(lambda bars=bars: fast(x, thresholds=bars))
        print(f"{share:.0%} of the tokens: {plain / apt:.2f} times as fast")

# %% [markdown]
# **What is lost?** With all patches nothing: the logits are timm's. With merged ones the model has
# to be fine-tuned; off the shelf, area-weighted attention and the variance of a cell lose less than
# entropy.

# %%
with torch.inference_mode():
    same = fast(x, thresholds=(-1.0, -1.0))
    print("largest difference of logits:", float((same - model(x)).abs().max()))
    maps = fast.dense_features(x, thresholds=half)
    print("dense features, one per patch:", tuple(maps.shape))
new = adaptok.vision.freeze_all_but_new(fast, also=("head",))
count = sum(p.numel() for p in new)
print(f"parameters to fine-tune: {count:,}")
